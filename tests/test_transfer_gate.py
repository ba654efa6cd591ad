# ruff: noqa: F811 (fixtures are imported by name)
"""Image transfer with a gate: redraws, what is recorded, dropped frames and ignored regions, continuing, bad
input.

The reference network is replaced where a test needs verdicts of both kinds: every label is road over car, and
the network sees the car again in one picture of three, by a pixel that comes from the signs of the noise.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import noise
import numpy as np
import pytest
import torch
import trees
from PIL import Image
from transferring import (  # noqa: F401
    SIZE,
    grey_levels_apart,
    load_once,
    manifest,
    model,
    pictures,
    prior,
)

from segshift import __main__ as command_line
from segshift import outputs, runs
from segshift.config import (
    DiffusionConfig,
    GateConfig,
    NetworkConfig,
    TrainConfig,
    TransferConfig,
    ZoDiConfig,
)
from segshift.data import frames
from segshift.data import samples as batches
from segshift.data.labels import CITYSCAPES, LabelSpace
from segshift.engine import gate, making, measuring
from segshift.engine.worker import Worker
from segshift.methods.zodi import transfer as zodi
from segshift.runs import InputError
from segshift.stages import transfer as stage
from segshift.stages.train import train
from segshift.training import checkpoints

IDS = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313")
LABEL = np.zeros(SIZE, np.uint8)
LABEL[32:], LABEL[60:] = 13, 255


def reference(run: Path, source: str, space: LabelSpace = CITYSCAPES, **changes) -> Path:
    """A run of `segshift train` that has just begun."""
    network = NetworkConfig(name="networks:two_convs", pretrained=False)
    told = TrainConfig(
        **{"source": source, "method": "source_only", "network": network, "size": (32, 32), **changes}
    )
    outputs.begin(run, "train", told)
    checkpoints.describe(run, space, torch.device("cpu"))
    method = checkpoints.method_of(told, space)
    method.segmenter.network.classifier.bias.data[0] = 100.0  # sees the first class everywhere
    checkpoints.save_best(run, 0, method, None)
    return run


@pytest.fixture(scope="module")
def told(tmp_path_factory, prior) -> TransferConfig:
    root = tmp_path_factory.mktemp("gated")
    data = f"cityscapes:{trees.cityscapes(root / 'plain', IDS, SIZE)}:train"
    for path in (root / "plain").glob("gtFine/*/*/*.png"):
        trees.save(path, CITYSCAPES.to_file(LABEL))
    judge = GateConfig(str(reference(root / "run", data)), fraction=0.8, tries=3)
    where = DiffusionConfig(model=str(prior), device="cpu")
    return TransferConfig(source=data, batch_size=2, steps=3, diffusion=where, gate=judge)


@pytest.fixture
def gated(told, monkeypatch) -> TransferConfig:
    """Three frames of road over car, in two batches, and a reference network with random weights; to be left
    as they are."""
    load_once(monkeypatch)
    return told


@pytest.fixture
def strict(monkeypatch):
    be_strict(monkeypatch)


@pytest.fixture(scope="module")
def whole(told, tmp_path_factory) -> Path:
    """What one process writes under `strict`; to be left as it is."""
    with pytest.MonkeyPatch.context() as patch:
        load_once(patch)
        be_strict(patch)
        return stage.transfer(told, tmp_path_factory.mktemp("strict") / "whole")


@pytest.fixture(scope="module")
def once(told, tmp_path_factory) -> Path:
    """The same with one try."""
    with pytest.MonkeyPatch.context() as patch:
        load_once(patch)
        be_strict(patch)
        alone = replace(told, gate=replace(told.gate, tries=1))
        return stage.transfer(alone, tmp_path_factory.mktemp("strict") / "once")


def be_strict(monkeypatch) -> None:
    """A network that sees the car in a third of the transferred pictures, and is expected to see it in all;
    on sources it is always right."""
    known: set[bytes] = set()
    look, transfer = gate.Gate.look, zodi.transfer

    def stamped(*arguments):
        made, signs = transfer(*arguments).clone(), arguments[-1](0) > 0
        made[:, :, 0, 0] = torch.tensor([[crc32(np.packbits(row.numpy()).tobytes()) % 256] for row in signs])
        return made

    def seen(self, image, label):
        known.add(image.tobytes())
        return look(self, image, label)

    def predict(self, picture, shape):
        right = picture.tobytes() in known or picture[0, 0, 0] % 3 == 0
        return LABEL if right else np.where(LABEL == 13, np.uint8(0), LABEL)

    monkeypatch.setattr(zodi, "transfer", stamped)
    monkeypatch.setattr(gate.Gate, "look", seen)
    monkeypatch.setattr(gate.Gate, "predict", predict)
    monkeypatch.setattr(Worker, "reconstruct", lambda self, image: image)
    monkeypatch.setattr(gate, "kept_agreement", lambda source, drawn: np.ones(source.shape[1]))


def test_a_real_reference_network_measures_judges_and_is_recorded(gated, tmp_path):
    out = stage.transfer(gated, tmp_path / "out")
    told = runs.read_json(out / "gate.json")
    assert (
        told["frames"] == 3
        and set(told["thresholds"]) == {"frame", "region"}
        and told["weights"]["reference"]
    )
    for line in manifest(out):
        assert line["gate"]["tries"] in (1, 2, 3) and line["gate"]["threshold"] == told["thresholds"]["frame"]
        assert line["gate"]["agreement"] == {"road": [1, 1], "car": [0, 0]} and np.isfinite(
            line["gate"]["movement"]
        )
        assert len(line["gate"]["draws"]) == line["gate"]["tries"] and line["gate"]["draws"][0]["seed"] == 42
    assert len({line["gate"]["movement"] for line in manifest(out)}) == 3
    # it sees road in every picture, and a car in none
    kept = told["kept_agreement"]["night"]
    assert (
        kept.pop("road") == 1 and kept.pop("car") == 0 and set(kept.values()) == {1}
    )  # no frame shows any other


def test_what_a_domain_leaves_is_measured_on_first_draws_of_some_frames(gated, strict, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(
        gate, "kept_agreement", lambda source, drawn: compared.append((source, drawn)) or np.full(19, 0.4)
    )
    out = stage.transfer(gated, tmp_path / "out")
    ((source, drawn),) = compared
    assert (
        source.shape == drawn.shape == (3, 19)
        and (source[:, [0, 13]] == 1).all()
        and (drawn[:, 0] == 1).all()
    )
    told = {line["id"]: line["gate"] for line in manifest(out)}
    once = [float(line["tries"] == 1) for line in told.values()]  # by the class alone: 1 / 1.4 is below 0.8
    assert sorted(drawn[:, 13]) == sorted(once) and 0 < sum(once) < 3  # the pilot's draws are the run's first
    assert all(
        line["regions"] == {"judged": 0, "failed": 0, "lowest": 1.0, "threshold": 0.8}
        for line in told.values()
    )
    monkeypatch.setattr(gate, "PILOT", 1)
    stage.transfer(gated, tmp_path / "one")
    assert compared[1][0].shape == (1, 19)


def test_failures_are_drawn_again_by_a_seed_of_their_own_and_recorded(gated, strict, whole, model):
    out, lines = whole, manifest(whole)
    assert runs.read_json(out / "gate.json")["thresholds"] == {"frame": 0.8, "region": 0.8}
    assert any(line["gate"]["tries"] > 1 for line in lines) and any(line["seed"] != 42 for line in lines)
    data = frames.load(gated.source)
    for line, frame in zip(lines, sorted(data.frames, key=lambda f: f.id), strict=True):
        tries = [i for i in range(3) if line["seed"] == gate.redraw_seed(42, frame.id, i)]
        assert tries and line["strength"] == pytest.approx(0.9 * 0.9 ** tries[0])
        told = line["gate"]
        assert told["passed"] == (told["score"] == 1.0) and told["tries"] == (
            tries[0] + 1 if told["passed"] else 3
        )
        assert [draw["seed"] for draw in told["draws"]] == [
            gate.redraw_seed(42, frame.id, i) for i in range(told["tries"])
        ]
        assert [draw["passed"] for draw in told["draws"]] == [False] * (told["tries"] - 1) + [told["passed"]]
        plain = replace(gated, gate=None, seed=line["seed"], strength=line["strength"])
        image, label = frames.read_image(frame.image), frames.read_label(frame, CITYSCAPES)
        (again,) = stage.transfer_images(plain, [image], [label], ids=[frame.id], model=model)["night"]
        assert grey_levels_apart(again, frames.read_image(frames.place(data, frame, out / "night"))) <= 1


def test_ignored_regions_are_void_in_a_label_of_their_own(gated, once):
    data = frames.load(f"cityscapes:{once}/night:train")
    decisions = {line["id"]: line["gate"]["decision"] for line in manifest(once)}
    assert "ignored" in decisions.values()
    for frame in data.frames:
        label, ignored = frames.read_label(frame, CITYSCAPES), decisions[frame.id] == "ignored"
        assert frame.label.is_symlink() != ignored
        assert np.array_equal(label, np.where(LABEL == 13, 255, LABEL) if ignored else LABEL)
    original = frames.load(gated.source).frames[0]
    assert np.array_equal(
        frames.read_label(original, CITYSCAPES), LABEL
    )  # nothing was written through a link


def test_dropped_frames_are_left_out_and_recorded_and_stay_so(gated, strict, tmp_path, monkeypatch):
    config = replace(gated, gate=replace(gated.gate, tries=1, on_failure="drop"))
    out = stage.transfer(config, tmp_path / "out")
    gone = {line["id"] for line in manifest(out) if line["gate"]["decision"] == "dropped"}
    made = frames.load(f"cityscapes:{out}/night:train")
    assert 0 < len(gone) < 3 and gone == frames.dropped(out / "night") and not runs.failures(out)
    assert {frame.id for frame in made.frames} == set(IDS) - gone
    assert {frame.id for frame, _ in frames.pair(frames.load(config.source), made)} == set(IDS) - gone
    before = pictures(out)
    monkeypatch.setattr(making, "Worker", None)  # nothing is left to do
    assert pictures(stage.transfer(config, out)) == before


def test_a_killed_or_sharded_gated_run_ends_with_the_same_bytes(gated, strict, whole, tmp_path, monkeypatch):
    write, written = making._write, []

    def killed(*arguments):
        if written:
            raise KeyboardInterrupt
        written.append(arguments)
        return write(*arguments)

    monkeypatch.setattr(making, "_write", killed)
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        stage.transfer(gated, out)
    assert len(pictures(out)) < len(pictures(whole))
    monkeypatch.setattr(making, "_write", write)
    monkeypatch.setattr(measuring, "_measure", None)  # the thresholds are kept
    stage.transfer(gated, out)
    monkeypatch.undo()
    assert pictures(out) == pictures(whole) and manifest(out) == manifest(whole)
    first, second = (runs.read_json(run / "gate.json") | {"seconds": 0} for run in (out, whole))
    assert first == second


def test_shards_of_a_gated_run_write_what_one_process_writes(gated, strict, whole, tmp_path):
    for shard in ("1/2", "0/2"):
        stage.transfer(replace(gated, shard=shard), tmp_path / "parts")
    assert pictures(tmp_path / "parts") == pictures(whole) and manifest(tmp_path / "parts") == manifest(whole)


def test_in_reference_mode_every_redraw_has_its_own_stream(gated, strict, tmp_path):
    out = stage.transfer(replace(gated, mode="reference"), tmp_path / "out")
    drawn = [line for line in manifest(out) if line["seed"] != 42]
    assert drawn and len({line["seed"] for line in drawn}) == len(drawn)


def test_training_reads_the_transferred_frames_own_label(gated, once):
    source, made = frames.load(gated.source), frames.load(f"cityscapes:{once}/night:train")
    shown = batches.Pictures(SIZE, CITYSCAPES, range(19), keep=True)
    plain = {"crop": SIZE, "jitter": (0, 0, 0, 0), "seed": 0}
    samples = batches.Samples(batches.pair_up(source, [made]), shown, **plain)
    ignored = {line["id"] for line in manifest(once) if line["gate"]["decision"] == "ignored"}
    for k in range(3):
        sample = samples[k]
        void = (sample["transferred_label"] != sample["label"]).numpy()
        assert np.array_equal(void, (sample["label"] == 13).numpy()) == (samples.frame(k).id in ignored)
        assert sample["label"].shape == SIZE and void.any() == (samples.frame(k).id in ignored)


@pytest.mark.parametrize(
    "layout", ["cityscapes", "acdc", "gta5", "synthia", "folder", "colours", "colours without void"]
)
def test_a_label_is_copied_with_void_in_its_own_format(layout, tmp_path):
    if layout.startswith("colours"):
        void = "ignore: [[9, 9, 9]]\n" if layout == "colours" else ""
        yaml = (
            f'images: "train/images/*.jpg"\nlabels: "train/labels/*.png"\nclasses: {{road: [1, 2, 3], '
            f"car: [4, 5, 6]}}\n{void}"
        )
        root = trees.folder(tmp_path / "data", yaml=yaml)
        for path in root.glob("train/labels/*.png"):
            trees.save(path, np.tile(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), (32, 32, 1)))
        data = frames.load(f"folder:{root}")
    else:
        data = frames.load(f"{layout}:{getattr(trees, layout)(tmp_path / 'data')}")
    frame, copy = data.frames[0], tmp_path / "copy.png"
    label = frames.read_label(frame, data.space)
    void = np.zeros(label.shape, bool)
    void[:16, 8:24] = True
    frames.write_void(frame, data.space, void, copy)
    again = replace(frame, label=copy)
    assert np.array_equal(frames.read_label(again, data.space), np.where(void, 255, label))
    assert np.array_equal(
        frames.read_ids(again, data.space)[~void], frames.read_ids(frame, data.space)[~void]
    )
    with Image.open(frame.label) as before, Image.open(copy) as after:
        assert after.mode == ("L" if layout == "colours without void" else before.mode)
        assert after.getpalette() == before.getpalette()


# ---------------------------------------------------------------------------------------------- bad input


def test_without_labels_there_is_nothing_to_judge(gated, tmp_path):
    root = trees.cityscapes(tmp_path / "bare", IDS, SIZE, split="test", labelled=False)
    with pytest.raises(InputError, match=r"no frame of .* has a label"):
        stage.transfer(replace(gated, source=f"cityscapes:{root}:test", control=False), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tries": 9, "strength_factor": 0.5},
            "of draw 9 of 'night', walks none of 3 steps: give fewer --gate.tries",
        ),
        ({"reference": "nowhere"}, "no file .*nowhere/config.json"),
    ],
    ids=str,
)
def test_settings_out_of_range_leave_no_folder(change, message, gated, tmp_path):
    with pytest.raises(InputError, match=message):
        stage.transfer(replace(gated, gate=replace(gated.gate, **change)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_reference_is_a_source_only_run_on_the_same_classes(gated, tmp_path):
    farm = LabelSpace("farm", ("cow", "pig"), ((1, 1, 1), (2, 2, 2)), (0, 1))
    other = reference(tmp_path / "farm", "folder:farm", farm)
    adapted = reference(tmp_path / "adapted", gated.source, method="zodi", zodi=ZoDiConfig(similarity="none"))
    more = reference(tmp_path / "more", gated.source, more_sources=("cityscapes:transferred/night",))
    chosen = reference(tmp_path / "chosen", gated.source, select="oracle", oracle_validation=(gated.source,))
    for run, message in (
        (other, "trained on the 2 classes of 'farm'.* has the 19"),
        (adapted, "by method zodi"),
        (
            more,
            "trained on cityscapes:.*/transferred/night too, and the gate judges by a network of source "
            "data alone",
        ),
        (chosen, "and chosen by --oracle-validation"),
    ):
        with pytest.raises(InputError, match=message):
            stage.transfer(replace(gated, gate=replace(gated.gate, reference=str(run))), tmp_path / "out")
    with pytest.raises(InputError, match="a gate measures a data set before it judges"):
        stage.transfer_images(gated, [trees.picture("a", SIZE)], [LABEL])


def test_thresholds_of_other_weights_are_refused(gated, strict, tmp_path):
    run = Path(shutil.copytree(gated.gate.reference, tmp_path / "run"))
    gated = replace(gated, gate=replace(gated.gate, reference=str(run)))
    out = stage.transfer(gated, tmp_path / "out")
    frames.load(f"cityscapes:{out}/night").frames[0].image.unlink()
    torch.manual_seed(5)
    told = runs.read_config(run / "config.json", TrainConfig)
    checkpoints.save_best(run, 1, checkpoints.method_of(told, CITYSCAPES), None)
    with pytest.raises(InputError, match="measured with other weights"):
        stage.transfer(gated, out)


def test_gate_options_on_the_command_line_need_a_reference(gated, tmp_path, capsys, monkeypatch):
    made = []
    monkeypatch.setattr(stage, "transfer", lambda config, out: (made.append(config.gate), out)[1])
    arguments = ["transfer", str(tmp_path / "out"), "--source", gated.source]
    assert command_line.main(arguments) == 0
    assert command_line.main([*arguments, "--gate.reference", "run", "--gate.tries", "5"]) == 0
    assert made == [None, GateConfig("run", tries=5)]
    assert command_line.main([*arguments, "--gate.tries", "5"]) == 2
    assert "no reference network: add --gate.reference" in capsys.readouterr().err


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> TransferConfig:
    """Frames whose classes have a colour each, and a gate by a network that was trained to tell them."""
    root = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    for i in range(8):
        label = rng.choice([0, 8, 13], (4, 8)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
        name = f"aachen_{i:06d}_000019"
        picture = np.array(CITYSCAPES.colours, np.uint8)[label]
        trees.save(root / f"data/leftImg8bit/train/aachen/{name}_leftImg8bit.png", picture)
        file = root / f"data/gtFine/train/aachen/{name}_gtFine_labelIds.png"
        trees.save(file, CITYSCAPES.to_file(label))
    told = TrainConfig(
        source=f"cityscapes:{root}/data:train",
        method="source_only",
        network=NetworkConfig(name="networks:two_convs", pretrained=False),
        size=(64, 128),
        crop=(64, 64),
        jitter=(0, 0, 0, 0),
        steps=30,
        optimizer="adamw",
        lr=0.02,
        workers=0,
        device="cpu",
        select="last",
    )
    judge = GateConfig(str(train(told, root / "run")), tries=1)
    return TransferConfig(source=told.source, generator="noise:build", gate=judge)


def test_a_generator_of_noise_is_warned_of_by_the_classes_that_it_loses(coloured, tmp_path, caplog):
    out = stage.transfer(coloured, tmp_path / "out")
    told = runs.read_json(out / "gate.json")
    assert all(told["source_agreement"][name] > 0.9 for name in ("road", "vegetation", "car"))
    (warning,) = [line for line in caplog.messages if "the gate does not judge" in line]
    lost = [name for name in ("road", "vegetation", "car") if told["kept_agreement"]["night"][name] < 0.5]
    assert len(lost) > 1 and f"night: the gate does not judge {', '.join(lost)}, of which" in warning
    assert "look at some pictures" in warning


def test_of_a_generator_that_keeps_the_layout_there_is_no_warning(coloured, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(noise, "noise", lambda image, layout, domain, seed: image)
    out = stage.transfer(coloured, tmp_path / "out")
    assert not [line for line in caplog.messages if "the gate" in line]
    assert {line["gate"]["decision"] for line in manifest(out)} == {"kept"}
