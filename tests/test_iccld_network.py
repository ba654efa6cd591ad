import pytest
import torch
from iccld_parts import CLASSES, segmenter
from safetensors.torch import save_file

from segshift import networks
from segshift.config import ICCLDNetworkConfig, NetworkConfig
from segshift.networks.iccld import Encoder, LabelEncoder, RunningNorm
from segshift.networks.weights import load_weights
from segshift.runs import InputError


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


def test_models_builds_it_by_name_and_takes_a_local_backbone(tmp_path):
    import timm

    config = NetworkConfig(
        name="iccld", encoder="test_resnet", pretrained=False, iccld=ICCLDNetworkConfig(latent_channels=6)
    )
    network = networks.build(config, 7)
    assert network.network.latent_channels == 6 and network.feature_channels == 96
    source = timm.create_model("test_resnet", pretrained=False)
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    load_weights(network, tmp_path / "backbone.safetensors")
    assert torch.equal(network.network.encoder.model.conv1[0].weight, source.conv1[0].weight)
    with pytest.raises(InputError, match="no_such_backbone"):
        networks.build(NetworkConfig(name="iccld", encoder="no_such_backbone", pretrained=False), 7)


def test_a_backbone_without_the_four_strides_is_refused(monkeypatch):
    coarse = torch.nn.Identity()
    coarse.feature_info, coarse.forward_intermediates = (
        [{"reduction": s, "num_chs": 8} for s in (2, 4, 8, 16)],
        None,
    )
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
