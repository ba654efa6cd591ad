import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from safetensors.torch import load_file

from segshift import batches, checkpoints, frames, loop, runs
from segshift.config import NetworkConfig, TrainConfig
from segshift.methods import Method
from segshift.methods.zodi_adaptation import ZoDi
from segshift.runs import InputError
from segshift.stages.train import train

IDS = tuple(f"aachen_{i:06d}_000019" for i in range(5))


@pytest.fixture
def data(tmp_path):
    """A day tree (train and val) and two transferred trees of it."""
    trees.cityscapes(tmp_path / "day", IDS)
    trees.cityscapes(tmp_path / "day", ("ulm_000000_000019",), split="val")
    for name in ("night", "fog"):
        trees.cityscapes(tmp_path / name, IDS)
        trees.cityscapes(tmp_path / name, ("ulm_000000_000019",), split="val")
        (tmp_path / name / "manifest.jsonl").touch()
    return tmp_path


def config(data: Path, **changes) -> TrainConfig:
    plain = TrainConfig(
        source=f"cityscapes:{data}/day:train",
        transferred=(f"cityscapes:{data}/night:train", f"cityscapes:{data}/fog:train"),
        validation=f"cityscapes:{data}/day:val",
        network=NetworkConfig(name="networks:two_convs", pretrained=False),
        size=(32, 64),
        crop=(16, 32),
        batch_size=4,
        steps=6,
        lr=0.1,
        checkpoint_every=2,
        validate_every=3,
        workers=0,
        device="cpu",
    )
    return replace(plain, **changes)


def dropping(**changes):
    return {"network": NetworkConfig(name="networks:dropping", pretrained=False), **changes}


def last(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints._weights(run, checkpoints.last_step(run)))


def same(a: Path, b: Path) -> bool:
    one, two = last(a), last(b)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def logged(run: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in runs.read_lines(run / "metrics.jsonl")]


def stop_in_step(monkeypatch, step: int) -> None:
    """As Ctrl-C there."""
    whole = Method.after_step

    def after_step(self, done):
        if done == step:
            raise KeyboardInterrupt
        whole(self, done)

    monkeypatch.setattr(ZoDi, "after_step", after_step)


