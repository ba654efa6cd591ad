import copy
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from segshift import models
from segshift.config import NetworkConfig
from segshift.iccld_network import Encoder, LabelEncoder, LatentSegmenter, RunningNorm
from segshift.methods import cross_entropy, weighted_cross_entropy
from segshift.methods.iccld import (
    AdversarialDiffusion,
    adversarial_loss,
    diffuse,
    diffusion_loss,
    discriminator_loss,
    estimate_loss,
    implied,
    wanted,
)
from segshift.methods.iccld_self_training import SelfTraining, average_of, feature_distance, hide_blocks
from segshift.models import Segmenter
from segshift.runs import InputError

CLASSES = 5


def segmenter(encoder="test_resnet", inter_coder=True):
    torch.manual_seed(0)
    network = LatentSegmenter(
        encoder, CLASSES, pretrained=False, latent_channels=4, inter_coder=inter_coder, width=16
    )
    return Segmenter(network, CLASSES, "encoder")


def step1(inter_coder=True, **options):
    return SelfTraining(segmenter(inter_coder=inter_coder), **options).train()


def step2(reading="label", excluded=(), **options):
    options = {"unet_channels": (8, 16), "adversary_warmup": 0} | options
    return AdversarialDiffusion(step1(reading=reading), excluded, **options).train()


