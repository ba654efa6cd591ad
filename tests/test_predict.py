"""Prediction: official ids at the label's size, names that the official scripts find, resuming, and wrong
input.
"""

from dataclasses import replace
from pathlib import Path

import cv2
import networks
import numpy as np
import pytest
import small_device
import torch
import trees

from segshift import outputs, runs
from segshift.config import EvaluateConfig, NetworkConfig, PredictConfig, TrainConfig
from segshift.data import frames
from segshift.data.labels import CITYSCAPES, CLASS_SETS
from segshift.runs import InputError
from segshift.scoring import inference, predictions
from segshift.stages.evaluate import evaluate
from segshift.stages.predict import predict
from segshift.training import checkpoints

torch.set_num_threads(1)  # threads only wait for each other on pictures of this size
TWO_CONVS = NetworkConfig(name="networks:two_convs", pretrained=False)


def trained(folder: Path, data: str, **changes) -> Path:
    """A training run of random weights."""
    plain = TrainConfig(
        source=data,
        method="source_only",
        select="last",
        network=TWO_CONVS,
        size=(32, 64),
        crop=(16, 32),
        batch_size=2,
        steps=2,
        lr=0.1,
        workers=0,
        device="cpu",
    )
    config = replace(plain, **changes)
    space = frames.load(data).space
    torch.manual_seed(0)
    outputs.begin(folder, "train", config)
    checkpoints.describe(folder, space, torch.device("cpu"))
    checkpoints.save_best(folder, 2, checkpoints.method_of(config, space), None)
    return folder


@pytest.fixture
def day(tmp_path: Path) -> str:
    return f"cityscapes:{trees.cityscapes(tmp_path / 'day')}:train"


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_a_prediction_is_the_argmax_of_the_resized_logits_in_official_ids(tmp_path: Path, day: str):
    run = trained(tmp_path / "run", day)
    trees.cityscapes(tmp_path / "large", size=(48, 80), split="val")
    config = PredictConfig(str(run), f"cityscapes:{tmp_path}/large:val", device="cpu")
    out = predict(config, tmp_path / "out")
    data = frames.load(config.data)
    method = checkpoints.load_run(run)[0]
    for frame in data.frames:
        image = torch.from_numpy(frames.read_image(frame.image)).permute(2, 0, 1)[None] / 255
        small = torch.nn.functional.interpolate(image, (32, 64), mode="bilinear", antialias=True)
        logits = torch.nn.functional.interpolate(method.predict(small), (48, 80), mode="bilinear")
        ids = cv2.imread(str(frames.place(data, frame, out)), cv2.IMREAD_UNCHANGED)
        assert ids.shape == (48, 80)
        # The stage resizes 8-bit images, so a pixel in a draw may fall to the other side.
        assert (ids == CITYSCAPES.to_file(logits.argmax(1)[0].byte().numpy())).mean() > 0.97
    lines = runs.read_lines(out / "predictions.jsonl")
    assert [line["id"] for line in lines] == [frame.id for frame in data.frames]
    assert all((out / line["file"]).is_file() and 0 < line["confidence"] <= 1 for line in lines)
    evaluate(EvaluateConfig(str(out), config.data), tmp_path / "score")
    result = runs.read_json(tmp_path / "score/metrics.json")
    assert result["protocol"].endswith("; checkpoint: last") and result["model"]["step"] == 2


@pytest.mark.parametrize("changes", [{}, {"window": (16, 16)}, {"uncertainty": True}])
def test_logits_that_are_not_finite_are_wrong_input(tmp_path: Path, day: str, changes):
    run = trained(tmp_path / "run", day, network=NetworkConfig(name="networks:overflowing", pretrained=False))
    with pytest.raises(InputError, match="logits are not finite"):
        predict(PredictConfig(str(run), day, device="cpu", **changes), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))


def test_cityscapesscripts_finds_every_prediction(tmp_path: Path, day: str):
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    out = predict(PredictConfig(str(trained(tmp_path / "run", day)), day, device="cpu"), tmp_path / "out")
    data = frames.load(day)
    official.args.predictionPath, official.args.predictionWalk = str(out), None
    for frame in data.frames:
        assert official.getPrediction(official.args, str(frame.label)) == str(frames.place(data, frame, out))


def test_transferred_frames_are_predicted_at_the_size_of_their_labels(tmp_path: Path, day: str):
    tree = trees.cityscapes(tmp_path / "night", size=(32, 64))
    for image in tree.rglob("*_leftImg8bit.png"):
        trees.save(image, trees.picture("x", (16, 32)))
    trees.mark_transferred(tree, trees.IDS)
    out = predict(
        PredictConfig(str(trained(tmp_path / "run", day)), f"cityscapes:{tree}:train", device="cpu"),
        tmp_path / "out",
    )
    assert {cv2.imread(str(file), -1).shape for file in out.rglob("*.png")} == {(32, 64)}


