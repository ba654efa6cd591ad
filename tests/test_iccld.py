import copy
import math

import pytest
import torch
import torch.nn.functional as F
from iccld_parts import CLASSES, batch, fit, losses, reached, step1, step2, terms_of

from segshift.config import ICCLDConfig, StrongAugmentation
from segshift.generators import schedule
from segshift.generators.schedule import Points
from segshift.methods.iccld.diffusion import (
    AdversarialDiffusion,
    adversarial_loss,
    diffusion_loss,
    discriminator_loss,
    estimate_loss,
)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_implies_the_clean_latent_and_its_noise(prediction):
    z_0, eps = torch.randn(2, 3, 4, 4, 4)
    points = Points.of(torch.tensor([0.9, 0.5, 0.1]).view(3, 1, 1, 1))
    output = schedule.target(prediction, z_0, eps, points)
    found = schedule.eps_and_x0(prediction, output, schedule.noised(z_0, eps, points), points)
    for value, expected in zip(found, (eps, z_0), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_formulas_and_schedule_are_diffusers(prediction):
    method = step2(prediction=prediction)
    ddim, points = method.schedule, Points.of(method.abar[[10, 700]])
    z_0, eps, t = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4), torch.tensor([10, 700])
    torch.testing.assert_close(schedule.noised(z_0, eps, points), ddim.add_noise(z_0, eps, t))
    v = schedule.target("v_prediction", z_0, eps, points)
    torch.testing.assert_close(v, ddim.get_velocity(z_0, eps, t))
    assert (method.abar[-1] < 1e-6) == (prediction == "v_prediction")
    method.schedule.register_to_config(prediction_type=prediction, clip_sample=False)
    method.sampling_steps = 5
    method.eval()
    z, condition = torch.randn(2, 1, 4, 4, 4)
    with torch.no_grad():
        ours = method._denoise(z, condition)
        ddim.set_timesteps(5)
        for step in ddim.timesteps:
            z = ddim.step(
                method._output(method.average.module, z, condition, step[None]), step, z
            ).prev_sample
    torch.testing.assert_close(ours, z, atol=1e-4, rtol=1e-3)


def test_the_losses_are_their_formulas():
    output, target = torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 3.0)
    weight = torch.tensor([[1.0, 0.5], [0, 0]])[None, None]
    assert diffusion_loss(output, target, weight) == 9 * 1.5 / 4
    assert estimate_loss(output, target, weight) == 3 * 1.5 / 4
    judged = torch.randn(6, 3, 2, 2)
    expected = F.cross_entropy(
        judged.movedim(1, -1).reshape(-1, 3), torch.tensor([0, 1, 2]).repeat_interleave(8)
    )
    torch.testing.assert_close(discriminator_loss(judged), expected)
    torch.testing.assert_close(adversarial_loss(judged[2:]), -judged[2:].log_softmax(1)[:, 0].mean())


@pytest.mark.parametrize("reading", ["label", "image"])
@pytest.mark.parametrize("unfrozen", [False, True])
def test_every_term_of_step_2_reaches_the_denoiser_and_only_its_own_player(reading, unfrozen):
    method = step2(reading, unfreeze_decoder=unfrozen, random=True)
    views = method.prepare(batch())
    views.weight.fill_(1)  # an untrained teacher is sure of nothing
    views.position.fill_(1)
    terms = method.losses("denoiser", views, 0)
    assert terms.keys() == {
        *(
            f"{term}_{domain}"
            for term in ("diffusion", "estimate", "decoded")
            for domain in ("source", "mixed")
        ),
        "adversarial",
    }
    for name, term in terms.items():
        modules = {
            "denoiser": method.trained.denoiser.unet.conv_in,
            "frozen": method.adapted,
            "average": method.average,
        }
        modules |= {"decoder": method.trained.decoder} if unfrozen else {}
        decodes = {"decoder"} if unfrozen and name.startswith("decoded") else set()
        assert reached(term, **modules) == {"denoiser"} | decodes, name
    found = reached(
        method.losses("discriminator", views, 0)["discriminator"],
        denoiser=method.trained,
        frozen=method.adapted,
        average=method.average,
        discriminator=method.discriminator,
    )
    assert found == {"discriminator"}
    frozen = {id(p) for p in method.adapted.parameters()}
    players = [{id(p) for p in network.parameters()} for network in method.networks.values()]
    assert list(method.networks) == ["denoiser", "discriminator"]
    assert not players[0] & players[1] and not frozen & (players[0] | players[1])


