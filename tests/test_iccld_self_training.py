import math

import pytest
import torch
from iccld_parts import CLASSES, batch, reached, step1

from segshift.config import ICCLDConfig
from segshift.methods.base import cross_entropy, weighted_cross_entropy
from segshift.methods.iccld.self_training import (
    SelfTraining,
    Thresholds,
    average_of,
    feature_distance,
    hide_blocks,
)
from segshift.networks.segmenter import Segmenter
from segshift.runs import InputError


def test_weighted_cross_entropy_with_ones_is_cross_entropy_and_scales_with_the_weight():
    logits, label = torch.randn(2, CLASSES, 8, 8), batch()["label"][:, :8, :8]
    ones = torch.ones(2, 8, 8)
    torch.testing.assert_close(weighted_cross_entropy(logits, label, ones), cross_entropy(logits, label))
    torch.testing.assert_close(
        weighted_cross_entropy(logits, label, ones / 4), cross_entropy(logits, label) / 4
    )
    assert weighted_cross_entropy(logits, torch.full_like(label, 255), ones) == 0


def test_the_average_is_the_recursion_with_batch_norm_statistics_and_counts():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    average = average_of(network, 0.6)
    expected = {}
    for step in range(6):
        network(torch.rand(2, 3, 4, 4) + step)
        with torch.no_grad():
            network[0].weight.add_(torch.randn_like(network[0].weight))
        average.update_parameters(network)
        a = min(1 - 1 / (step + 1), 0.6)
        for name, value in network.state_dict().items():
            value = value.clone()
            expected[name] = (
                value if not value.is_floating_point() or step == 0 else a * expected[name] + (1 - a) * value
            )
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not any(p.requires_grad for p in average.parameters())


def test_the_teacher_follows_latent_statistics_too_and_stays_in_evaluation():
    method = step1()
    for step in range(2):
        method.losses("segmenter", batch(), step)
        method.after_step(step)
    assert not method.teacher.training and not method.teacher.module.segmenter.network.encoder.training
    norm, theirs = method.segmenter.network.head.norm, method.teacher.module.segmenter.network.head.norm
    assert not torch.equal(norm.mean, theirs.mean) and theirs.mean.abs().sum() > 0  # half of the first step
    assert torch.equal(theirs.batches, norm.batches)
    assert torch.equal(
        method.teacher.module.segmenter.mean, method.segmenter.mean
    )  # a constant stays the same


def test_every_term_of_step_1_reaches_its_networks_and_no_teacher():
    method = step1(threshold=0.0, feature_distance=0.005, masked_weight=1.0)
    network, parts = method.segmenter.network, ("encoder", "head", "decoder")
    expected = {
        "source": {*parts},
        "mixed": {*parts},
        "label_latent": {"decoder", "labels"},
        "feature_distance": {"encoder"},
        "masked": {*parts},
    }
    data = batch(64)
    data["label"][:] = 2  # whole cells of one class, for the feature distance
    terms = method.losses("segmenter", data, 0)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        modules = {part: getattr(network, part) for part in parts} | {
            "labels": method.label_encoder,
            "teacher": method.teacher,
            "reference": method.reference,
        }
        assert reached(term, **modules) == expected[name], name
        assert term > 0
    assert step1(diffused="image").losses("segmenter", data, 0).keys() == {"source", "mixed"}


def test_the_terms_of_step_1_are_those_of_the_formula_and_the_target_counts_by_confidence():
    method, data = step1().eval(), batch()
    terms = method.losses("segmenter", data, 0)
    torch.testing.assert_close(
        terms["source"], cross_entropy(method.segmenter(data["source"]), data["label"])
    )
    sure, unsure = (step1(threshold=threshold) for threshold in (0.0, 1.0))
    data["label"][:] = 255  # nothing of the source in the mix
    assert unsure.losses("segmenter", data, 0)["mixed"] == 0 < sure.losses("segmenter", data, 0)["mixed"]


def test_the_surest_pixels_of_a_class_count_once_its_threshold_is_known():
    method, data = step1(threshold=1.0), batch()
    data["label"][:] = 255
    assert method.losses("segmenter", data, 0)["mixed"] == 0  # no threshold is known before the first batch
    method.after_step(0)
    assert (method.class_thresholds[method.predict(data["target"]).argmax(1).unique()] < 1).all()
    assert method.losses("segmenter", data, 1)["mixed"] > 0