def test_a_test_split_without_labels_is_predicted_at_the_size_of_its_images(tmp_path: Path, day: str):
    trees.cityscapes(tmp_path / "day", size=(20, 36), split="test", labelled=False)
    run = trained(tmp_path / "run", day)
    out = predict(PredictConfig(str(run), f"cityscapes:{tmp_path}/day:test", device="cpu"), tmp_path / "out")
    assert {cv2.imread(str(file), -1).shape for file in out.rglob("*.png")} == {(20, 36)}


def test_resuming_skips_finished_frames_and_ends_with_the_same_bytes(tmp_path: Path, day: str):
    config = PredictConfig(str(trained(tmp_path / "run", day)), day, batch_size=1, device="cpu")
    out = predict(config, tmp_path / "out")
    whole = bytes_of(out)
    data = frames.load(day)
    first, second, third = (frames.place(data, frame, out) for frame in data.frames)
    kept = first.stat().st_mtime_ns
    second.unlink()  # killed before the second frame was written, in the middle of the third one's line
    log = out / "predictions.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[2][:20])
    predict(config, out)
    assert bytes_of(out) == whole and first.stat().st_mtime_ns == kept
    assert third.stat().st_mtime_ns != kept


def test_out_of_memory_goes_on_in_halves(tmp_path: Path, day: str, monkeypatch):
    config = PredictConfig(str(trained(tmp_path / "run", day)), day, device="cpu", uncertainty=True)
    whole = predict(config, tmp_path / "whole")
    rows: list[int] = []
    monkeypatch.setattr(inference, "_scores", small_device.for_one_image(inference._scores, rows))
    out = predict(config, tmp_path / "out")
    assert rows == [3, 1, 2, 1, 1]
    for path in whole.rglob("*.png"):
        ours, theirs = (
            cv2.imread(str(root / path.relative_to(whole)), -1).astype(int) for root in (out, whole)
        )
        assert abs(ours - theirs).max() <= ("uncertainty" in str(path))  # of 65535
    monkeypatch.setattr(inference, "_scores", small_device.for_none)
    with pytest.raises(InputError, match=r"too little memory for one image of \(32, 64\): give a --window"):
        predict(config, tmp_path / "none")
    with pytest.raises(InputError, match="--batch-size is 0: expected 1 or more"):
        predict(replace(config, batch_size=0), tmp_path / "none")


def test_one_image_without_memory_is_listed_and_the_others_are_predicted(
    tmp_path: Path, day: str, monkeypatch
):
    config = PredictConfig(str(trained(tmp_path / "run", day)), day, batch_size=1, device="cpu")
    whole = predict(config, tmp_path / "whole")
    limited, _ = small_device.for_all_but_one(inference.infer, 2)
    monkeypatch.setattr(inference, "infer", limited)
    out = predict(config, tmp_path / "out")
    [failed] = runs.failures(out)
    assert failed["id"] == frames.load(day).frames[1].id
    assert "too little memory for one image of (32, 64): give a --window" in failed["error"]
    predict(config, out)
    assert bytes_of(out) == bytes_of(whole)


