import pytest
import torch
from torchvision.transforms.v2 import functional as F

from segshift.data import transforms

SIZE = (24, 40)


def pair():
    """Two images whose pixels tell where they were, and the label that says the same."""
    place = torch.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 251
    image = place.to(torch.uint8).expand(3, *SIZE).contiguous()
    return [image, image.clone()], place.to(torch.uint8)


def test_crop_and_flip_are_shared_by_both_images_and_the_label():
    flips = set()
    for k in range(20):
        (x, x2), y = transforms.augment(*pair(), (16, 24), (0, 0, 0, 0), transforms.generator(0, k))
        assert x.shape == (3, 16, 24) and y.shape == (16, 24)
        assert torch.equal((x[0] * 255).round().byte(), y) and torch.equal(x, x2)
        flips.add(bool(y[0, 0] > y[0, 1]))
    assert flips == {False, True}


def test_crops_reach_every_corner():
    label = torch.arange(9, dtype=torch.uint8).reshape(3, 3)
    image = label.expand(3, 3, 3)
    seen = {
        int(transforms.augment([image], label, (1, 1), (0, 0, 0, 0), transforms.generator(k))[1])
        for k in range(200)
    }
    assert seen == set(range(9))


def test_jitter_is_drawn_separately_for_each_image():
    (x, x2), _ = transforms.augment(*pair(), SIZE, (0.5, 0.5, 0.5, 0.3), transforms.generator(0))
    assert not torch.allclose(x, x2, atol=0.02)


def test_a_sample_depends_on_its_key_alone():
    torch.manual_seed(0)
    first = transforms.augment(*pair(), (16, 24), (0.5, 0.5, 0.5, 0.3), transforms.generator(7, "sample", 3))
    torch.manual_seed(1)
    again = transforms.augment(*pair(), (16, 24), (0.5, 0.5, 0.5, 0.3), transforms.generator(7, "sample", 3))
    other = transforms.augment(*pair(), (16, 24), (0.5, 0.5, 0.5, 0.3), transforms.generator(7, "sample", 4))
    assert torch.equal(first[0][0], again[0][0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0][0], other[0][0])


def test_keys_are_the_same_on_every_machine():
    assert transforms.key_seed(0, "sample", 12) == 308090984178925291


@pytest.mark.parametrize("turns", [-0.5, -0.31, 0.0, 0.2, 0.499])
def test_hue_is_torchvisions(turns):
    image = torch.rand(3, 17, 23, generator=torch.Generator().manual_seed(0))
    image[:, 0] = image[0, 0]  # grey has no hue
    torch.testing.assert_close(
        transforms.turn_hue(image, turns), F.adjust_hue(image, turns), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
def test_contrast_is_torchvisions_on_any_number_of_threads(factor):
    crop, large = (
        torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) for size in ((128, 128), (384, 768))
    )
    assert torch.equal(transforms.turn_contrast(crop, factor), F.adjust_contrast(crop, factor))
    torch.testing.assert_close(
        transforms.turn_contrast(large, factor), F.adjust_contrast(large, factor), atol=1e-6, rtol=0
    )
    threads, made = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made.append(transforms.turn_contrast(large, factor))
    torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_jitter_of_nothing_changes_nothing():
    image = torch.rand(3, 5, 7)
    assert torch.equal(transforms.colour_jitter(image, (0, 0, 0, 0), transforms.generator(0)), image)


def test_jitter_stays_in_range():
    image = torch.rand(3, 16, 16)
    for k in range(20):
        out = transforms.colour_jitter(image, (2.0, 2.0, 2.0, 0.5), transforms.generator(k))
        assert out.min() >= -1e-5 and out.max() <= 1 + 1e-5


def test_labels_are_resized_without_mixing_classes_and_images_with_antialias():
    label = (
        torch.tensor([[0, 18], [255, 7]], dtype=torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1)
    )
    assert torch.equal(
        transforms.resize_label(label, (2, 2)), torch.tensor([[0, 18], [255, 7]], dtype=torch.uint8)
    )
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(32).expand(3, 64, 64)
    assert (transforms.resize_image(stripes, (16, 16)).float() - 127.5).abs().max() < 20
