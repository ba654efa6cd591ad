"""Label-free scores: each against its definition on whole pixels, and what they say of a generator."""

import numpy as np
import pytest
import torch

from segshift.scoring import label_free


def frame(seed: int, sharpness: float, size: tuple[int, int] = (24, 32), classes: int = 5):
    """Logits [C, h, w] and confidences [h, w]."""
    logits = sharpness * torch.randn(classes, *size, generator=torch.Generator().manual_seed(seed))
    return logits, logits.softmax(0).amax(0)


def test_the_nuclear_norm_is_that_of_the_matrix_of_softmaxes():
    logits, confidence = frame(0, 3.0)
    told = label_free.of_frame(logits, confidence)
    matrix = logits.softmax(0).flatten(1).T.double()
    expected = torch.linalg.matrix_norm(matrix, "nuc").item() / (5 * matrix.shape[0]) ** 0.5
    assert told["nuclear_norm"] == pytest.approx(expected, abs=2e-6)
    assert told["confidence"] == pytest.approx(confidence.mean().item(), abs=1e-6)
    ids = torch.arange(5 * 40).reshape(10, 20) % 5
    sure = -1e4 * (1 - torch.nn.functional.one_hot(ids, 5).permute(2, 0, 1).float())
    assert label_free.of_frame(sure, sure.softmax(0).amax(0))["nuclear_norm"] == 1  # all classes, all sure
    one = label_free.of_frame(torch.zeros(5, 10, 20), torch.full((10, 20), 0.2))
    assert one["nuclear_norm"] == pytest.approx(1 / 5, abs=1e-5)  # the least there is


def test_confidences_are_counted_in_bins_that_hold_every_pixel():
    logits, confidence = frame(1, 4.0)
    confidence[0, :3] = torch.tensor([1.0, 0.2, 1 - 2.0**-24])
    counts = label_free.of_frame(logits, confidence)["confidences"]
    assert len(counts) == label_free.BINS and sum(counts) == confidence.numel() and counts[-1] >= 2
    plain = -np.log2(np.maximum(1 - confidence.double().numpy(), 2.0**-24))
    assert counts[:8] == np.histogram(plain, np.arange(9) * label_free.WIDTH)[0].tolist()


def sets(*sharp: float) -> list[label_free.Summary]:
    """Sets of eight frames, each as sure as told."""
    return [label_free.summarise([[label_free.of_frame(*frame(i, one)) for i in range(8)]]) for one in sharp]


def test_thresholded_confidence_is_the_accuracy_at_home_and_agrees_with_whole_pixels():
    source, target = sets(6.0, 2.0)
    even, error = np.full((3, 8), 1 / 8), np.array([0.1, 0.25, 0.5])
    home = label_free.scores(source, even, source, even, error)
    assert home[:, 1] == pytest.approx(1 - error)
    away = label_free.scores(target, even, source, even, error)
    here, there = (np.stack([frame(i, s)[1].numpy().ravel() for i in range(8)]) for s in (6.0, 2.0))
    exact = [(there >= np.quantile(here, e)).mean() for e in error]
    assert away[:, 1] == pytest.approx(exact, abs=0.02)
    assert (away[:, [0, 2]] < home[:, [0, 2]]).all()
    assert away[0, 0] == pytest.approx(there.mean(), abs=1e-5)


def test_weights_choose_frames_and_draws_are_averaged():
    [source] = sets(3.0)
    lines = [[label_free.of_frame(*frame(i, s)) for i in range(8)] for s in (1.0, 5.0)]
    both = label_free.summarise(lines)
    first, second = (label_free.summarise([one]) for one in lines)
    np.testing.assert_allclose(both.confidences, (first.confidences + second.confidences) / 2)
    np.testing.assert_allclose(both.nuclear_norm, (first.nuclear_norm + second.nuclear_norm) / 2)
    only = np.eye(8)[[3]]
    found = label_free.scores(both, only, source, np.full((1, 8), 1 / 8), np.array([0.2]))
    assert (found[0, 0], found[0, 2]) == pytest.approx((both.confidence[3], both.nuclear_norm[3]))


def test_each_score_alone_predicts_a_miou():
    found = label_free.baselines(0.5, np.array([0.9, 0.8, 0.6]), np.array([0.7, 0.4, 0.3]))
    assert found == pytest.approx(
        {
            "average confidence": 0.5 * 7 / 9,
            "difference of confidences": 0.3,
            "ATC": 0.25,
            "nuclear norm": 0.25,
        }
    )


def test_the_generators_error_follows_the_networks_own_slope():
    labelled = np.array([[[0.9, 0.9, 0.7], [0.8, 0.7, 0.5], [0.6, 0.3, 0.1]]])
    miou = np.array([[0.6, 0.5, 0.3]])  # one point for each of confidence, half a point for the others
    generated = labelled[:, 2]
    assert label_free.generator_error(miou, labelled, generated, generated)[0] == 0
    lower = label_free.generator_error(miou, labelled, generated, generated - [[0.1, 0.2, 0.2]])
    assert lower[0] == pytest.approx(-0.1, abs=0.002)
    strange = label_free.generator_error(miou, labelled, generated, generated - [[0.1, 0.2, -0.5]])
    assert strange[0] == pytest.approx(-0.1, abs=0.002)  # the middle one counts
    opposite = label_free.generator_error(miou[:, ::-1], labelled, generated, generated - 0.1)
    assert opposite[0] == 0  # scores that rise where the mIoU falls are not believed
    alike = label_free.generator_error(miou, 0.5 + 1e-4 * labelled, generated, generated - 0.1)
    assert abs(alike[0]) < 0.01  # nor is a slope over nothing
