"""The watch over an unlabelled target: what counts as lost, and as a trained network."""

import numpy as np
import pytest
import torch
import trees
from accelerate import Accelerator

from segshift.data import frames
from segshift.data.samples import Pictures
from segshift.methods.base import Method
from segshift.training.watch import Watch

CLASSES = 3
LAYOUT = """images: "{subset}/images/*.png"
labels: "{subset}/labels/*.png"
subsets: [source, target]
classes: [big, small, rare]
"""


class Painter(Method):
    """Predicts a share of each row as each class, whatever the image shows."""

    shares: tuple[int, ...] = (8, 4, 4)

    def predict(self, images, seeds=None):
        label = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(self.shares))
        return (
            torch.nn.functional.one_hot(label, CLASSES)
            .T.float()[None, :, None]
            .expand(len(images), -1, images.shape[2], -1)
        )


@pytest.fixture
def watch(tmp_path):
    """Of a source whose labels are half big, a quarter small, a quarter rare."""
    label = np.repeat(np.arange(CLASSES, dtype=np.uint8), (8, 4, 4))[None].repeat(16, 0)
    for subset in ("source", "target"):
        for i in range(3):
            trees.save(tmp_path / subset / "images" / f"{i}.png", trees.picture(f"{subset}{i}", (16, 16)))
            if subset == "source":
                trees.save(tmp_path / subset / "labels" / f"{i}.png", label)
    (tmp_path / "dataset.yaml").write_text(LAYOUT)
    source, target = (frames.load(f"folder:{tmp_path}:{subset}") for subset in ("source", "target"))
    pictures = tuple(Pictures((16, 16), d.space, (0, 1, 2), False, {}) for d in (source, target))
    return Watch(source, target, pictures, (0, 1, 2), Accelerator(cpu=True))


def test_a_class_is_lost_when_it_was_found_and_is_no_longer(watch):
    method = Painter().train()
    seen = watch.look(method)
    assert seen.shares == {"big": 0.5, "small": 0.25, "rare": 0.25} and not seen.lost + seen.missing
    method.shares = (11, 4, 1)  # a quarter of what the source's labels show: more than an eighth
    assert watch.look(method).lost == []
    method.shares = (12, 4, 0)
    assert watch.look(method).lost == ["rare"]
    method.shares = (8, 4, 4)
    assert watch.look(method).lost == []  # it came back
    assert method.training


def test_a_class_that_was_never_found_is_missing_and_not_lost(watch):
    method = Painter()
    method.shares = (12, 4, 0)
    seen = watch.look(method)
    assert seen.lost == [] and seen.missing == ["rare"]


def test_a_network_counts_as_trained_when_it_has_most_of_the_source_right(watch):
    method = Painter()
    assert watch.segments_source(method)
    method.shares = (0, 8, 8)
    assert not watch.segments_source(method)
