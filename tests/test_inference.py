"""The one way from images to classes: memory, windows, finite logits, reading ahead, and who goes by it."""

import threading

import cv2
import numpy as np
import pytest
import small_device
import torch
import training
import trees

from segshift.config import GateConfig, PredictConfig
from segshift.data import transforms
from segshift.data.labels import CITYSCAPES
from segshift.engine.gate import Gate
from segshift.methods.base import Method
from segshift.runs import InputError
from segshift.scoring import inference
from segshift.stages.predict import predict
from segshift.stages.train import train
from segshift.training import checkpoints


class Colours(Method):
    """Logits are the image's colours, plus each image's seed."""

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def predict(self, images, seeds=None):
        self.seen.append((tuple(images.shape), seeds))
        return images + (0 if seeds is None else torch.tensor(seeds).view(-1, 1, 1, 1))


def pictures(count, size=(8, 12)):
    return torch.randint(256, (count, 3, *size), generator=torch.Generator().manual_seed(0)).byte()


def test_images_are_in_0_to_1_and_go_in_halves_where_memory_ends(monkeypatch):
    images, rows = pictures(3), []
    expected = images.float() / 255 + torch.tensor([1, 2, 3]).view(-1, 1, 1, 1)
    monkeypatch.setattr(inference, "_scores", small_device.for_one_image(inference._scores, rows))
    logits, maps = inference.infer(Colours(), images, [1, 2, 3])
    assert torch.equal(logits, expected) and rows == [3, 1, 2, 1, 1]
    assert torch.equal(maps["confidence"], expected.softmax(1).amax(1))
    monkeypatch.setattr(inference, "_scores", small_device.for_none)
    with pytest.raises(torch.OutOfMemoryError):
        inference.infer(Colours(), images)


def test_windows_overlap_by_half_and_each_has_seeds_of_its_own():
    method = Colours()
    logits, _ = inference.infer(method, pictures(1), window=(8, 6))
    torch.testing.assert_close(logits, pictures(1).float() / 255)
    assert method.seen == [((1, 3, 8, 6), None)] * 3
    inference.infer(method, pictures(1), [7], window=(8, 6))
    assert [seeds for _, seeds in method.seen[3:]] == [
        [transforms.key_seed(7, 0, left)] for left in (0, 3, 6)
    ]


def test_classes_are_the_argmax_of_resized_logits():
    logits = torch.tensor([[0.0, 1.0], [1.0, -1e9]]).view(1, 2, 1, 2)
    assert inference.classes(logits, (1, 2)).tolist() == [[[1, 0]]]
    found = inference.classes(logits, (2, 4))
    assert found.dtype == np.uint8 and found[0, 0].tolist() == [1, 0, 0, 0]


def test_logits_are_finite_where_some_class_of_every_pixel_is():
    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 1] = float("-inf")  # a class outside the class set
    inference.require_finite(logits)
    for value, classes in ((float("nan"), 0), (float("inf"), 2), (float("-inf"), slice(None))):
        wrong = logits.clone()
        wrong[1, classes, 2, 3] = value
        with pytest.raises(InputError, match="logits are not finite"):
            inference.require_finite(wrong)


def test_batches_are_neighbours_of_one_size_read_a_little_ahead():
    waiting, most, lock = 0, 0, threading.Lock()

    def read(item):
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)
        return None if item == 3 else (torch.zeros(3, 8, 4 if item < 6 else 8), item)

    found = []
    for images, items in inference.read_batches(read, [range(40)], 2):
        waiting -= 2
        found.append(items)
        assert len(images) == len(items)
    assert found[:4] == [[0, 1], [2, 4], [5], [6, 7]] and sum(map(len, found)) == 39
    assert most < 12
    with pytest.raises(ZeroDivisionError):
        list(inference.read_batches(lambda item: 1 / 0, [range(4)], 2))
    groups = [[0, 1, 2], [4], [5, 3], []]
    assert [items for _, items in inference.read_batches(read, groups, 2)] == [[0, 1], [2], [4], [5]]


def test_validation_prediction_and_gate_go_by_it(tmp_path, monkeypatch):
    """Where its logits are other ones, so is what each of them makes of an image."""
    data = training.trees_of(tmp_path)

    def infer(method, images, seeds=None, **how):
        logits, _ = inference._scores(method, images, seeds, False)
        logits = torch.zeros_like(logits)
        logits[:, 2] = 1
        return logits, {"confidence": logits[:, 2]}

    monkeypatch.setattr(inference, "infer", infer)
    run = train(training.config(data, steps=1), tmp_path / "run")
    iou = training.logged(run)[-1]["validation"]["source"]["iou"]
    assert {name for name, value in iou.items() if value} == {CITYSCAPES.names[2]}
    config = PredictConfig(str(run), f"cityscapes:{data}/day:val", device="cpu")
    [file] = predict(config, tmp_path / "out").rglob("*.png")
    assert set(np.unique(cv2.imread(str(file), -1))) == {CITYSCAPES.ids[2]}
    judge = Gate(GateConfig("run"), checkpoints.load_run(run)[0], (32, 64), CITYSCAPES)
    assert set(np.unique(judge.predict(trees.picture("x", (16, 32)), (32, 64)))) == {2}


def test_memory_that_does_not_suffice_to_validate_is_wrong_input(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "_scores", small_device.for_none)
    with pytest.raises(InputError, match=r"too little memory to validate on one image of \(32, 64\)"):
        train(training.config(training.trees_of(tmp_path), steps=1), tmp_path / "run")