def batch(side=32, count=2):
    rng = torch.Generator().manual_seed(1)
    label = torch.randint(0, CLASSES, (count, side // 8, side // 8), generator=rng).byte()
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
    label[:, :4] = 255
    source, target = torch.rand(2, count, 3, side, side, generator=rng)
    return {"source": source, "target": target, "label": label}


def reached(loss, **modules):
    """Names of the modules that the loss has a gradient in."""
    for module in modules.values():
        module.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name
        for name, module in modules.items()
        if any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    }


# ------------------------------------------------------------------------- networks


@pytest.mark.parametrize("encoder", ["test_resnet", "test_convnext", "test_vit"])
def test_any_backbone_gives_four_maps_and_logits_at_any_size(encoder):
    network = segmenter(encoder).eval()
    maps = network.network.encoder(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [m.shape[1] for m in maps] == network.network.encoder.channels
    with torch.no_grad():
        assert network(torch.rand(2, 3, 37, 70)).shape == (2, CLASSES, 37, 70)
    z, _ = network.network.encode(torch.rand(1, 3, 64, 96))
    assert z.shape == (1, 4, 8, 12)


def test_a_patch_of_fourteen_fits_sides_of_thirty_two():
    encoder = Encoder("test_vit", pretrained=False)
    encoder.patch = 14  # as DINOv2's, which is too large to test with
    seen = []
    encoder.model.forward_intermediates = lambda x, **_: seen.append(x.shape[2:]) or [torch.zeros(1, 64, 5, 7)] * 4
    maps = encoder(torch.rand(1, 3, 64, 96))
    assert seen == [(70, 98)] and [m.shape[-1] for m in maps] == [24, 12, 6, 3]


def test_models_builds_it_by_name_and_takes_a_local_backbone(tmp_path):
    import timm

    config = NetworkConfig(name="iccld", encoder="test_resnet", pretrained=False, latent_channels=6)
    network = models.build(config, 7)
    assert network.network.latent_channels == 6 and network.feature_channels == 96
    source = timm.create_model("test_resnet", pretrained=False)
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    models.load_weights(network, tmp_path / "backbone.safetensors")
    assert torch.equal(network.network.encoder.model.conv1[0].weight, source.conv1[0].weight)
    with pytest.raises(InputError, match="no_such_backbone"):
        models.build(NetworkConfig(name="iccld", encoder="no_such_backbone", pretrained=False), 7)


def test_a_backbone_without_the_four_strides_is_refused(monkeypatch):
    coarse = torch.nn.Identity()
    coarse.feature_info, coarse.forward_intermediates = [{"reduction": s, "num_chs": 8} for s in (2, 4, 8, 16)], None
    monkeypatch.setattr("timm.create_model", lambda *_, **__: coarse)
    with pytest.raises(InputError, match=r"strides \[2, 4, 8, 16\]"):
        Encoder("coarse", pretrained=False)


@pytest.mark.parametrize("inter_coder", [True, False])
def test_logits_depend_on_the_skips_only_through_the_inter_coder_connections(inter_coder):
    network = segmenter(inter_coder=inter_coder).network.eval()
    z, skips = network.encode(torch.rand(1, 3, 32, 32))
    one, other = (network.decode(z, [s * factor for s in skips], (32, 32)) for factor in (1, 3))
    assert torch.equal(one, other) != inter_coder
    assert not torch.equal(one, network.decode(z + 1, skips, (32, 32)))


def test_running_statistics_are_those_of_all_that_was_seen_and_constants_for_the_gradient():
    norm, seen = RunningNorm(3), 5 + 2 * torch.randn(8, 2, 3, 4, 4)
    for z in seen:
        norm(z)
    flat = seen.flatten(0, 1)
    torch.testing.assert_close(norm.mean.flatten(), flat.mean((0, 2, 3)))
    torch.testing.assert_close(norm.variance.flatten(), flat.var((0, 2, 3), correction=0))
    norm.eval()
    before = norm.mean.clone()
    z = seen[0].clone().requires_grad_()
    norm(z).sum().backward()
    assert torch.equal(norm.mean, before)
    scale = (norm.variance + 1e-5).rsqrt()
    torch.testing.assert_close(z.grad, scale.expand_as(z))
    norm.train()
    z.grad = None
    norm(z).sum().backward()  # with batch statistics in the graph it would be zero
    torch.testing.assert_close(z.grad, (norm.variance + 1e-5).rsqrt().expand_as(z))


def test_the_label_encoder_knows_void_from_every_class():
    encoder = LabelEncoder(CLASSES, 4).eval()
    labels = torch.stack([torch.full((16, 16), value, dtype=torch.uint8) for value in (*range(CLASSES), 255)])
    z = encoder(labels)
    assert z.shape == (6, 4, 2, 2) and len(z.flatten(1).unique(dim=0)) == 6


# ------------------------------------------------------------------------- step 1


def test_weighted_cross_entropy_with_ones_is_cross_entropy_and_scales_with_the_weight():
    logits, label = torch.randn(2, CLASSES, 8, 8), batch()["label"][:, :8, :8]
    ones = torch.ones(2, 8, 8)
    torch.testing.assert_close(weighted_cross_entropy(logits, label, ones), cross_entropy(logits, label))
    torch.testing.assert_close(weighted_cross_entropy(logits, label, ones / 4), cross_entropy(logits, label) / 4)
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
            expected[name] = value if not value.is_floating_point() or step == 0 else a * expected[name] + (1 - a) * value
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not any(p.requires_grad for p in average.parameters())


def test_the_teacher_follows_latent_statistics_too_and_stays_in_evaluation():
    method = step1()
    for step in range(2):
        method.losses("segmenter", batch(), step)
        method.after_step(step)
    assert not method.teacher.training and not method.teacher.module[0].network.encoder.training
    norm, theirs = method.segmenter.network.head.norm, method.teacher.module[0].network.head.norm
    assert not torch.equal(norm.mean, theirs.mean) and theirs.mean.abs().sum() > 0  # half of the first step
    assert torch.equal(theirs.batches, norm.batches)
    assert torch.equal(method.teacher.module[0].mean, method.segmenter.mean)  # a constant stays the same


def test_every_term_of_step_1_reaches_its_networks_and_no_teacher():
    method = step1(threshold=0.0, feature_distance=0.005, thing_classes=(), masked_weight=1.0)
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
            "labels": method.label_encoder, "teacher": method.teacher, "reference": method.reference,
        }  # fmt: skip
        assert reached(term, **modules) == expected[name], name
        assert term > 0
    assert step1(reading="image").losses("segmenter", data, 0).keys() == {"source", "mixed"}


def test_the_terms_of_step_1_are_those_of_the_formula_and_the_target_counts_by_q():
    method, data = step1().eval(), batch()
    terms = method.losses("segmenter", data, 0)
    torch.testing.assert_close(terms["source"], cross_entropy(method.segmenter(data["source"]), data["label"]))
    sure, unsure = (step1(threshold=threshold) for threshold in (0.0, 1.1))
    data["label"][:] = 255  # nothing of the source in the mix
    assert unsure.losses("segmenter", data, 0)["mixed"] == 0 < sure.losses("segmenter", data, 0)["mixed"]
    weighted = step1(threshold=1.1, confidence_weighted=True)
    assert weighted.losses("segmenter", data, 0)["mixed"] > 0


def test_void_and_one_class_alone_train_on():
    for value in (255, 3):
        method, data = step1(threshold=1.1), batch()
        data["label"][:] = value
        terms = method.losses("segmenter", data, 0)
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        assert all(torch.isfinite(p.grad).all() for p in method.networks["segmenter"].parameters() if p.grad is not None)


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
        SelfTraining(Segmenter(networks.TwoConvs(CLASSES), CLASSES, "encoder"))


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


# ------------------------------------------------------------------------- step 2


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_implies_the_clean_latent_and_its_noise(prediction):
    z_0, eps = torch.randn(2, 3, 4, 4, 4)
    abar = torch.tensor([0.9, 0.5, 0.1]).view(3, 1, 1, 1)
    z_t = diffuse(z_0, eps, abar)
    found = implied(wanted(z_0, eps, abar, prediction), z_t, abar, prediction)
    for value, expected in zip(found, (z_0, eps), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_formulas_and_schedule_are_diffusers(prediction):
    method = step2(prediction=prediction)
    schedule = method.schedule
    z_0, eps, t = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.tensor([10, 700])
    z_t = diffuse(z_0, eps, method.abar[t])
    torch.testing.assert_close(z_t, schedule.add_noise(z_0, eps, t))
    torch.testing.assert_close(wanted(z_0, eps, method.abar[t], "v_prediction"), schedule.get_velocity(z_0, eps, t))
    assert (method.abar[-1] < 1e-6) == (prediction == "v_prediction")
    method.schedule.register_to_config(prediction_type=prediction, clip_sample=False)
    method.sampling_steps = 5
    method.eval()
    z, condition = torch.randn(2, 1, 4, 4, 4)
    with torch.no_grad():
        ours = method._denoise(z, condition)
        schedule.set_timesteps(5)
        for step in schedule.timesteps:
            z = schedule.step(method.average.module[0](z, condition, step[None]), step, z).prev_sample
    torch.testing.assert_close(ours, z, atol=1e-4, rtol=1e-3)


def test_the_losses_are_their_formulas():
    output, target = torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 3.0)
    weight = torch.tensor([[1.0, 0.5], [0, 0]])[None, None]
    assert diffusion_loss(output, target, weight) == 9 * 1.5 / 4
    assert estimate_loss(output, target, weight) == 3 * 1.5 / 4
    judged = torch.randn(6, 3, 2, 2)
    expected = F.cross_entropy(judged.movedim(1, -1).reshape(-1, 3), torch.tensor([0, 1, 2]).repeat_interleave(8))
    torch.testing.assert_close(discriminator_loss(judged), expected)
    torch.testing.assert_close(adversarial_loss(judged[2:]), -judged[2:].log_softmax(1)[:, 0].mean())


@pytest.mark.parametrize("reading", ["label", "image"])
@pytest.mark.parametrize("unfrozen", [False, True])
def test_every_term_of_step_2_reaches_the_denoiser_and_only_its_own_player(reading, unfrozen):
    method, data = step2(reading, unfreeze_decoder=unfrozen), batch()
    method._views(data).weight.fill_(1)  # an untrained teacher is sure of nothing
    method._views(data).position.fill_(1)
    terms = method.losses("denoiser", data, 0)
    assert terms.keys() == {
        *(f"{term}_{domain}" for term in ("diffusion", "estimate", "decoded") for domain in ("source", "mixed")),
        "adversarial",
    }  # fmt: skip
    for name, term in terms.items():
        modules = {"denoiser": method.trained[0], "frozen": method.adapted, "average": method.average}
        modules |= {"decoder": method.trained[1]} if unfrozen else {}
        decodes = {"decoder"} if unfrozen and name.startswith("decoded") else set()
        assert reached(term, **modules) == {"denoiser"} | decodes, name
    found = reached(
        method.losses("discriminator", data, 0)["discriminator"],
        denoiser=method.trained, frozen=method.adapted, average=method.average, discriminator=method.discriminator,
    )  # fmt: skip
    assert found == {"discriminator"}
    frozen = {id(p) for p in method.adapted.parameters()}
    players = [{id(p) for p in network.parameters()} for network in method.networks.values()]
    assert list(method.networks) == ["denoiser", "discriminator"]
    assert not players[0] & players[1] and not frozen & (players[0] | players[1])


def test_the_adversary_waits_for_its_warm_up_and_can_be_absent():
    method, data = step2(adversary_warmup=3), batch()
    assert method.losses("denoiser", data, 2)["adversarial"] == 0
    assert method.losses("discriminator", data, 2)["discriminator"] > 0
    assert method.losses("denoiser", data, 3)["adversarial"] > 0
    alone = step2(adversarial_weight=0.0)
    assert list(alone.networks) == ["denoiser"] and "adversarial" not in alone.losses("denoiser", data, 9)
    assert any("parametrizations" in name for name in step2(spectral_norm=True).discriminator.state_dict())


def test_the_players_of_a_step_share_the_mix_and_the_next_step_draws_anew():
    method, data = step2(), batch()
    method.losses("denoiser", data, 0)
    views = method._views(data)
    seen = views.denoised
    method.losses("discriminator", data, 0)
    assert method._views(data) is views and views.denoised is seen and not seen.requires_grad
    assert method._views(dict(data)) is not views  # another micro-batch
    method.after_step(0)
    assert method._views(data) is not views


def test_frozen_networks_stay_as_they_are_in_training():
    method, data = step2(), batch()
    before = copy.deepcopy(method.adapted.state_dict())
    for player in method.networks:
        sum(method.losses(player, data, 0).values()).backward()
    method.train().after_step(0)
    assert not any(module.training for module in [*method.adapted.modules(), *method.average.modules()])
    assert all(torch.equal(value, before[name]) for name, value in method.adapted.state_dict().items())


def test_void_and_padding_weigh_nothing_where_labels_are_diffused():
    method, data = step2(), batch()
    data = {name: value[..., :24, :] for name, value in data.items()}  # padded to 32 rows
    data["label"][1] = 255
    views = method._views(data)
    source = views.position[:2, 0]
    assert views.label.shape[-2:] == (32, 32) and (views.label[:, 24:] == 255).all() and (views.weight[:, 24:] == 0).all()
    assert source[0].tolist() == [[0.5] * 4, [1.0] * 4, [1.0] * 4, [0.0] * 4]  # void rows: half a cell
    assert (source[1] == 0).all()
    assert (step2("image")._views(data).position == 1).all()


@pytest.mark.parametrize("reading", ["label", "image"])
def test_a_prediction_depends_on_its_own_seed_alone(reading):
    method = step2(reading, excluded=[2], draws=2).eval()
    images = torch.rand(3, 3, 40, 33)
    together = method.predict(images, [5, 6, 7])
    assert together.shape == (3, CLASSES, 40, 33) and (together[:, 2] == -math.inf).all()
    kept = [0, 1, 3, 4]
    alone = method.predict(images[1:2], [6])
    torch.testing.assert_close(alone[0, kept], together[1, kept], atol=1e-4, rtol=1e-4)
    other = method.predict(images[1:2], [8])
    assert (alone - other)[0, kept].abs().max() > 1e-4
    torch.testing.assert_close(together.exp().sum(1), torch.ones(3, 40, 33))


@pytest.mark.parametrize("steps, draws", [(1, 1), (2, 3), (7, 2)])
def test_steps_and_draws_are_the_users_and_uncertainty_is_in_range(steps, draws):
    method = step2().eval()
    method.sampling_steps, method.draws = steps, draws
    with torch.inference_mode():
        logits, maps = method.predict_with_uncertainty(torch.rand(2, 3, 32, 40))
    assert maps.keys() == {"entropy", "spread"} and logits.shape == (2, CLASSES, 32, 40)
    for value in maps.values():
        assert value.shape == (2, 32, 40) and value.min() >= 0 and value.max() <= 1 + 1e-6
    assert (maps["spread"] <= maps["entropy"] + 1e-6).all()
    assert (maps["spread"].max() < 1e-5) == (draws == 1)


@pytest.mark.parametrize("unfrozen", [False, True])
def test_a_checkpoint_of_step_2_needs_no_run_of_step_1(unfrozen):
    method, other = step2(unfreeze_decoder=unfrozen), step2(unfreeze_decoder=unfrozen)
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.01 * torch.randn_like(p))
    other.load_state_dict(method.state_dict())
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(method.eval().predict(image), other.eval().predict(image))
    storages = [tensor.data_ptr() for tensor in method.state_dict().values() if tensor.numel()]
    assert len(storages) == len(set(storages))  # safetensors refuses shared ones


