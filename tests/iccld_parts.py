"""Small networks and batches of ICCLD."""

import torch

from segshift.config import ICCLDConfig
from segshift.methods.iccld.diffusion import AdversarialDiffusion
from segshift.methods.iccld.self_training import SelfTraining
from segshift.networks.iccld import LatentSegmenter
from segshift.networks.segmenter import Segmenter

CLASSES = 5


def segmenter(encoder="test_resnet", inter_coder=True):
    torch.manual_seed(0)
    network = LatentSegmenter(
        encoder, CLASSES, pretrained=False, latent_channels=4, inter_coder=inter_coder, width=16
    )
    return Segmenter(network, CLASSES, "encoder")


def step1(inter_coder=True, excluded=(), things=(), head_lr=10.0, **options):
    """With E_y, which is one part more to train, unless `diffused` says otherwise."""
    config = ICCLDConfig(**{"diffused": "label"} | options)
    return SelfTraining(
        segmenter(inter_coder=inter_coder), config, excluded=excluded, things=things, head_lr=head_lr
    ).train()


def step2(diffused="label", excluded=(), random=False, **options):
    """`random`: with weights of its own in the UNet's last layer, which begins with zeros."""
    options = {"unet_channels": (8, 16), "adversary_warmup": 0, "diffused": diffused} | options
    method = AdversarialDiffusion(step1(excluded=excluded, diffused=diffused), ICCLDConfig(**options)).train()
    if random:
        torch.nn.init.normal_(method.trained.denoiser.unet.conv_out.weight, std=0.1)
    return method


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


def losses(method, player, data, step=0):
    """Of one player, on views of its own."""
    return method.losses(player, method.prepare(data), step)


@torch.no_grad()
def terms_of(method, player, data):
    """The losses at the same draws: of mix, time and noise."""
    torch.manual_seed(9)
    return losses(method, player, data)


def fit(method, data, steps):
    torch.manual_seed(0)
    optimizers = {
        player: torch.optim.AdamW(
            [{"params": p, "lr": 3e-3 * min(factor, 2)} for p, factor in method.parameter_groups(player)]
        )
        for player in method.networks
    }
    for step in range(steps):
        prepared = method.prepare(data)
        for player, optimizer in optimizers.items():
            optimizer.zero_grad()
            sum(method.losses(player, prepared, step).values()).backward()
            optimizer.step()
        method.after_step(step)
