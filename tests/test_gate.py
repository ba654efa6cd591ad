"""The gate's scores, by hand on small arrays, and its denoising gap on a tiny model."""

import numpy as np
import pytest
import tiny_diffusion
import torch

from segshift.config import DiffusionConfig, GateConfig
from segshift.data.labels import CITYSCAPES
from segshift.engine import gate
from segshift.generators import stable_diffusion
from segshift.generators.movement import denoising_gap
from segshift.runs import InputError

KEPT = np.ones(19)
LABEL = np.array(
    [[0, 0, 13, 13], [0, 0, 13, 13], [0, 0, 255, 255], [0, 13, 255, 255]], np.uint8
)  # 7 road, 5 car


def test_regions_are_connected_pixels_of_one_class_of_a_least_size():
    index = gate.regions(LABEL, 0.0)
    assert index.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 0, 0], [1, 3, 0, 0]]
    assert gate.regions(LABEL, 4 / 16).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 0, 0], [1, 0, 0, 0]]
    diagonal = np.array([[5, 255], [255, 5]], np.uint8)
    assert gate.regions(diagonal, 0.0).tolist() == [[1, 0], [0, 1]]
    assert not gate.regions(np.full((2, 2), 255, np.uint8), 0.0).any()


def test_the_reference_sees_rgb_in_0_to_1_at_its_own_size():
    seen = []

    class Reds(torch.nn.Module):
        """Class 0 where red is over a half, class 2 where blue is."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def predict(self, images, seeds=None):
            seen.append(images)
            return images - 0.5

    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, :4, 0], picture[:, 4:, 2] = 200, 255
    judge = gate.Gate(GateConfig("run"), Reds(), (8, 16), CITYSCAPES)
    assert judge.predict(picture, (2, 4)).tolist() == [[0, 0, 2, 2]] * 2
    assert seen[0].shape == (1, 3, 8, 16) and seen[0].amax((0, 2, 3)).tolist() == pytest.approx(
        [200 / 255, 0, 1]
    )


def test_a_reference_whose_logits_are_not_finite_is_refused():
    class Lost(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def predict(self, images, seeds=None):
            return images * float("nan")

    judge = gate.Gate(GateConfig("run"), Lost(), (8, 16), CITYSCAPES)
    with pytest.raises(InputError, match="logits are not finite"):
        judge.predict(np.zeros((4, 8, 3), np.uint8), (2, 4))


def test_agreement_is_the_share_of_right_pixels_by_class_and_by_region():
    pred = np.zeros_like(LABEL)
    pred[0, 2:] = 13
    classes = gate.class_agreement(pred, LABEL, 19)
    assert classes[0] == 1 and classes[13] == 2 / 5 and np.isnan(np.delete(classes, [0, 13])).all()
    assert gate.region_agreement(pred, LABEL, gate.regions(LABEL, 0.0)).tolist() == [1, 0.5, 0]
    assert gate.region_agreement(pred, LABEL, np.zeros(LABEL.shape, np.int32)).tolist() == []


def test_scores_are_on_the_scale_of_the_networks_own_agreement_on_the_source():
    source, drawn = np.array([1.0, 0.5, 0.0, np.nan]), np.array([0.5, 0.9, 1.0, np.nan])
    assert gate.frame_score(source, source) == 1
    assert gate.frame_score(source, drawn) == pytest.approx(
        (0.5 + 0.5) / 1.5
    )  # better than the source counts as it
    assert np.isnan(gate.frame_score(np.array([0.0, np.nan]), np.array([1.0, np.nan])))
    regions = gate.region_scores(np.array([1.0, 0.5, 0.49]), np.array([0.25, 0.9, 0.49]))
    assert regions[:2].tolist() == [0.25, 1] and np.isnan(regions[2])  # what it did not see it cannot miss


def test_what_a_domain_leaves_of_the_agreement_is_a_ratio_of_sums_and_nothing_where_the_network_is_blind():
    source, drawn = (
        np.array([[1.0, 0.5, 0.0, np.nan], [0.5, np.nan, 0.0, np.nan]]),
        np.array([[0.5, 0.6, 0, np.nan], [0.25, np.nan, 0, np.nan]]),
    )
    # what no frame shows is taken for as much as of all classes together: (0.75 + 0.6) / (1.5 + 0.5)
    assert gate.kept_agreement(source, drawn) == pytest.approx([0.5, 1, 0, 0.675])
    assert gate.kept_agreement(source[:, 2:], drawn[:, 2:]).tolist() == [0, 0]


def test_thresholds_are_a_fraction_of_a_quantile_and_need_a_network_that_sees_something():
    found = gate.thresholds(np.array([0.2, 0.6, 1.0, np.nan]), np.array([0.5, 0.1, 0.7]), 0.5, 0.5)
    assert found == gate.Thresholds(frame=0.3, region=0.25)
    with pytest.raises(InputError, match="agrees with the label of no source frame: train it longer"):
        gate.thresholds(np.array([np.nan]), np.array([]), 0.5, 0.5)


def test_a_draw_is_judged_by_frame_by_region_and_by_movement():
    classes, index = gate.class_agreement(LABEL, LABEL, 19), gate.regions(LABEL, 0.0)
    seen = gate.SourceView(LABEL, index, classes, gate.region_agreement(LABEL, LABEL, index))
    pred = np.where(LABEL == 13, np.uint8(0), LABEL)  # every car is road
    verdict = gate.judge(seen, pred, gate.Thresholds(frame=0.6, region=0.4), KEPT)
    assert not verdict.passed and verdict.score == 0.5 and (verdict.judged, verdict.failed) == (3, 2)
    assert np.array_equal(verdict.failing, LABEL == 13) and verdict.lowest == 0
    assert gate.judge(seen, pred, gate.Thresholds(0.5, 0.0), KEPT).passed  # the threshold itself is enough
    one = gate.judge(seen, pred, gate.Thresholds(0.5, 0.4), KEPT)
    assert one.layout and not one.passed  # a lost region fails the draw
    whole = gate.Thresholds(0.5, 0.0)
    assert not gate.judge(seen, LABEL, whole, KEPT, movement=0.0, require_movement=True).passed
    assert gate.judge(seen, LABEL, whole, KEPT, movement=0.1, require_movement=True).passed


def verdict(layout=True, moved=True, failed=0, score=0.5):
    return gate.Verdict(
        layout, moved, score, np.ones(19), 3, failed, np.arange(16).reshape(4, 4) < failed, 0.5, 0.0
    )


def test_the_best_draw_passes_then_moved_then_fails_in_the_fewest_pixels():
    order = (
        verdict(failed=1, moved=False, score=1.0),
        verdict(failed=3),
        verdict(layout=False, failed=2),
        verdict(failed=2, score=0.6),
        verdict(score=0.1),
    )
    ranks = [one.rank for one in order]
    assert ranks == sorted(ranks) and len(set(ranks)) == 5


@pytest.mark.parametrize(
    ("made", "ignoring", "dropping"),
    [
        (verdict(), "kept", "kept"),
        (verdict(failed=2), "ignored", "dropped"),
        (verdict(failed=2, layout=False), "ignored", "dropped"),
        (verdict(layout=False), "dropped", "dropped"),
        (verdict(moved=False), "dropped", "dropped"),
        (verdict(failed=2, moved=False), "dropped", "dropped"),
    ],
)
def test_what_fails_is_never_kept_whole(made, ignoring, dropping):
    for on_failure, decision in (("ignore", ignoring), ("drop", dropping)):
        judge = gate.Gate(GateConfig("run", on_failure=on_failure), torch.nn.Identity(), (4, 4), CITYSCAPES)
        assert judge.decision(made) == decision


def test_a_class_that_the_domain_hides_from_the_network_is_not_judged():
    classes, index = gate.class_agreement(LABEL, LABEL, 19), gate.regions(LABEL, 0.0)
    seen = gate.SourceView(LABEL, index, classes, gate.region_agreement(LABEL, LABEL, index))
    assert seen.region_classes.tolist() == [0, 13, 13]
    pred, limits = np.where(LABEL == 13, np.uint8(0), LABEL), gate.Thresholds(frame=0.75, region=0.5)
    for k, score, judged in (
        (1.0, 1 / 2, 3),
        (0.5, 1 / 1.5, 3),
        (0.25, 1 / 1.25, 1),
        (0.0, 1, 1),
    ):  # by hand: 1 / (1 + k)
        kept = np.where(np.arange(19) == 13, k, 1.0)
        verdict = gate.judge(seen, pred, limits, kept)
        assert verdict.score == pytest.approx(score) and verdict.judged == judged
        assert verdict.layout == (score >= 0.75) and verdict.failing.any() == (judged == 3)


def test_a_frame_that_the_network_never_saw_passes_unjudged():
    nothing = np.where(LABEL == 255, np.uint8(255), np.uint8(3))
    index = gate.regions(LABEL, 0.0)
    seen = gate.SourceView(
        LABEL, index, gate.class_agreement(nothing, LABEL, 19), gate.region_agreement(nothing, LABEL, index)
    )
    verdict = gate.judge(seen, nothing, gate.Thresholds(0.9, 0.9), KEPT)
    assert verdict.passed and np.isnan(verdict.score) and verdict.judged == 0 and not verdict.failing.any()


def test_the_denoising_gap_compares_two_prompts_on_the_same_noise(tmp_path):
    model = stable_diffusion.load_model(
        DiffusionConfig(model=str(tiny_diffusion.prior(tmp_path / "prior")), device="cpu")
    )
    z0, n = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    night, empty = model.embed(["night"]), model.embed([""])
    gap = denoising_gap(model, z0, night, empty, None, n, 1.0)
    assert gap.shape == (2,) and gap.abs().min() > 1e-6
    assert torch.allclose(gap, -denoising_gap(model, z0, empty, night, None, n, 1.0))
    assert not denoising_gap(model, z0, night, night, None, n, 1.0).any()


def test_redraws_have_a_seed_of_the_frame_and_the_try():
    assert gate.redraw_seed(42, "a", 0) == 42
    seeds = {
        gate.redraw_seed(s, id, i) for s, id, i in ((42, "a", 1), (42, "a", 2), (42, "b", 1), (43, "a", 1))
    }
    assert len(seeds) == 4 and seeds == {
        gate.redraw_seed(s, id, i) for s, id, i in ((42, "a", 1), (42, "a", 2), (42, "b", 1), (43, "a", 1))
    }
