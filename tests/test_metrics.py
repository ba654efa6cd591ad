"""Confusion matrices against the slowest possible count, and the rules for absent classes and void."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segshift.scoring import metrics

pairs = st.tuples(st.integers(1, 5), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 3, 254, 255]))] * 2)
)


@settings(max_examples=50, deadline=None)
@given(pairs, st.integers(1, 4))
def test_the_matrix_equals_a_count_pixel_by_pixel(pair, classes):
    pred, label = pair
    expected = np.zeros((classes, classes + 1), np.int64)
    for p, t in zip(pred.flat, label.flat, strict=True):
        if t < classes:
            expected[t, min(p, classes)] += 1
    np.testing.assert_array_equal(metrics.confusion_matrix(pred, label, classes), expected)


def test_pictures_of_more_than_two_to_the_24_pixels_are_counted_exactly():
    label = np.zeros((4097, 4097), np.uint8)
    assert metrics.confusion_matrix(label, label, 1).tolist() == [[4097 * 4097, 0]]


def test_iou_leaves_out_absent_classes_and_counts_one_that_is_only_predicted_as_zero():
    label = np.array([[0, 0, 0, 255]], np.uint8)
    pred = np.array([[0, 0, 1, 2]], np.uint8)  # class 2 is predicted on void only: absent; class 3 is nowhere
    matrix = metrics.confusion_matrix(pred, label, 4)
    np.testing.assert_array_equal(metrics.iou(matrix), [2 / 3, 0.0, np.nan, np.nan])
    assert metrics.miou(matrix) == pytest.approx(1 / 3)
    assert metrics.pixel_accuracy(matrix) == pytest.approx(2 / 3)


def test_a_void_prediction_is_a_miss_and_no_false_alarm():
    label = np.array([[0, 0, 1, 1]], np.uint8)
    matrix = metrics.confusion_matrix(np.array([[0, 255, 1, 1]], np.uint8), label, 2)
    assert metrics.iou(matrix).tolist() == [0.5, 1.0]


def test_a_subset_ignores_its_outside_in_the_truth_and_counts_it_as_void_in_the_prediction():
    label = np.array([[0, 0, 1, 2, 2]], np.uint8)
    pred = np.array([[0, 1, 0, 2, 0]], np.uint8)
    matrix = metrics.restrict(metrics.confusion_matrix(pred, label, 3), (0, 2))
    assert matrix.tolist() == [
        [1, 0, 1],
        [1, 1, 0],
    ]  # the pixel of class 1 that was predicted as 0 counts nowhere
    masked = np.where(label == 1, 255, label).astype(np.uint8)
    np.testing.assert_array_equal(
        metrics.iou(matrix), metrics.iou(metrics.confusion_matrix(pred, masked, 3))[[0, 2]]
    )


def test_nothing_labelled_has_no_score():
    matrix = metrics.confusion_matrix(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), 3)
    assert np.isnan(metrics.miou(matrix)) and np.isnan(metrics.pixel_accuracy(matrix))


def test_a_matrix_of_other_sizes_or_types_is_refused():
    with pytest.raises(ValueError, match="both uint8"):
        metrics.confusion_matrix(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 3)
    with pytest.raises(ValueError, match="both uint8"):
        metrics.confusion_matrix(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.uint8), 3)