def test_the_adversary_waits_for_its_warm_up_and_can_be_absent():
    method, data = step2(adversary_warmup=3), batch()
    assert losses(method, "denoiser", data, 2)["adversarial"] == 0
    assert losses(method, "discriminator", data, 2)["discriminator"] > 0
    assert losses(method, "denoiser", data, 3)["adversarial"] > 0
    alone = step2(adversarial_weight=0.0)
    assert list(alone.networks) == ["denoiser"] and "adversarial" not in losses(alone, "denoiser", data, 9)
    assert any("parametrizations" in name for name in step2(spectral_norm=True).discriminator.state_dict())


def test_the_discriminator_judges_what_the_denoiser_made_of_the_same_mix():
    method, data = step2(), batch()
    views = method.prepare(data)
    method.losses("denoiser", views, 0)
    seen = views.denoised
    method.losses("discriminator", views, 0)
    assert views.denoised is seen and not seen.requires_grad
    other = method.prepare(data)  # nothing of a batch is kept: it is drawn anew
    assert other.denoised is None and not torch.equal(other.z_0, views.z_0)


def test_the_frozen_encoder_sees_a_batch_once_for_both_players_and_a_picture_once_for_all_draws():
    method, data, seen = step2(diffused="image"), batch(), []
    method.network.encoder.register_forward_hook(lambda _module, given, _made: seen.append(len(given[0])))
    prepared = method.prepare(data)
    assert sum(seen) == 2 * 2 + 2 + 3 * 2  # source and target, their mix, and an augmented view of each
    for player in method.networks:
        method.losses(player, prepared, 0)
    assert sum(seen) == 12
    method.sampling_steps, method.draws = 3, 2
    method.eval().predict(data["source"], [0, 1])
    assert seen[-1] == 2 and sum(seen) == 14


def test_frozen_networks_stay_as_they_are_in_training():
    method, data = step2(), batch()
    before = copy.deepcopy(method.adapted.state_dict())
    fit(method.train(), data, 2)
    assert not any(module.training for module in [*method.adapted.modules(), *method.average.modules()])
    assert all(torch.equal(value, before[name]) for name, value in method.adapted.state_dict().items())


def test_void_and_padding_weigh_nothing_where_labels_are_diffused():
    method, data = step2(), batch()
    data = {name: value[..., :24, :] for name, value in data.items()}  # padded to 32 rows
    data["label"][1] = 255
    views = method.prepare(data)
    source = views.position[:2, 0]
    assert (
        views.label.shape[-2:] == (32, 32)
        and (views.label[:, 24:] == 255).all()
        and (views.weight[:, 24:] == 0).all()
    )
    assert source[0].tolist() == [[0.5] * 4, [1.0] * 4, [1.0] * 4, [0.0] * 4]  # void rows: half a cell
    assert (source[1] == 0).all()
    assert (step2("image").prepare(data).position == 1).all()


@pytest.mark.parametrize("reading", ["label", "image"])
def test_a_prediction_depends_on_its_own_seed_alone(reading):
    method = step2(reading, excluded=[2]).eval()
    method.draws = 2
    torch.nn.init.normal_(
        method.average.module.denoiser.unet.conv_out.weight
    )  # untrained it is zero, and no noise matters
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
    assert maps.keys() == {"entropy"} | ({"spread"} if draws > 1 else set()) and logits.shape == (
        2,
        CLASSES,
        32,
        40,
    )
    for value in maps.values():
        assert value.shape == (2, 32, 40) and value.min() >= 0 and value.max() <= 1 + 1e-6
    if draws > 1:
        assert (maps["spread"] <= maps["entropy"] + 1e-6).all() and maps["spread"].max() > 1e-5


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


