import networks
import pytest
import torch
import torch.nn.functional as F

from segshift.methods.base import cross_entropy
from segshift.methods.source_only.training import SourceOnly
from segshift.methods.zodi.adaptation import (
    BYOL_MOMENTUM,
    ZoDi,
    pooled,
    predicted_similarity,
    similarity,
)
from segshift.networks.segmenter import Segmenter
from segshift.runs import InputError


def segmenter(norm=True, classes=5):
    torch.manual_seed(0)
    return Segmenter(networks.TwoConvs(classes, norm=norm), classes, "encoder")


def batch(count=3):
    rng = torch.Generator().manual_seed(1)
    label = torch.randint(0, 5, (count, 32, 32), generator=rng).byte()
    label[:, :4] = 255
    images = [torch.rand(count, 3, 32, 32, generator=rng) for _ in range(2)]
    return {"source": images[0], "transferred": images[1], "label": label}


def gradients(method, batch):
    method.zero_grad()
    sum(method.losses("segmenter", batch, 0).values()).backward()
    return [p.grad.clone() for p in method.segmenter.parameters()]


def test_cross_entropy_is_the_mean_over_labelled_pixels():
    logits, label = torch.randn(2, 5, 8, 8), torch.randint(0, 5, (2, 8, 8)).byte()
    label[0, :3] = 255
    expected = torch.stack(
        [
            -F.log_softmax(logits[b, :, i, j], 0)[label[b, i, j].long()]
            for b in range(2)
            for i in range(8)
            for j in range(8)
            if label[b, i, j] != 255
        ]
    ).mean()
    torch.testing.assert_close(cross_entropy(logits, label), expected)


def test_a_batch_of_void_costs_nothing_and_is_no_nan():
    logits = torch.randn(2, 5, 8, 8, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 8, 8), 255, dtype=torch.uint8))
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_g_is_the_mean_over_space_with_length_one():
    features = torch.randn(2, 7, 3, 4)
    g = pooled(features)
    mean = features.mean((2, 3))
    torch.testing.assert_close(g, mean / mean.norm(dim=1, keepdim=True))
    torch.testing.assert_close(pooled(features.flatten(2).transpose(1, 2)), g)  # a transformer's tokens


def test_similarity_is_minus_the_cosine_with_gradient_through_both_branches():
    a, b = torch.tensor([[3.0, 4.0]], requires_grad=True), torch.tensor([[4.0, 3.0]], requires_grad=True)
    loss = similarity(a, b)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(-24 / 25))
    assert a.grad.abs().sum() > 0 and b.grad.abs().sum() > 0


def test_predicted_similarity_stops_the_gradient_of_its_target():
    a, b = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    predicted_similarity(a, b).backward()
    assert a.grad is not None and b.grad is None


def test_the_terms_are_those_of_the_paper():
    method, data = ZoDi(segmenter(), weight=0.3).eval(), batch()
    terms = method.losses("segmenter", data, 0)
    f, g = method.segmenter, lambda x: pooled(method.segmenter.network.encoder((x - f.mean) / f.std))
    torch.testing.assert_close(terms["source"], cross_entropy(f(data["source"]), data["label"]))
    torch.testing.assert_close(terms["transferred"], cross_entropy(f(data["transferred"]), data["label"]))
    cosine = F.cosine_similarity(g(data["source"]), g(data["transferred"])).mean()
    torch.testing.assert_close(terms["similarity"], -0.3 * cosine)
    assert set(ZoDi(segmenter(), form="none").losses("segmenter", data, 0)) == {"source", "transferred"}


