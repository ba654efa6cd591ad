"""ICCLD: latent diffusion with inter-coder connections, for unsupervised adaptation of segmentation.

Yu, Sun, Chi, Yang, Luo, "Adversarially Domain-adaptive Latent Diffusion for Unsupervised Semantic
Segmentation", arXiv 2412.16859 (CVPR 2025 workshop PVUW). No code was published. The order below is the
paper's.

| symbol | meaning | shape |
|---|---|---|
| x^s, y^s, x^t | source image and label, target image | [B, 3, H, W] in [0, 1], [B, H, W] |
| x^mix, y^mix | ClassMix of both (classmix.py), with pixel weights w | as above, w [B, H, W] |
| E, D, E_y | encoder, decoder, label encoder (networks/iccld.py) | |
| skips | the inter-coder connections: features of E that D is given besides the latent | strides 4 and 8 |
| z_x, z_y | image latent E(x), label latent E_y(y) | [B, K, h, w], h = H/8 |
| z_0, z_t, z_T | clean, noisy latent, pure noise | [B, K, h, w] |
| eps_theta | denoiser: [z_t ; condition], t to a prediction of eps or v | [B, K, h, w] |
| zhat_0 | z_0 as one prediction implies it | [B, K, h, w] |
| abar_t | cumulated product of the noise schedule, t = 0 .. T - 1, T = 1000 | |
| A | discriminator: zhat_0 to source / mixed / target | [B, 3, h', w'] |
| q, a | pixels of a pseudo-label that count, share that the teacher keeps | |

What the paper is known to say (its abstracts and captions; its equations and settings are not known to us):
- a network of E, D and a latent diffusion eps_theta between them, with connections from E to D;
- prediction draws z_T, concatenates E(x), denoises, and decodes with the connections;
- step 1 adapts E and D with ClassMix; step 2 trains eps_theta against a discriminator that tells source,
  mixed and target; a second network follows the trained one as a moving average.
What is ours: everything else, from relatives that say what they do: CBST (q), DACS (threshold), DAFormer
(augmentation, teacher, learning rates, feature distance), MIC (masked consistency), SDSeg (zhat_0 pulled to
z_0), ADVENT (weight of the adversary), LDMSeg and DDP (diffusing labels). So no number that this code reaches
reproduces the paper's: 74.4 (GTA5 to Cityscapes) and 67.2 mIoU (SYNTHIA to Cityscapes) are the paper's alone.

Decisions where the paper leaves a choice:
- `diffused`: with E(x) as both z_0 and condition, the noise could be computed and nothing would be learnt.
  "label" diffuses z_y on the condition z_x; "image" diffuses E(x) on the condition E(augmented x), and is the
  default: it scored higher in every seed that was compared (LOG.md).
- The paper's caption calls the trained network teacher and its average student. Here as elsewhere in the
  field the student is trained, and the teacher is its average and makes the pseudo-labels.
- The average predicts, in step 1 and in step 2, and its E, D and (with "label") E_y are the ones that step 2
  starts from and leaves as they are. It is exact in batch-norm and latent statistics, and always in
  evaluation mode.
- v counts from the condition: v = F_theta - sqrt(1 - abar_t) z_x, with F_theta = 0 before training. So from
  pure noise zhat_0 = z_x and the mask is step 1's, and what is learnt is what to change in it. Without, with
  "label", hundreds of steps went into learning z_x -> z_y anew (LOG.md).
- A copy of D is trained with eps_theta (`unfreeze_decoder`): D has seen no zhat_0. With "label" it has learnt
  from z_y, which is always right, to trust a label latent blindly.
- Cross entropies and noise terms weigh 1; what has a weight of its own in ICCLDConfig weighs that.
- One DDIM step from pure noise is the default: the mean of the masks. With "label" more steps draw one of
  them, which is sharper and scored lower; with "image" all draws are nearly one (LOG.md).
- In step 1 batch norm sees one domain at a time, and predicts with the target's statistics
  (self_training.py).
- D(z_y, skips) = y trains E_y and D; the skips are constants in it, for it knows the answer already.
- With "label", pixels without a label weigh nothing in the diffusion terms, pseudo-labels weigh w; with
  "image" the diffused variable needs no label, and all positions weigh 1.
- The discriminator sees t of the low half, where zhat_0 is a latent and not a mean of many. It is trained by
  the run's own optimizer, with the denoiser's learning rate and warm-up (1e-4 in the published recipes,
  ADVENT's).
- Where eps is predicted, pure noise says nothing and one step would magnify its error: ten DDIM steps are the
  default.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from segshift.data import transforms
from segshift.data.labels import IGNORE
from segshift.generators import schedule
from segshift.generators.schedule import Points
from segshift.methods.base import Batch, Method, weighted_cross_entropy
from segshift.methods.iccld import ICCLDConfig
from segshift.methods.iccld.classmix import mixed, pseudo_label, strong_view
from segshift.methods.iccld.self_training import SelfTraining, average_of, latent_network, pad_label
from segshift.networks.iccld import LATENT_STRIDE, Decoder, Denoiser, Discriminator, LatentSegmenter
from segshift.networks.segmenter import Segmenter
from segshift.runs import InputError

T = 1000
"""Length of the noise schedule."""


def diffusion_loss(output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """||eps - eps_theta||^2, the mean over positions [B, K, h, w], each times its weight [B, 1, h, w]."""
    return (weight * (output - target) ** 2).mean()


def estimate_loss(zhat_0: Tensor, z_0: Tensor, weight: Tensor) -> Tensor:
    """|zhat_0 - z_0|, the mean over positions, each times its weight: SDSeg's pull, here as a distance."""
    return (weight * (zhat_0 - z_0).abs()).mean()