def test_gradient_checkpointing_keeps_less_and_changes_no_gradient():
    data, found, kept = batch(), [], []
    for switch in (False, True):
        method, second = step1(), step2(random=True)
        for one in (method, second) if switch else ():
            one.checkpoint_gradients()
        for one, player in ((method, "segmenter"), (second, "denoiser")):
            numbers: list[int] = []
            torch.manual_seed(3)
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t, n=numbers: n.append(t.numel()) or t, lambda t: t
            ):
                loss = sum(losses(one, player, data).values())
            kept.append(sum(numbers))
            loss.backward()
        found.append(
            [
                p.grad
                for m in (method, second)
                for network in m.networks.values()
                for p in network.parameters()
            ]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert kept[2] < 0.9 * kept[0] and kept[3] < 0.9 * kept[1]


@pytest.mark.parametrize("reading", ["label", "image"])
@pytest.mark.parametrize("label", [255, 3], ids=["void alone", "one class alone"])
def test_step_2_trains_on_a_label_of_void_or_of_one_class_and_an_unsure_teacher(label, reading):
    data, method = batch(), step2(reading, threshold=1.0)  # no pseudo-label counts
    data["label"] = torch.full_like(data["label"], label)
    before = [p.clone() for p in method.trained.parameters()]
    fit(method, data, 1)
    assert all(p.isfinite().all() for network in method.networks.values() for p in network.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(method.trained.parameters(), before, strict=True))


def test_eps_is_sampled_in_ten_steps_for_pure_noise_says_nothing_of_it():
    assert step2(prediction="epsilon").sampling_steps == 10 and step2().sampling_steps == 1


def test_step_2_starts_from_the_prediction_of_step_1():
    method, images = step2().eval(), batch()["target"]
    with torch.no_grad():
        first = method.segmenter(images)
        torch.testing.assert_close(method.predict(images).softmax(1), first.softmax(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("reading", "steps"), [("label", 20), ("image", 40)])
def test_both_steps_learn_one_batch(reading, steps):
    data, method = batch(), step1(diffused=reading)
    before = terms_of(method, "segmenter", data)
    fit(method, data, 3)
    assert terms_of(method, "segmenter", data)["source"] < 0.9 * before["source"]
    second = AdversarialDiffusion(
        method, ICCLDConfig(diffused=reading, unet_channels=(8, 16), adversary_warmup=6)
    ).train()
    before = [terms_of(second, player, data) for player in second.networks]
    fit(second, data, steps)
    denoiser, discriminator = (terms_of(second, player, data) for player in second.networks)
    assert denoiser["diffusion_source"] < 0.95 * before[0]["diffusion_source"]
    assert denoiser["estimate_source"] < 0.95 * before[0]["estimate_source"]
    assert discriminator["discriminator"] < before[1]["discriminator"]


@pytest.mark.parametrize("reading", ["label", "image"])
def test_a_reading_says_what_is_diffused_on_which_condition(reading):
    """label: E_y(y) on E(x). image: E(x) on E(augmented x), which without augmentation is the same latent."""
    plain = StrongAugmentation(jitter_probability=0.0, blur_probability=0.0)
    for augmentation in (plain, StrongAugmentation(jitter=0.9, jitter_probability=1.0)):
        method, data = step2(reading, augmentation=augmentation), batch()
        views = method.prepare(data)
        network, prepare = method.segmenter.network, method.segmenter.prepare
        with torch.no_grad():
            images = network.encode(prepare(torch.cat([data["source"], data["target"]])))[0]
        here = [*range(2), *range(4, 6)]  # source and target; the mixed images between are drawn inside
        if reading == "label":
            torch.testing.assert_close(views.condition[here], images)
            torch.testing.assert_close(views.z_0[:2], method.adapted.label_encoder(data["label"]))
        else:
            torch.testing.assert_close(views.z_0[here], images)
            assert torch.allclose(views.condition, views.z_0, atol=1e-6) == (augmentation is plain)
    assert (views.position.min() < 1) == (reading == "label")


def test_any_count_of_ddim_steps_is_that_many_and_none_after_the_last(monkeypatch):
    method = step2().eval()
    asked = []
    monkeypatch.setattr(method, "_output", lambda trained, z, condition, t: asked.append(int(t[0])) or z)
    for steps in (1, 2, 7, 61, 103, 121, 500, 999, 1000):
        method.sampling_steps = steps
        asked.clear()
        method._denoise(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))
        assert (
            len(asked) == steps
            and asked[0] == 999
            and min(asked) >= 0
            and asked == sorted(asked, reverse=True)
        )