def test_a_full_disk_is_one_sentence_and_the_next_start_goes_on(tmp_path: Path, day: str, monkeypatch):
    config = PredictConfig(str(trained(tmp_path / "run", day)), day, batch_size=1, device="cpu")
    whole, opened, out = predict(config, tmp_path / "whole"), Path.open, tmp_path / "out"

    def full(path, mode="r", *arguments, **named):
        record = path.name == "predictions.jsonl" and mode == "a"
        return opened(Path("/dev/full") if record else path, mode, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(
            InputError, match=f"disk full while writing {out}/predictions.jsonl: free some space"
        ):
            predict(config, out)
    predict(config, out)
    assert bytes_of(out) == bytes_of(whole)


def test_a_corrupt_image_is_listed_and_the_others_are_done(tmp_path: Path, day: str):
    run = trained(tmp_path / "run", day)
    image = frames.load(day).frames[1].image
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    out = predict(PredictConfig(str(run), day, batch_size=2, device="cpu"), tmp_path / "out")
    assert [line["id"] for line in runs.failures(out)] == [trees.IDS[1]] and len(
        list(out.rglob("*.png"))
    ) == 2
    image.write_bytes(whole)
    predict(PredictConfig(str(run), day, batch_size=2, device="cpu"), out)
    assert runs.failures(out) == [] and len(list(out.rglob("*.png"))) == 3


def test_classes_outside_the_class_set_are_never_predicted(tmp_path: Path, day: str):
    run = trained(tmp_path / "run", day, classes=13)
    trees.cityscapes(tmp_path / "large", size=(48, 80), split="val")  # logits of -inf are resized
    config = PredictConfig(str(run), f"cityscapes:{tmp_path}/large:val", device="cpu")
    out = predict(config, tmp_path / "out")
    data = frames.load(config.data)
    found = {
        i for f in data.frames for i in np.unique(predictions.read(frames.place(data, f, out), data.space))
    }
    assert found and found <= set(CLASS_SETS[13])


def test_a_file_of_weights_predicts_with_the_network_it_is_named_with(tmp_path: Path, day: str):
    torch.save(networks.two_convs(19).state_dict(), tmp_path / "mine.pth")
    config = PredictConfig(str(tmp_path / "mine.pth"), day, network=TWO_CONVS, device="cpu")
    out = predict(config, tmp_path / "out")
    assert len(list(out.rglob("*.png"))) == 3
    assert runs.read_json(out / "model.json")["selection"] == "weights mine.pth"
    with pytest.raises(InputError, match=r"name its network with --network\.name"):
        predict(replace(config, network=None), tmp_path / "other")


def test_every_selection_rule_predicts_from_its_own_checkpoint(tmp_path: Path, day: str):
    run = trained(tmp_path / "run", day, select="source", validation=day, oracle_validation=(day,))
    method = checkpoints.load_run(run)[0]
    checkpoints.save(run, 5, method, {})
    next(method.parameters()).data += 1
    checkpoints.save_best(run, 4, method, 0.5, "oracle")
    told = {}
    for rule in ("best", "source", "oracle", "last"):
        out = predict(PredictConfig(str(run), day, checkpoint=rule, device="cpu"), tmp_path / rule)
        told[rule] = runs.read_json(out / "model.json")
    assert {rule: model["step"] for rule, model in told.items()} == {
        "best": 2,
        "source": 2,
        "oracle": 4,
        "last": 5,
    }
    assert told["best"]["selection"] == told["source"]["selection"] == "checkpoint: best on source"
    assert (
        told["oracle"]["selection"].endswith("oracle (not attainable)")
        and told["last"]["selection"] == "checkpoint: last"
    )
    assert told["best"]["weights"] == told["last"]["weights"] != told["oracle"]["weights"]
    with pytest.raises(InputError, match="has no checkpoint 'transferred'"):
        predict(PredictConfig(str(run), day, checkpoint="transferred", device="cpu"), tmp_path / "none")


def test_images_of_several_sizes_go_through_a_network_that_sees_them_as_they_are(tmp_path: Path):
    trees.cityscapes(tmp_path / "mixed", trees.IDS[:2], size=(20, 36))
    trees.cityscapes(tmp_path / "mixed", trees.IDS[2:], size=(32, 40))
    torch.save(networks.two_convs(19).state_dict(), tmp_path / "mine.pth")
    config = PredictConfig(
        str(tmp_path / "mine.pth"), f"cityscapes:{tmp_path}/mixed:train", network=TWO_CONVS, device="cpu"
    )
    out = predict(config, tmp_path / "out")
    assert {cv2.imread(str(file), -1).shape for file in out.rglob("*.png")} == {(20, 36), (32, 40)}


def test_a_run_of_other_classes_and_other_weights_in_the_folder_are_refused(tmp_path: Path, day: str):
    run = trained(tmp_path / "run", day)
    mine = f"folder:{trees.folder(tmp_path / 'mine')}:train"
    with pytest.raises(InputError, match=r"19 classes of 'cityscapes', .* the 3 of"):
        predict(PredictConfig(str(run), mine, device="cpu"), tmp_path / "mine-out")
    with pytest.raises(InputError, match=r"leave --network\.name out"):
        predict(PredictConfig(str(run), day, network=TWO_CONVS, device="cpu"), tmp_path / "out")
    config = PredictConfig(str(run), day, device="cpu")
    out = predict(config, tmp_path / "out")
    method = checkpoints.load_run(run)[0]
    next(method.parameters()).data += 1
    checkpoints.save_best(run, 9, method, None)
    with pytest.raises(InputError, match=r"holds predictions of other weights of .* .step 2, now step 9"):
        predict(config, out)
    with pytest.raises(InputError, match="other options"):
        predict(replace(config, size=(16, 32)), out)


def test_predictions_keep_ids_that_need_sixteen_bits(tmp_path: Path):
    space = replace(CITYSCAPES, ids=(*CITYSCAPES.ids[:-1], 300))
    label = np.array([[0, 18, 255]], np.uint8)
    predictions.write(tmp_path / "a.png", label, space)
    assert cv2.imread(str(tmp_path / "a.png"), -1).tolist() == [[7, 300, 0]]
    np.testing.assert_array_equal(predictions.read(tmp_path / "a.png", space), label)
