import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import trees
from safetensors.torch import load_file, save_file
from training import config, dropping, last, logged, same, start, stop_in_step, trees_of

from segshift import runs
from segshift.config import NetworkConfig, TrainConfig, ZoDiConfig
from segshift.data import frames
from segshift.data.labels import CITYSCAPES
from segshift.methods.zodi.adaptation import ZoDi
from segshift.runs import InputError
from segshift.stages.train import train
from segshift.training import checkpoints


@pytest.fixture
def data(tmp_path):
    return trees_of(tmp_path)


@pytest.mark.parametrize(
    "changes", [{}, dropping(), dropping(optimizer="adamw", warmup=3, accumulate=2, precision="bf16")]
)
def test_a_run_stopped_anywhere_and_continued_is_bitwise_the_uninterrupted_one(
    data, tmp_path, monkeypatch, changes
):
    settings = config(data, oracle_validation=(f"cityscapes:{data}/fog:val",), **changes)
    train(settings, tmp_path / "whole")
    for step in (1, 3, 4):  # before the first checkpoint, between two, right after one
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_in_step(patch, step)
            train(settings, tmp_path / "stopped")
    train(settings, tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped")
    assert logged(tmp_path / "whole") == logged(tmp_path / "stopped")
    for best in ("checkpoints/best.safetensors", "checkpoints/best-oracle.safetensors"):
        assert (tmp_path / "whole" / best).read_bytes() == (tmp_path / "stopped" / best).read_bytes()


def test_byol_continues_with_its_target(data, tmp_path, monkeypatch):
    settings = config(data, zodi=ZoDiConfig(similarity="byol"))
    whole = ZoDi.after_step
    train(settings, tmp_path / "whole")

    def after_step(self, step):
        whole(self, step)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ZoDi, "after_step", after_step)
        train(settings, tmp_path / "stopped")
    train(settings, tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped")
    assert any(key.startswith("target.") for key in last(tmp_path / "stopped"))


def test_a_killed_process_loses_nothing_that_was_saved(data, tmp_path):
    """SIGKILL, twice, from another process: the files alone carry the run on."""
    settings = config(data, **dropping(steps=2000, checkpoint_every=10, validate_every=25))
    process = start(settings, tmp_path / "killed")
    deadline = time.monotonic() + 240
    while (
        checkpoints.last_step(tmp_path / "killed") < 30 and time.monotonic() < deadline and process.is_alive()
    ):
        time.sleep(0.005)
    process.kill()
    process.join()
    reached = checkpoints.last_step(tmp_path / "killed")
    assert 30 <= reached < 2000

    # The rest of 2000 steps would be long: the same states up to a common step are the same run.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_in_step(patch, reached + 10)
            train(settings, tmp_path / "killed")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_in_step(patch, reached + 10)
            train(settings, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert same(tmp_path / "killed", tmp_path / "whole")
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


def test_a_run_that_another_process_trains_is_left_to_it(data, tmp_path):
    settings = config(data, **dropping(steps=2000, checkpoint_every=5))
    process = start(settings, tmp_path / "run")
    try:
        deadline = time.monotonic() + 240
        while (
            not checkpoints.last_step(tmp_path / "run") and time.monotonic() < deadline and process.is_alive()
        ):
            time.sleep(0.005)
        before = (tmp_path / "run" / "metrics.jsonl").stat().st_ino
        with pytest.raises(InputError, match="another process works in"):
            train(settings, tmp_path / "run")
        assert (tmp_path / "run" / "metrics.jsonl").stat().st_ino == before  # not written anew
        assert process.is_alive()
    finally:
        process.kill()
        process.join()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_in_step(patch, checkpoints.last_step(tmp_path / "run") + 1)
        train(settings, tmp_path / "run")


@pytest.mark.parametrize("change", ["source", "transferred"])
def test_a_run_is_not_continued_on_other_frames(data, tmp_path, monkeypatch, change):
    settings = config(data)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_in_step(patch, 3)
        train(settings, tmp_path / "run")
    lost = next((data / {"source": "day", "transferred": "fog"}[change] / "leftImg8bit/train").rglob("*.png"))
    held = lost.read_bytes()
    lost.unlink()
    if change == "source":
        for tree in ("day", "night", "fog"):
            for path in (data / tree).rglob(f"{lost.name.removesuffix('_leftImg8bit.png')}*"):
                path.unlink()
    else:  # as where a transfer was repeated with another result
        told = {"id": lost.name.removesuffix("_leftImg8bit.png"), "error": "lost"}
        runs.write_failures(data / "fog", [told])
    with pytest.raises(InputError, match="began with other frames"):
        train(settings, tmp_path / "run")
    assert checkpoints.last_step(tmp_path / "run") == 2
    if change == "transferred":
        lost.write_bytes(held)
        runs.write_failures(data / "fog", [])
        assert train(settings, tmp_path / "run") and checkpoints.last_step(tmp_path / "run") == 6


def test_what_a_killed_write_left_is_no_checkpoint(data, tmp_path):
    train(config(data), run := tmp_path / "run")
    for name in (".tmp-x1.state", ".tmp-x2.safetensors"):
        (run / "checkpoints" / name).write_bytes(b"half")
    assert checkpoints.last_step(run) == 6
    assert train(config(data), run) == run


def test_the_checkpoint_before_is_kept_until_the_new_one_is_whole(data, tmp_path, monkeypatch):
    write = checkpoints._write

    def full(path, content):
        if path.name == "00000004.state":
            raise InputError("disk full")
        write(path, content)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="disk full"):
        patch.setattr(checkpoints, "_write", full)
        train(config(data), tmp_path / "run")
    assert checkpoints.last_step(tmp_path / "run") == 2
    train(config(data), tmp_path / "run")
    train(config(data), tmp_path / "whole")
    assert same(tmp_path / "run", tmp_path / "whole")
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {"best.safetensors", "00000006.safetensors", "00000006.state"}


def test_a_finished_run_is_left_alone(data, tmp_path):
    train(config(data), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").iterdir()}
    train(config(data, workers=1), tmp_path / "run")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").iterdir()}


def test_a_run_folder_of_another_configuration_is_refused(data, tmp_path):
    train(config(data), tmp_path / "run")
    weights = last(tmp_path / "run")
    with pytest.raises(InputError, match=r"other options \(--lr 0.1 there, 0.2 asked for\)"):
        train(config(data, lr=0.2), tmp_path / "run")
    assert torch.equal(
        weights["segmenter.network.classifier.weight"],
        last(tmp_path / "run")["segmenter.network.classifier.weight"],
    )


def test_a_run_folder_alone_gives_the_trained_network_back(data, tmp_path, monkeypatch):
    train(config(data, zodi=ZoDiConfig(similarity="simsiam")), tmp_path / "run")
    for tree in ("day", "night", "fog"):
        (data / tree).rename(data / f"gone_{tree}")
    method, settings, space = checkpoints.load_run(tmp_path / "run", "last")
    assert (
        not method.training
        and settings.zodi.similarity == "simsiam"
        and space == frames.load(f"cityscapes:{data}/gone_day").space
    )
    assert all(torch.equal(value, last(tmp_path / "run")[key]) for key, value in method.state_dict().items())
    environment = runs.read_json(tmp_path / "run" / "environment.json")
    assert environment["torch"] == torch.__version__.split("+")[0]


def test_source_only_trains_and_learns(data, tmp_path):
    for path in data.rglob("*labelIds.png"):
        trees.save(path, np.full((32, 64), 7, np.uint8))
    settings = config(
        data, method="source_only", transferred=(), jitter=(0, 0, 0, 0), steps=20, select="last"
    )
    train(settings, tmp_path / "run")
    losses = [line["source"] for line in logged(tmp_path / "run") if "source" in line]
    assert losses[-1] < losses[0] / 4 and "transferred" not in logged(tmp_path / "run")[0]
    assert logged(tmp_path / "run")[-1]["validation"]["source"]["iou"]["road"] == 1


def test_weights_of_a_run_start_another(data, tmp_path):
    train(config(data, steps=2), tmp_path / "first")
    weights = tmp_path / "first" / "checkpoints" / "best.safetensors"
    network = NetworkConfig(name="networks:two_convs", weights=str(weights))
    train(config(data, network=network, steps=1, lr=0.0), tmp_path / "second")
    key = "segmenter.network.classifier.weight"
    assert torch.equal(load_file(weights)[key], last(tmp_path / "second")[key])


def test_a_checkpoint_of_another_network_is_refused(data, tmp_path):
    train(config(data), tmp_path / "run")
    told = runs.read_json(tmp_path / "run" / "config.json")
    told["config"]["network"]["name"] = "networks:anonymous"
    told["config"]["zodi"]["similarity"] = "none"
    runs.write_json(tmp_path / "run" / "config.json", told)
    with pytest.raises(InputError, match=r"best.safetensors is a checkpoint of another network"):
        checkpoints.load_run(tmp_path / "run")


def test_a_run_without_a_checkpoint_is_refused(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_in_step(patch, 1)
        train(config(data), tmp_path / "run")
    with pytest.raises(InputError, match=r"no checkpoint .*best.safetensors"):
        checkpoints.load_run(tmp_path / "run")
    with pytest.raises(InputError, match="name a folder that segshift wrote"):
        checkpoints.load_run(tmp_path / "nowhere")


def test_the_baseline_of_iccld_checkpoints_gradients_too():
    network = NetworkConfig(name="iccld", encoder="test_resnet", pretrained=False)
    for switch in (False, True):
        config = TrainConfig(source="x", method="source_only", network=network, gradient_checkpointing=switch)
        assert (
            checkpoints.method_of(config, CITYSCAPES).segmenter.network.encoder.model.grad_checkpointing
            == switch
        )


def test_a_checkpoint_that_cannot_be_read_is_wrong_input_and_newer_ones_of_another_process_stay(
    data, tmp_path
):
    run = train(config(data, steps=2), tmp_path / "run")
    method = checkpoints.load_run(run)[0]
    checkpoints.save(run, 6, method, {})
    checkpoints.save(run, 4, method, {})
    assert checkpoints.last_step(run) == 6 and not list(run.glob("checkpoints/00000002.*"))
    (run / "checkpoints/00000006.state").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read .*00000006\.state"):
        checkpoints.load(run, 6, method)


@pytest.mark.parametrize("similarity", ["cosine", "byol"])
def test_modules_that_share_tensors_are_saved_continued_and_read(data, tmp_path, monkeypatch, similarity):
    network = NetworkConfig(name="networks:tied", pretrained=False)
    settings = config(data, network=network, zodi=ZoDiConfig(similarity=similarity))
    train(settings, tmp_path / "whole")
    after = ZoDi.after_step

    def stop(self, step):
        after(self, step)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ZoDi, "after_step", stop)
        train(settings, tmp_path / "stopped")
    train(settings, tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped")
    for best in ("checkpoints/best.safetensors", "checkpoints/00000006.safetensors"):
        assert (tmp_path / "whole" / best).read_bytes() == (tmp_path / "stopped" / best).read_bytes()
    tensors, method = last(tmp_path / "whole"), checkpoints.load_run(tmp_path / "whole", "last")[0]
    one, other = (f"segmenter.network.{name}.weight" for name in ("classifier", "again"))
    network = method.segmenter.network
    assert torch.equal(tensors[one], tensors[other]) and network.same is network.encoder
    assert network.again.weight is network.classifier.weight
    assert all(torch.equal(value, tensors[key]) for key, value in method.state_dict().items())


def test_a_partly_frozen_network_trains_the_rest(data, tmp_path):
    network = NetworkConfig(name="networks:partly_frozen", pretrained=False)
    for optimizer in ("sgd", "adamw"):
        settings = config(data, network=network, optimizer=optimizer)
        one, three = (
            last(train(replace(settings, steps=steps), tmp_path / f"{optimizer}{steps}")) for steps in (1, 3)
        )
        frozen, free = (f"segmenter.network.{name}.weight" for name in ("encoder.0", "classifier"))
        assert torch.equal(one[frozen], three[frozen]) and not torch.equal(one[free], three[free])


def test_only_the_runs_own_numbered_files_are_checkpoints_and_deleted(data, tmp_path):
    run = train(config(data, steps=2), tmp_path / "run")
    foreign = (
        "00000009 (copy).state",
        "00000009.state.bak",
        "x.state",
        "99.state",
        "000000009.state",
        "1.pth",
        "00000001.pth",
        "00000001 (copy).safetensors",
        ".tmp-notes.txt",
    )
    for name in foreign:
        (run / "checkpoints" / name).write_bytes(b"mine")
    (run / "checkpoints" / "00000008.state").mkdir()
    assert checkpoints.last_step(run) == 2
    checkpoints.save(run, 4, checkpoints.load_run(run)[0], {})
    assert checkpoints.last_step(run) == 4
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {*foreign, "00000008.state", "best.safetensors", "00000004.safetensors", "00000004.state"}


@pytest.mark.parametrize("kind", ["numbered", "cut", "other"])
def test_another_file_in_the_place_of_the_best_checkpoint_is_named(data, tmp_path, kind):
    run = train(config(data, steps=2), tmp_path / "run")
    best = run / "checkpoints" / "best.safetensors"
    content = (run / "checkpoints" / "00000002.safetensors").read_bytes()
    if kind == "other":
        save_file(last(run), best, {"segshift": '{"step": "two"}'})
    else:
        best.write_bytes(content if kind == "numbered" else content[:100])
    what = r"is not as segshift wrote it \(step: " if kind == "other" else "does not say the step"
    with pytest.raises(InputError, match=rf"best.safetensors {what}") as caught:
        checkpoints.best_record(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "state",
    ["cut", [1], {"best": {}}, {"optimizers": None}, {"optimizers": {"segmenter": {}}}, {"optimizers": {}}],
)
def test_a_state_of_another_kind_is_named(data, tmp_path, state):
    settings = config(data)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_in_step(patch, 3)
        train(settings, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "00000002.state"
    content = torch.load(path, weights_only=True)
    if state == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif isinstance(state, list) or "best" in state:
        torch.save(state, path)
    else:
        torch.save(content | state, path)
    with pytest.raises(InputError, match=r"00000002\.state") as caught:
        train(settings, tmp_path / "run")
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)


def test_weights_of_a_run_that_are_not_finite_are_refused(data, tmp_path):
    run = train(config(data, steps=2), tmp_path / "run")
    tensors = last(run)
    tensors["segmenter.network.classifier.bias"][0] = float("nan")
    save_file(tensors, run / "checkpoints" / "best.safetensors", {"segshift": '{"step": 2, "score": null}'})
    with pytest.raises(InputError, match=r"classifier.bias' in .*best.safetensors is not finite"):
        checkpoints.load_run(run)