def test_thresholds_are_between_a_half_and_the_one_that_is_set():
    thresholds = Thresholds(3)
    thresholds.value.copy_(torch.tensor([0.1, 0.7, 1.0]))
    assert thresholds.within(0.9).tolist() == pytest.approx([0.5, 0.7, 0.9])
    assert thresholds.within(0.2).tolist() == pytest.approx([0.2, 0.2, 0.2])


def test_batch_norm_follows_the_target_alone():
    def run(change):
        method, data = step1(), batch()
        for name in change:
            data[name] = data[name] * 0.5
        method.losses("segmenter", data, 0)
        encoder = method.segmenter.network.encoder
        return {k: v for k, v in encoder.state_dict().items() if "running" in k}

    still, source, target = run(()), run(("source",)), run(("target",))
    assert still and all(torch.equal(still[name], source[name]) for name in still)
    assert any(not torch.equal(still[name], target[name]) for name in still)


def test_void_and_one_class_alone_train_on():
    for value in (255, 3):
        method, data = step1(threshold=1.0), batch()
        data["label"][:] = value
        terms = method.losses("segmenter", data, 0)
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        assert all(
            torch.isfinite(p.grad).all()
            for p in method.networks["segmenter"].parameters()
            if p.grad is not None
        )


def test_parameter_groups_hold_every_parameter_once_and_heads_learn_faster():
    method = step1(head_lr=7.0)
    (encoder, one), (heads, seven) = method.parameter_groups("segmenter")
    assert (one, seven) == (1.0, 7.0)
    everything = [id(p) for p in method.networks["segmenter"].parameters()]
    assert sorted(id(p) for p in [*encoder, *heads]) == sorted(everything)
    assert {id(p) for p in encoder} == {id(p) for p in method.segmenter.network.encoder.parameters()}
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    assert trained == set(everything)


def test_feature_distance_counts_cells_that_one_thing_covers():
    features, label = torch.zeros(1, 2, 1, 3), torch.full((1, 32, 96), 1, dtype=torch.uint8)
    features[0, :, 0] = torch.tensor([[3.0, 6, 0], [4.0, 8, 5]])
    label[:, :, 32:64] = 2
    label[:, :16, 64:] = 2  # half a cell of each
    for things, expected in (((1,), 5), ((2,), 10), ((1, 2), 7.5), ((), 7.5), ((4,), 0)):
        found = feature_distance(features, torch.zeros_like(features), label, CLASSES, things)
        torch.testing.assert_close(found, torch.tensor(float(expected)))


def test_hidden_blocks_are_whole_squares_of_the_fill():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 40, 56)
    fill = torch.full((3, 1, 1), 2.0)
    hidden = (hide_blocks(images, 8, 0.7, fill) == 2).all(1)
    squares = hidden.unfold(1, 8, 8).unfold(2, 8, 8).flatten(-2).float().mean(-1)
    assert set(squares.unique().tolist()) == {0, 1} and 0.5 < squares.mean() < 0.9
    assert torch.equal(hide_blocks(images, 64, 0.0, fill), images)


def test_another_network_has_no_latent():
    import networks

    with pytest.raises(InputError, match=r"network\.name iccld"):
        SelfTraining(Segmenter(networks.TwoConvs(CLASSES), CLASSES, "encoder"), ICCLDConfig())


def test_step_1_predicts_by_its_teacher_and_tells_its_entropy():
    method = step1(excluded=[1]).eval()
    images = torch.rand(1, 3, 40, 33)
    before = method.predict(images)
    with torch.no_grad():
        method.segmenter.network.decoder.classify.bias.add_(1)
    logits, maps = method.predict_with_uncertainty(images, [3])
    assert torch.equal(logits, before) and (logits[:, 1] == -math.inf).all()
    assert maps.keys() == {"entropy"} and maps["entropy"].shape == (1, 40, 33)
    p = logits[:, [0, 2, 3, 4]].softmax(1)
    torch.testing.assert_close(maps["entropy"], -(p * p.log()).sum(1) / math.log(4))