def test_gradient_checkpointing_changes_no_gradient():
    data, found = batch(), []
    for switch in (False, True):
        method = step1(gradient_checkpointing=switch)
        torch.manual_seed(3)
        sum(method.losses("segmenter", data, 0).values()).backward()
        second = step2(gradient_checkpointing=switch)
        assert second.trained[0].unet.is_gradient_checkpointing == switch
        torch.manual_seed(3)
        sum(second.losses("denoiser", data, 0).values()).backward()
        found.append([p.grad for m in (method, second) for network in m.networks.values() for p in network.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("reading", ["label", "image"])
def test_both_steps_learn_one_batch(reading):
    data, method = batch(), step1(reading=reading)
    before = _terms(method, "segmenter", data)
    _fit(method, data, 8)
    assert _terms(method, "segmenter", data)["source"] < 0.9 * before["source"]
    second = AdversarialDiffusion(method, unet_channels=(8, 16), adversary_warmup=6).train()
    before = [_terms(second, player, data) for player in second.networks]
    _fit(second, data, 12)
    denoiser, discriminator = (_terms(second, player, data) for player in second.networks)
    assert denoiser["diffusion_source"] < 0.9 * before[0]["diffusion_source"]
    assert denoiser["estimate_source"] < 0.9 * before[0]["estimate_source"]
    assert discriminator["discriminator"] < before[1]["discriminator"]


@torch.no_grad()
def _terms(method, player, data):
    """The losses at the same draws: of mix, time and noise."""
    torch.manual_seed(9)
    return method.losses(player, dict(data), 0)


def _fit(method, data, steps):
    torch.manual_seed(0)
    optimizers = {
        player: torch.optim.AdamW([{"params": p, "lr": 3e-3 * min(factor, 2)} for p, factor in method.parameter_groups(player)])
        for player in method.networks
    }
    for step in range(steps):
        for player, optimizer in optimizers.items():
            optimizer.zero_grad()
            sum(method.losses(player, data, step).values()).backward()
            optimizer.step()
        method.after_step(step)