def discriminator_loss(domain_logits: Tensor) -> Tensor:
    """CE(A(zhat_0), domain), domain_logits: [3B, 3, h, w] of B source, B mixed and B target latents."""
    domain = torch.arange(3, device=domain_logits.device).repeat_interleave(len(domain_logits) // 3)
    return F.cross_entropy(domain_logits.float(), domain[:, None, None].expand(-1, *domain_logits.shape[2:]))


def adversarial_loss(domain_logits: Tensor) -> Tensor:
    """CE(A(zhat_0), source), domain_logits: [2B, 3, h, w] of mixed and target latents: lower as they pass for
    source.
    """
    return F.cross_entropy(domain_logits.float(), torch.zeros_like(domain_logits[:, 0], dtype=torch.long))


@dataclass
class Views:
    """What the players share of one batch, the mix and the latents; order of the domains: source, mixed,
    target.
    """

    z_0: Tensor
    """[3B, K, h, w]"""
    condition: Tensor
    """[3B, K, h, w]"""
    skips: list[Tensor]
    """Of source and mixed, [2B, ...]."""
    label: Tensor
    """[2B, H, W], padded as images are."""
    weight: Tensor
    """[2B, H, W]"""
    position: Tensor
    """Weight of the latents' positions [2B, 1, h, w]."""
    denoised: Tensor | None = None
    """zhat_0 [3B, K, h, w] as the discriminator sees it, without gradient; from the denoiser's turn."""


class Trained(nn.Module):
    """What step 2 trains besides the discriminator: eps_theta, and D where it is unfrozen."""

    def __init__(self, denoiser: Denoiser, decoder: Decoder | None):
        super().__init__()
        self.denoiser, self.decoder = denoiser, decoder


class AdversarialDiffusion(Method):
    """Step 2. Players: eps_theta (with D where it is unfrozen), then the discriminator."""

    abar: Tensor
    frozen: Tensor | None

    def __init__(self, step1: SelfTraining, config: ICCLDConfig):
        """The networks of step 1's teacher and its class set are taken over; its student and settings are
        not.
        """
        super().__init__(step1.excluded)
        self.adapted, self.config = step1.teacher.module, config
        self.sampling_steps, self.draws = (1 if config.prediction == "v_prediction" else 10), 1
        network = self.network
        denoiser = Denoiser(network.latent_channels, config.unet_channels, config.unet_layers)
        decoder = copy.deepcopy(network.decoder).requires_grad_(True) if config.unfreeze_decoder else None
        self.trained = Trained(denoiser, decoder).to(memory_format=torch.channels_last)
        self.average = average_of(self.trained, config.momentum)
        self.discriminator = (
            Discriminator(network.latent_channels, spectral=config.spectral_norm)
            if config.adversarial_weight
            else None
        )
        # With v the last step is pure noise, as prediction starts; eps says nothing there.
        self.schedule = DDIMScheduler(
            T,
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing="trailing",
            rescale_betas_zero_snr=config.prediction == "v_prediction",
        )
        self.register_buffer("abar", self.schedule.alphas_cumprod.view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("frozen", None, persistent=False)  # z_T of an export

    @property
    def segmenter(self) -> Segmenter:
        """Step 1's E and D, frozen."""
        return self.adapted.segmenter

    @property
    def network(self) -> LatentSegmenter:
        return latent_network(self.segmenter)

    @property
    def networks(self) -> dict[str, nn.Module]:
        players: dict[str, nn.Module] = {"denoiser": self.trained}
        return players if self.discriminator is None else players | {"discriminator": self.discriminator}

    def train(self, mode: bool = True) -> AdversarialDiffusion:
        super().train(mode)
        self.adapted.eval()
        self.average.eval()
        return self

    def checkpoint_gradients(self) -> None:
        self.trained.denoiser.checkpoint_gradients()

    def losses(self, player: str, prepared: Views, step: int) -> dict[str, Tensor]:
        if player == "discriminator":
            if prepared.denoised is None:
                prepared.denoised = self._denoised(prepared, False)
            assert self.discriminator is not None
            return {"discriminator": discriminator_loss(self.discriminator(prepared.denoised))}
        return self._diffusion(prepared) | self._adversary(prepared, step)

    def _diffusion(self, views: Views) -> dict[str, Tensor]:
        """Noise, zhat_0 and its mask, of source and mixed."""
        count = len(views.label)
        z_0, condition = views.z_0[:count], views.condition[:count]
        t = torch.randint(T, (count,), device=z_0.device)
        eps, point = torch.randn_like(z_0), self._point(t)
        z_t = schedule.noised(z_0, eps, point)
        output = self._output(self.trained, z_t, condition, t)
        _, zhat_0 = schedule.eps_and_x0(self.config.prediction, output, z_t, point)
        logits = self._decode(self.trained, zhat_0, views.skips, views.label.shape[-2:])
        target = schedule.target(self.config.prediction, z_0, eps, point)
        terms = {}
        for name, part in (("source", slice(count // 2)), ("mixed", slice(count // 2, count))):
            position = views.position[part]
            terms[f"diffusion_{name}"] = diffusion_loss(output[part], target[part], position)
            terms[f"estimate_{name}"] = self.config.estimate_weight * estimate_loss(
                zhat_0[part], z_0[part], position
            )
            decoded = weighted_cross_entropy(logits[part], views.label[part], views.weight[part])
            terms[f"decoded_{name}"] = self.config.decoded_weight * decoded
        return terms

    def _adversary(self, views: Views, step: int) -> dict[str, Tensor]:
        """The reward for passing mixed and target for source; nothing while the discriminator warms up."""
        if self.discriminator is None:
            return {}
        acts = step >= self.config.adversary_warmup
        zhat_0 = self._denoised(views, acts)
        views.denoised = zhat_0.detach()
        if not acts:
            return {"adversarial": zhat_0.new_zeros(())}
        others = zhat_0[len(zhat_0) // 3 :]
        return {"adversarial": self.config.adversarial_weight * adversarial_loss(self.discriminator(others))}

    def _denoised(self, views: Views, graph: bool) -> Tensor:
        """zhat_0 [3B, K, h, w] of all domains, from t in the low half. `graph`: with a gradient, but not of
        the source's, which has nothing to pass for."""
        z_0, count = views.z_0, len(views.z_0) // 3
        t = torch.randint(T // 2, (len(z_0),), device=z_0.device)
        point = self._point(t)
        z_t = schedule.noised(z_0, torch.randn_like(z_0), point)
        outputs = []
        for part, gradient in ((slice(count), False), (slice(count, None), graph)):
            with torch.set_grad_enabled(gradient):
                outputs.append(self._output(self.trained, z_t[part], views.condition[part], t[part]))
        return schedule.eps_and_x0(self.config.prediction, torch.cat(outputs), z_t, point)[1]

    def _point(self, t: Tensor | int) -> Points:
        """The points at t [B], or at one t for all latents."""
        return Points.of(self.abar[t])

    def _output(self, trained: Trained, z_t: Tensor, condition: Tensor, t: Tensor) -> Tensor:
        """What eps_theta predicts. v counts from the condition, v = F_theta - sqrt(1 - abar_t) z_x: from pure
        noise an F_theta of 0 gives zhat_0 = z_x, so that the diffusion starts at step 1 and learns what to
        change in it."""
        output = trained.denoiser(z_t, condition, t)
        return output if self.config.prediction == "epsilon" else output - self._point(t).b * condition

    def _decode(self, trained: Trained, z: Tensor, skips: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """D(z, skips) [B, C, H, W], by the trained decoder where there is one."""
        return (trained.decoder or self.network.decoder)(z, skips, size)

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Views:
        """batch: source and target [B, 3, H, W], label [B, H, W] of the source. All players see the
        same mix."""
        x_s, y_s, x_t = batch["source"], batch["label"], batch["target"]
        network, prepare = self.network, self.segmenter.prepare
        count, (height, width) = len(x_s), y_s.shape[-2:]
        x = prepare(torch.cat([x_s, x_t]))
        size = x.shape[-2:]
        z, skips = network.encode(x)
        logits = network.decode(z[count:], [skip[count:] for skip in skips], size)[..., :height, :width]
        p = self.restrict(logits).float().softmax(1)
        y_t, _, q = pseudo_label(p, self.adapted.thresholds.within(self.config.threshold))
        x_mix, y_mix, w = mixed(x_s, y_s, x_t, y_t, q, self.config.augmentation)
        z_mix, skips_mix = network.encode(prepare(x_mix))

        images = torch.cat([z[:count], z_mix, z[count:]])
        label = pad_label(torch.cat([y_s, y_mix]), size)
        weight = pad_label(torch.cat([torch.ones_like(w), w]), size, value=0)
        if self.config.diffused == "label":
            assert self.adapted.label_encoder is not None
            z_0, condition = self.adapted.label_encoder(torch.cat([label, pad_label(y_t, size)])), images
            position = F.avg_pool2d((weight * (label != IGNORE))[:, None], LATENT_STRIDE)
        else:
            view = strong_view(torch.cat([x_s, x_mix, x_t]), self.config.augmentation)
            z_0, condition = images, network.encode(prepare(view))[0]
            position = torch.ones_like(images[: 2 * count, :1])
        both = [torch.cat([skip[:count], skip_mix]) for skip, skip_mix in zip(skips, skips_mix, strict=True)]
        return Views(z_0, condition, both, label, weight, position)

    def after_step(self, step: int) -> None:
        self.average.update_parameters(self.trained)

    # --------------------------------------------------------------------- prediction

    prediction_options = ("sampling_steps", "draws")

    def set_prediction(self, **options: int) -> None:
        if (steps := options.get("sampling_steps", 1)) > T:
            raise InputError(f"--sampling-steps is {steps}: expected 1 to {T}, the steps of the schedule")
        for name, value in options.items():
            setattr(self, name, value)

    @property
    def sampling(self) -> str:
        steps, draws = "s" * (self.sampling_steps > 1), "s" * (self.draws > 1)
        return f"{self.sampling_steps} DDIM step{steps}, {self.draws} draw{draws}"

    def predict(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return self._masks(images, seeds)[0]

    def predict_with_uncertainty(
        self, images: Tensor, seeds: Sequence[int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`predict`, and the entropy of the mean of the draws, and of several their spread: the part of it by
        which they differ."""
        logits, within = self._masks(images, seeds)
        entropy = self.entropy(logits.exp())
        return logits, {"entropy": entropy} | (
            {"spread": (entropy - within).clamp(min=0)} if self.draws > 1 else {}
        )

    def _masks(self, images: Tensor, seeds: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """log of the draws' mean probability [B, C, H, W], and the mean of their entropies [B, H, W]."""
        total: Tensor | None = None
        within = torch.zeros((), device=images.device)
        for logits in self._draws(images, [0] * len(images) if seeds is None else seeds):
            log_p = self.restrict(logits).float().log_softmax(1)
            total = log_p if total is None else torch.logaddexp(total, log_p)
            within = within + self.entropy(log_p.exp()) / self.draws
        assert total is not None
        return (total - torch.tensor(float(self.draws)).log()), within

    def _draws(self, images: Tensor, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Logits [B, C, H, W] of each draw of z_T, which is a function of the image's seed and the draw's
        number.
        """
        height, width = images.shape[-2:]
        x = self.segmenter.prepare(images)
        z_x, skips = self.network.encode(x)
        z_T = self._noise(z_x, seeds) if self.frozen is None else self.frozen
        for z in self._denoise(z_T, z_x.repeat(self.draws, 1, 1, 1)).chunk(self.draws):
            yield self._decode(self.average.module, z, skips, x.shape[-2:])[..., :height, :width]

    def _noise(self, z_x: Tensor, seeds: Sequence[int]) -> Tensor:
        """z_T of every draw, one after the other, like z_x."""
        rngs = [transforms.generator(seed, "draw", draw) for draw in range(self.draws) for seed in seeds]
        return torch.stack([torch.randn(z_x.shape[1:], generator=rng) for rng in rngs]).to(z_x)

    @torch.no_grad()
    def freeze_draws(self, images: Tensor) -> None:
        z_x, _ = self.network.encode(self.segmenter.prepare(images))
        self.frozen = self._noise(z_x, [0] * len(images))

    def _denoise(self, z: Tensor, condition: Tensor) -> Tensor:
        """z_T to z_0 in `sampling_steps` (DDIM, eq. 12 without noise), from the last time step down."""
        self.schedule.set_timesteps(self.sampling_steps)
        steps = self.schedule.timesteps[
            : self.sampling_steps
        ].tolist()  # for some counts diffusers adds a t of -1
        for t, then in itertools.pairwise([*steps, None]):
            output = self._output(
                self.average.module, z, condition, torch.full((len(z),), t, device=z.device)
            )
            eps, zhat_0 = schedule.eps_and_x0(self.config.prediction, output, z, self._point(t))
            z = zhat_0 if then is None else schedule.noised(zhat_0, eps, self._point(then))
        return z
