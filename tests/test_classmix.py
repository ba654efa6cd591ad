import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segshift.config import StrongAugmentation
from segshift.methods.iccld.classmix import (
    blur,
    class_mask,
    class_thresholds,
    jitter,
    mix,
    mixed,
    pseudo_label,
    strong_view,
    turn_hue,
)

STILL = StrongAugmentation(jitter_probability=0, blur_probability=0)


def classes(label, mask):
    return set(label[mask].tolist())


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.lists(st.sampled_from([0, 1, 2, 5, 18, 254, 255]), min_size=16, max_size=16),
        min_size=1,
        max_size=4,
    )
)
def test_the_mask_takes_half_of_the_classes_present_rounded_up_whole_and_never_void(pixels):
    label = torch.tensor(pixels, dtype=torch.uint8).view(-1, 4, 4)
    for one, mask in zip(label, class_mask(label), strict=True):
        present, chosen = set(one.unique().tolist()) - {255}, classes(one, mask)
        assert len(chosen) == (len(present) + 1) // 2
        assert torch.equal(mask, torch.isin(one, torch.tensor(sorted(chosen), dtype=torch.uint8)))
        assert 255 not in chosen


def test_one_class_is_taken_and_nothing_but_void_gives_an_empty_mask():
    label = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    label[0, :2] = 7
    assert torch.equal(class_mask(label), label == 7)


def test_every_image_has_its_own_draw_and_every_class_its_chance():
    torch.manual_seed(0)
    label = torch.arange(4, dtype=torch.uint8).repeat_interleave(4).view(1, 4, 4).expand(400, -1, -1)
    taken = class_mask(label).flatten(1).float().mean(0)
    assert len(class_mask(label).flatten(1).unique(dim=0)) == 6  # all pairs of four classes
    torch.testing.assert_close(taken, torch.full((16,), 0.5), atol=0.1, rtol=0)


def test_pixels_of_a_pseudo_label_count_from_the_threshold_of_their_class():
    p = torch.tensor([[0.97, 0.5], [0.99, 0.968]])  # of class 2, by image and pixel
    probabilities = torch.stack([(1 - p) / 2, (1 - p) / 2, p], 1)[..., None]
    label, confidence, q = pseudo_label(probabilities, torch.tensor([0.1, 0.1, 0.968]))
    assert label.dtype == torch.uint8 and (label == 2).all()
    torch.testing.assert_close(confidence[..., 0], p)
    assert q[..., 0].tolist() == [[1, 0], [1, 1]]
    assert not pseudo_label(probabilities, torch.tensor([0.0, 0.0, 1.1]))[2].any()


def test_the_surest_share_of_every_class_reaches_its_threshold():
    torch.manual_seed(0)
    label, confidence = torch.randint(0, 3, (2, 40, 50)).byte(), torch.rand(2, 40, 50)
    confidence[label == 1] /= 4  # a class that the teacher is never sure of
    before = torch.tensor([0.9, 0.9, 0.9, 0.7])
    for share in (0.2, 0.5, 1.0):
        found = class_thresholds(label, confidence, share, before)
        assert found[3] == before[3]  # no pixel of it
        for k in range(3):
            reached = (confidence[label == k] >= found[k]).float().mean()
            assert abs(reached - share) < 0.01, (share, k)
    assert class_thresholds(label, confidence, 0.5, before)[1] < 0.25


def test_image_label_and_weight_come_from_the_same_pixels():
    source, target = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    label = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    label[0, 0], label[1, :, :2] = 3, 4
    pseudo = torch.full((2, 4, 4), 9, dtype=torch.uint8)
    trust = torch.rand(2, 4, 4)
    images, mixed_label, weight = mixed(source, label, target, pseudo, trust, STILL)
    mask = label != 255
    torch.testing.assert_close(images[:, 0], (~mask).float())
    assert torch.equal(mixed_label, torch.where(mask, label, pseudo))
    assert torch.equal(weight, torch.where(mask, torch.ones(2, 4, 4), trust))
    assert torch.equal(mix(mask, label, pseudo), mixed_label)


def test_no_amount_changes_nothing_and_strong_ones_stay_in_range():
    images = torch.rand(3, 3, 9, 11)
    torch.testing.assert_close(strong_view(images, STILL), images)
    torch.testing.assert_close(jitter(images, torch.zeros(4, 3)), images)
    changed = strong_view(images, StrongAugmentation(jitter=0.9, jitter_probability=1, blur_probability=1))
    assert changed.min() >= 0 and changed.max() <= 1 and not torch.allclose(changed, images, atol=0.05)


def test_every_image_has_its_own_strength():
    images = torch.rand(1, 3, 8, 8).expand(4, -1, -1, -1)
    changed = jitter(
        images, torch.tensor([[0.1, 0.0, 0.0, 0.0], [0, 0.2, 0, 0], [0, 0, -0.2, 0], [0, 0, 0, 0.1]])
    )
    torch.testing.assert_close(changed[0], (images[0] * 1.1).clamp(max=1))
    assert len({round(float(image.sub(images[0]).abs().sum()), 4) for image in changed}) == 4


def test_a_third_of_a_turn_moves_red_to_green_and_grey_stays():
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    green = turn_hue(red, torch.full((1, 1, 1, 1), 1 / 3))
    torch.testing.assert_close(green.flatten(), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)
    grey = torch.full((1, 3, 1, 1), 0.4)
    torch.testing.assert_close(turn_hue(grey, torch.rand(1, 1, 1, 1)), grey)


def test_blur_is_torchvisions_with_each_images_sigma():
    from torchvision.transforms.v2.functional import gaussian_blur

    images, sigma = torch.rand(3, 3, 20, 24), torch.tensor([0.5, 0.0, 1.1])
    blurred = blur(images, sigma, 4)
    assert torch.equal(blurred[1], images[1])
    for i in (0, 2):
        expected = gaussian_blur(images[i], [9, 9], [float(sigma[i])] * 2)
        torch.testing.assert_close(
            blurred[i, :, 4:-4, 4:-4], expected[:, 4:-4, 4:-4]
        )  # its borders are mirrored