@pytest.mark.parametrize("form", ["cosine", "none"])
@pytest.mark.parametrize("norm", ["frozen", "absent"])
def test_joint_pass_and_two_passes_have_the_same_gradient_without_batch_statistics(norm, form):
    network = segmenter(norm=norm == "frozen")
    network.train(norm == "absent")
    data = batch()
    joint = gradients(ZoDi(network, form=form).train(network.training), data)
    two = gradients(ZoDi(network, form=form, joint_pass=False).train(network.training), data)
    for a, b in zip(joint, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_joint_pass_takes_batch_statistics_over_both_domains():
    network, data = segmenter(), batch()
    x = torch.cat([data["source"], data["transferred"]])
    ZoDi(network).losses("segmenter", data, 0)
    seen = network.network.encoder[1].running_mean / 0.1  # momentum, from zero
    convolved = network.network.encoder[0]((x - network.mean) / network.std)
    torch.testing.assert_close(seen, convolved.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_the_published_two_passes_accumulate_the_gradient_of_the_formula():
    """x with CE and similarity, backward; x' with CE, backward: our joint gradient where batch norm is
    frozen.
    """
    network, data = segmenter().eval(), batch()
    network.zero_grad()
    logits, features = network.forward_with_features(data["source"])
    _, features_transferred = network.forward_with_features(data["transferred"])
    loss = cross_entropy(logits, data["label"])
    (loss + 0.1 * similarity(pooled(features), pooled(features_transferred))).backward()
    cross_entropy(network(data["transferred"]), data["label"]).backward()
    published = [p.grad.clone() for p in network.parameters()]
    for a, b in zip(gradients(ZoDi(network).eval(), data), published, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("form", ["simsiam", "byol"])
def test_variants_train_heads_and_segmenter(form):
    method = ZoDi(segmenter(), form=form)
    sum(method.losses("segmenter", batch(), 0).values()).backward()
    trained = list(method.networks["segmenter"].parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert len(trained) == len([p for p in method.parameters() if p.requires_grad])


def test_byol_target_follows_as_a_moving_average_and_takes_no_gradient():
    method = ZoDi(segmenter(), form="byol")
    method.after_step(0)  # the first takes the weights as they are
    before = method.segmenter.network.classifier.weight.detach().clone()
    with torch.no_grad():
        method.segmenter.network.classifier.weight.add_(1)
    method.after_step(1)
    target = method.target.module.segmenter.network.classifier.weight
    torch.testing.assert_close(target, before + (1 - BYOL_MOMENTUM))
    assert not target.requires_grad


def test_similarity_without_a_known_layer_is_refused_and_none_is_not():
    anonymous = Segmenter(networks.anonymous(5), 5, None)
    with pytest.raises(InputError, match=r"--network\.feature-layer"):
        ZoDi(anonymous)
    ZoDi(anonymous, form="none").losses("segmenter", batch(), 0)


@pytest.mark.parametrize("make", [SourceOnly, ZoDi])
def test_excluded_classes_are_never_predicted(make):
    logits = make(segmenter(), excluded=[1, 4]).eval().predict(torch.rand(1, 3, 32, 32))
    assert set(logits.argmax(1).unique().tolist()) <= {0, 2, 3}
    assert torch.isfinite(logits[:, [0, 2, 3]]).all()


def test_source_only_looks_at_the_source_alone():
    method, data = SourceOnly(segmenter()).eval(), batch()
    data.pop("transferred")
    terms = method.losses("segmenter", data, 0)
    torch.testing.assert_close(
        terms["source"], cross_entropy(method.segmenter(data["source"]), data["label"])
    )
    assert list(terms) == ["source"]


@pytest.mark.parametrize("make", [SourceOnly, ZoDi])
def test_heads_learn_at_a_factor_of_the_rate_where_the_network_has_an_encoder(make):
    method = make(segmenter(), head_lr=3.0)
    (encoder, one), (heads, three) = method.parameter_groups("segmenter")
    assert (one, three) == (1.0, 3.0) and {id(p) for p in encoder} == {
        id(p) for p in method.segmenter.encoder.parameters()
    }
    assert len(encoder) + len(heads) == len(list(method.networks["segmenter"].parameters()))
    without = SourceOnly(Segmenter(networks.anonymous(5), 5, None), head_lr=3.0)
    with pytest.raises(InputError, match="--head-lr is 3, and Anonymous has no part called 'encoder'"):
        without.parameter_groups("segmenter")