def start(settings: Path, out: Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """The training in a process of its own, on one thread."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; from segshift import runs; from segshift.config import TrainConfig\n"
        "from segshift.stages.train import train\n"
        "train(runs.read_config(Path(sys.argv[1]), TrainConfig), Path(sys.argv[2]))\n"
    )
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(checkpoints.__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, "-c", code, settings, out],
        env=os.environ | {"PYTHONPATH": here} | (environment or {}),
        stdout=subprocess.DEVNULL,
    )


# --- resume ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, dropping(), dropping(optimizer="adamw", warmup=3, accumulate=2, precision="bf16")])
def test_a_run_stopped_anywhere_and_continued_is_bitwise_the_uninterrupted_one(data, tmp_path, monkeypatch, changes):
    settings = config(data, **changes)
    train(settings, tmp_path / "whole")
    for step in (1, 3, 4):  # before the first checkpoint, between two, right after one
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_in_step(patch, step)
            train(settings, tmp_path / "stopped")
    train(settings, tmp_path / "stopped")
    assert same(tmp_path / "whole", tmp_path / "stopped")
    assert logged(tmp_path / "whole") == logged(tmp_path / "stopped")
    best = "checkpoints/best.safetensors"
    assert (tmp_path / "whole" / best).read_bytes() == (tmp_path / "stopped" / best).read_bytes()


def test_byol_continues_with_its_target(data, tmp_path, monkeypatch):
    settings = config(data, similarity="byol")
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
    settings = config(data, **dropping(steps=2000, checkpoint_every=20, validate_every=50))
    (tmp_path / "settings.json").write_text(json.dumps({"config": runs.to_plain(settings)}))
    process = start(tmp_path / "settings.json", tmp_path / "killed")
    deadline = time.monotonic() + 240
    while checkpoints.last_step(tmp_path / "killed") < 60 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = checkpoints.last_step(tmp_path / "killed")
    assert 60 <= reached < 2000

    # The rest of 2000 steps would be long: the same states up to a common step are the same run.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_in_step(patch, reached + 20)
            train(settings, tmp_path / "killed")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_in_step(patch, reached + 20)
            train(settings, tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert same(tmp_path / "killed", tmp_path / "whole")
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


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
    with pytest.raises(InputError, match=r"another configuration \(lr 0.1 there, 0.2 asked for\)"):
        train(config(data, lr=0.2), tmp_path / "run")
    assert torch.equal(weights["segmenter.network.classifier.weight"], last(tmp_path / "run")["segmenter.network.classifier.weight"])


# --- samples --------------------------------------------------------------------------------------------------


def test_workers_change_nothing(data, tmp_path):
    train(config(data, jitter=(0.5, 0.5, 0.5, 0.3)), tmp_path / "none")
    train(config(data, jitter=(0.5, 0.5, 0.5, 0.3), workers=2), tmp_path / "two")
    assert same(tmp_path / "none", tmp_path / "two")


def test_micro_batches_and_processes_share_the_samples_of_a_step():
    whole = list(batches.Schedule(3, 5, 8, 1, 0, 1))
    assert whole == [list(range(24, 32)), list(range(32, 40))]
    parts = [list(batches.Schedule(3, 5, 8, 2, process, 2)) for process in (0, 1)]
    assert sorted(k for part in parts[0][:2] + parts[1][:2] for k in part) == whole[0]


def samples(data, **changes):
    source = frames.load(f"cityscapes:{data}/day:train")
    made = [frames.load(f"cityscapes:{data}/{name}:train") for name in ("night", "fog")]
    pictures = batches.Pictures((32, 64), source.space, changes.get("kept", range(19)), keep=True)
    return batches.Samples(batches.pair_up(source, made), pictures, crop=(32, 64), jitter=(0, 0, 0, 0), seed=0)


def test_every_frame_comes_once_an_epoch_in_another_order(data):
    drawn = samples(data)
    first, second = ([drawn.frame(k).id for k in range(e * 5, e * 5 + 5)] for e in (0, 1))
    assert sorted(first) == sorted(second) == sorted(IDS) and first != second


def test_pairs_go_by_id_and_every_transferred_domain_is_drawn(data):
    for path in (data / "fog").rglob("*_leftImg8bit.png"):
        trees.save(path, 255 - trees.picture(path.name.removesuffix("_leftImg8bit.png")))
    drawn, domains = samples(data), set()
    for k in range(40):
        sample, picture = drawn[k], torch.from_numpy(trees.picture(drawn.frame(k).id)).permute(2, 0, 1)
        source, transferred = ((sample[name] * 255).round() for name in ("source", "transferred"))
        flip = torch.equal(source, picture.flip(-1).float())
        picture = (picture.flip(-1) if flip else picture).float()
        assert torch.equal(source, picture)
        domains.add("night" if torch.equal(transferred, picture) else "fog")
        assert domains <= {"night"} or torch.equal(transferred, picture) or torch.equal(transferred, 255 - picture)
        label = torch.from_numpy(trees.train_ids(drawn.frame(k).id))
        assert torch.equal(sample["label"], label.flip(-1) if flip else label)
    assert domains == {"night", "fog"}


def test_labels_outside_the_class_set_become_void(data):
    label = samples(data, kept=[0, 3])[0]["label"]
    assert set(label.unique().tolist()) == {0, 3, 255}


def test_a_class_set_is_trained_scored_and_predicted(data, tmp_path):
    train(config(data, classes=16), tmp_path / "run")
    method, _, space = checkpoints.load_run(tmp_path / "run")
    with torch.no_grad():
        logits = method.predict(torch.rand(1, 3, 32, 64))
    assert logits.shape[1] == space.classes == 19
    assert torch.isinf(logits[:, [9, 14, 16]]).all() and torch.isfinite(logits[:, [0, 3, 18]]).all()
    validation = next(line for line in logged(tmp_path / "run") if "validation" in line)
    assert len(validation["validation"]["source"]["iou"]) == 16


# --- the loop -------------------------------------------------------------------------------------------------


def test_accumulation_gives_the_gradient_of_the_whole_batch(data, tmp_path):
    network = NetworkConfig(name="networks:without_norm", pretrained=False)
    for path in data.rglob("*labelIds.png"):  # no void: micro-batches weigh the same
        trees.save(path, np.full((32, 64), 7, np.uint8))
    train(config(data, network=network, steps=1), tmp_path / "whole")
    train(config(data, network=network, steps=1, accumulate=2), tmp_path / "parts")
    one, two = last(tmp_path / "whole"), last(tmp_path / "parts")
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-6, rtol=1e-5)


def test_learning_rate_warms_up_and_falls_by_the_step():
    rates = [loop.learning_rate(step, 10, 4, 0.9) for step in range(10)]
    assert rates[:2] == pytest.approx([0.2, 0.4 * 0.9**0.9])
    assert rates[5:] == pytest.approx([(1 - step / 10) ** 0.9 for step in range(5, 10)])
    assert loop.learning_rate(0, 10, 0, 0.9) == 1


def test_two_players_train_in_turn_and_a_teacher_follows():
    """What an adversarial method with a teacher asks of the loop."""
    from accelerate import Accelerator

    order = []

    class Adversarial(Method):
        def __init__(self):
            super().__init__()
            self.student, self.judge = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
            self.teacher = torch.nn.Linear(1, 1)

        @property
        def networks(self):
            return {"student": self.student, "judge": self.judge}

        def losses(self, player, batch, step):
            order.append((step, player))
            verdict = self.judge(self.student(batch["x"])).mean()
            return {"fool": -0.1 * verdict} if player == "student" else {"catch": verdict.square()}

        def after_step(self, step):
            order.append((step, "teacher"))
            self.teacher.load_state_dict(self.student.state_dict())

    torch.manual_seed(0)
    method, lines = Adversarial(), []
    expected, x = {key: value.clone() for key, value in method.state_dict().items()}, torch.ones(4, 1)
    accelerator = Accelerator(cpu=True)
    optimizers = {name: torch.optim.SGD(network.parameters(), 1.0) for name, network in method.networks.items()}
    for optimizer in optimizers.values():
        optimizer.param_groups[0]["initial_lr"] = 1.0
    loop.fit(
        method, optimizers, iter([{"x": x}] * 2), accelerator, start=0, steps=2, accumulate=1, seed=0,
        factor=lambda step: 0.5 if step == 0 else 0.0, frames_of=lambda step: [], done=lambda step, line: lines.append(line),
    )  # fmt: skip
    assert order == [(s, name) for s in (0, 1) for name in ("student", "judge", "teacher")]
    student = expected["student.weight"] + 0.5 * 0.1 * expected["judge.weight"]
    bias = expected["student.bias"] + 0.5 * 0.1 * expected["judge.weight"][0]
    verdict = expected["judge.weight"] * (student + bias) + expected["judge.bias"]
    torch.testing.assert_close(method.student.weight.data, student)
    torch.testing.assert_close(method.judge.bias.data, expected["judge.bias"] - 0.5 * 2 * verdict[0])  # its own loss alone
    torch.testing.assert_close(method.teacher.weight.data, student)
    assert lines[0].keys() == {"step", "lr", "student/fool", "judge/catch", "seconds"} and lines[0]["lr"] == 0.5


def test_two_processes_share_a_batch_and_keep_one_network(data, tmp_path):
    network = NetworkConfig(name="networks:without_norm", pretrained=False)
    for path in data.rglob("*labelIds.png"):
        trees.save(path, np.full((32, 64), 7, np.uint8))
    settings = config(data, network=network, steps=3)
    (tmp_path / "settings.json").write_text(json.dumps({"config": runs.to_plain(settings)}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}  # as torchrun tells its processes
    processes = [
        start(tmp_path / "settings.json", tmp_path / "two", told | {"RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    train(settings, tmp_path / "one")
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-4)
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys() and a.get("source", 0) == pytest.approx(b.get("source", 0), abs=1e-4)


# --- selection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "field"),
    [("source", "source"), ("transferred", "transferred/night"), ("oracle", "oracle")],
)
def test_the_best_checkpoint_is_chosen_by_the_set_it_is_named_after(data, tmp_path, select, field):
    settings = config(
        data,
        select=select,
        transferred_validation=(f"cityscapes:{data}/night:val",),
        oracle_validation=f"cityscapes:{data}/fog:val" if select == "oracle" else None,
        validate_every=1,
    )
    train(settings, tmp_path / "run")
    judged = [line for line in logged(tmp_path / "run") if "validation" in line]
    assert len(judged) == 6 and ("oracle" in judged[0]["validation"]) == (select == "oracle")
    scores = [line["validation"][field]["miou"] for line in judged]
    assert [line["score"] for line in judged] == scores
    record = checkpoints.best_record(tmp_path / "run")
    assert record == {"step": 1 + int(np.argmax(scores)), "score": max(scores)}


def test_the_last_checkpoint_needs_no_validation(data, tmp_path):
    train(config(data, validation=None, select="last"), tmp_path / "run")
    assert checkpoints.best_record(tmp_path / "run") == {"step": 6, "score": None}
    best, newest = (checkpoints.load_run(tmp_path / "run", which)[0].state_dict() for which in ("best", "last"))
    assert all(torch.equal(best[key], newest[key]) for key in best)


# --- what a run is good for -----------------------------------------------------------------------------------


def test_a_run_folder_alone_gives_the_trained_network_back(data, tmp_path, monkeypatch):
    train(config(data, similarity="simsiam"), tmp_path / "run")
    for tree in ("day", "night", "fog"):
        (data / tree).rename(data / f"gone_{tree}")
    method, settings, space = checkpoints.load_run(tmp_path / "run", "last")
    assert not method.training and settings.similarity == "simsiam" and space == frames.load(f"cityscapes:{data}/gone_day").space
    assert all(torch.equal(value, last(tmp_path / "run")[key]) for key, value in method.state_dict().items())
    environment = runs.read_json(tmp_path / "run" / "environment.json")
    assert environment["torch"] == torch.__version__.split("+")[0]


def test_source_only_trains_and_learns(data, tmp_path):
    for path in data.rglob("*labelIds.png"):
        trees.save(path, np.full((32, 64), 7, np.uint8))
    settings = config(data, method="source_only", transferred=(), jitter=(0, 0, 0, 0), steps=20, select="last")
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


# --- wrong input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transferred": ()}, "method zodi needs transferred images"),
        ({"method": "source_only"}, "source_only takes no transferred images"),
        ({"validation": None}, "select = source needs a validation set and `validation` is empty"),
        ({"select": "transferred"}, "`transferred_validation` is empty"),
        ({"select": "oracle"}, "`oracle_validation` is empty"),
        ({"oracle_validation": "acdc:/x:night/val"}, "oracle_validation acdc:/x:night/val is for select = oracle alone"),
        ({"crop": (64, 64)}, r"crop \(64, 64\) is larger than size \(32, 64\)"),
        ({"accumulate": 3}, "batch_size 4 cannot be divided into 3 micro-batches"),
        ({"steps": 0}, "steps is 0"),
        ({"jitter": (0.5, 0.5, 0.5, 0.6)}, "of hue 0.5 at most"),
        ({"precision": "fp16"}, "precision fp16 needs a GPU"),
        ({"network": NetworkConfig(name="networks:one_class_too_many")}, "one channel for each of the 19 classes"),
        ({"similarity": "simsiam", "batch_size": 1}, "a micro-batch of one image"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(data, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        train(config(data, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device cuda is asked for and torch finds none"):
        train(config(data, device="cuda"), tmp_path / "run")


def test_a_transferred_set_that_does_not_match_is_refused(data, tmp_path):
    next((data / "night").rglob("*_leftImg8bit.png")).unlink()
    with pytest.raises(InputError, match=r"has 5 frames and .*night:train 4"):
        train(config(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_label_of_another_size_is_refused_but_for_a_transferred_tree(data, tmp_path):
    for tree in ("night", "day"):
        path = next((data / tree / "gtFine" / "train").rglob("*.png"))
        trees.save(path, np.full((64, 128), 7, np.uint8))
        if tree == "night":
            train(config(data, steps=1), tmp_path / "fine")
    with pytest.raises(InputError, match=r"not the same size .*day"):
        train(config(data), tmp_path / "run")


def test_validation_with_other_classes_is_refused(data, tmp_path):
    (data / "mine").mkdir()
    trees.save(data / "mine" / "images" / "a.png", trees.picture("a"))
    trees.save(data / "mine" / "labels" / "a.png", np.zeros((32, 64), np.uint8))
    (data / "mine" / "dataset.yaml").write_text("images: images/*.png\nlabels: labels/*.png\nclasses: [sky, road]\n")
    with pytest.raises(InputError, match="expected the same"):
        train(config(data, validation=f"folder:{data}/mine"), tmp_path / "run")
    with pytest.raises(InputError, match="expected Cityscapes' 19 for classes = 16"):
        source = f"folder:{data}/mine"
        train(config(data, source=source, validation=None, select="last", method="source_only", transferred=(), classes=16), tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_stops_the_run_with_its_path(data, tmp_path, workers):
    path = next((data / "night" / "leftImg8bit" / "train").rglob("*.png"))
    path.write_bytes(path.read_bytes()[:1500])
    settings = config(data, transferred=(f"cityscapes:{data}/night:train",), workers=workers, checkpoint_every=1, steps=9)
    with pytest.raises(InputError, match=str(path)) as caught:
        train(settings, tmp_path / "run")
    assert "Traceback" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_with_step_term_and_frames(data, tmp_path, monkeypatch):
    losses = ZoDi.losses

    def explode(self, player, batch, step):
        terms = losses(self, player, batch, step)
        return terms | {"similarity": terms["similarity"] / (0.0 if step == 3 else 1.0)}

    monkeypatch.setattr(ZoDi, "losses", explode)
    with pytest.raises(InputError, match=r"loss 'similarity' is -inf in step 4 \(frames aachen_.*, aachen_.*\)"):
        train(config(data), tmp_path / "run")
    assert checkpoints.last_step(tmp_path / "run") == 2
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3, 3]


def test_a_checkpoint_of_another_network_is_refused(data, tmp_path):
    train(config(data), tmp_path / "run")
    told = runs.read_json(tmp_path / "run" / "config.json")
    told["config"]["network"]["name"] = "networks:anonymous"
    told["config"]["similarity"] = "none"
    runs.write_json(tmp_path / "run" / "config.json", told)
    with pytest.raises(InputError, match=r"best.safetensors is a checkpoint of another network"):
        checkpoints.load_run(tmp_path / "run")


def test_a_run_without_a_checkpoint_is_refused(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_in_step(patch, 1)
        train(config(data), tmp_path / "run")
    with pytest.raises(InputError, match=r"no checkpoint .*best.safetensors"):
        checkpoints.load_run(tmp_path / "run")
    with pytest.raises(InputError, match="expected a folder that segshift wrote"):
        checkpoints.load_run(tmp_path / "nowhere")


def test_an_unwritable_output_is_refused(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"cannot write {tmp_path / 'file'}"):
        train(config(data), tmp_path / "file" / "run")
