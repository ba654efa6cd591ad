"""Adapters: what is trained, checkpoints, exports, and encoders without such layers."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import training
import trees
from test_export import onnx_file, pt2_file, told
from test_predict import trained

from segshift.config import ExportConfig, NetworkConfig, PredictConfig
from segshift.methods.source_only.training import SourceOnly
from segshift.methods.zodi.adaptation import ZoDi
from segshift.networks import build
from segshift.networks.adapters import merged
from segshift.networks.options import ICCLDNetworkConfig
from segshift.networks.weights import read_pickled
from segshift.runs import InputError
from segshift.scoring import inference
from segshift.stages.export import export
from segshift.stages.predict import predict
from segshift.stages.train import train
from segshift.training import checkpoints

torch.set_num_threads(1)
KINDS = ("lora", "mica")


def tiny(adapter="lora", **changes) -> NetworkConfig:
    plain = NetworkConfig(name="vit", encoder="test_vit", pretrained=False, adapter=adapter, rank=4)
    return replace(plain, **changes)


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """With adapters that say something, as after a training."""
    for name, tensor in module.state_dict().items():
        if ".lora_" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.trees_of(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("adapter", "parts"), [("lora", {"lora_A", "lora_B"}), ("mica", {"lora_A"})])
def test_adapters_in_every_block_and_the_head_are_all_that_is_trained(adapter, parts):
    torch.manual_seed(0)
    plain = build(tiny("none"), 5)
    torch.manual_seed(0)
    segmenter = build(tiny(adapter), 5)
    x = torch.rand(1, 3, 32, 64)
    assert torch.equal(plain(x), segmenter(x))  # they begin as nothing
    names = [name.split(".") for name, p in segmenter.network.named_parameters() if p.requires_grad]
    inside = [name for name in names if name[0] == "encoder"]
    assert {name[-3] for name in inside} == parts and {name[0] for name in names} == {"encoder", "head"}
    found = {(name[3], name[-4]) for name in inside}  # block and layer
    assert found == {(str(i), layer) for i in range(6) for layer in ("qkv", "proj", "fc1", "fc2")}


def test_mica_begins_at_the_smallest_singular_values():
    layer = build(tiny("mica"), 5).encoder.model.blocks[0].mlp.fc1
    u = torch.linalg.svd(layer.base_layer.weight, full_matrices=False)[0]
    found = layer.lora_B["default"].weight
    torch.testing.assert_close((u[:, -4:].mT @ found).abs(), torch.eye(4), atol=1e-4, rtol=0)
    assert layer.scaling["default"] == 1 and not found.requires_grad


@pytest.mark.parametrize("head_lr", [1.0, 10.0])
def test_the_optimizer_keeps_nothing_for_the_frozen_encoder(head_lr):
    method = SourceOnly(build(tiny(), 5), head_lr=head_lr)
    groups = method.parameter_groups("segmenter")
    held = [p for parameters, _ in groups for p in parameters]
    assert {id(p) for p in held} == {id(p) for p in method.parameters() if p.requires_grad}
    assert sum(p.numel() for p in held) < sum(p.numel() for p in method.parameters()) / 4
    assert [factor for _, factor in groups] == ([1.0] if head_lr == 1 else [1.0, 10.0])


def test_gradient_checkpointing_reaches_the_adapters():
    torch.manual_seed(0)
    segmenter, x = moved(build(tiny(), 5)), torch.rand(1, 3, 32, 32)

    def gradients():
        segmenter.zero_grad()
        segmenter(x).sum().backward()
        return [p.grad.clone() for p in segmenter.parameters() if p.requires_grad]

    before = gradients()
    segmenter.checkpoint_gradients()
    torch.testing.assert_close(before, gradients())


@pytest.mark.parametrize("adapter", KINDS)
def test_an_interrupted_training_gives_the_same_bytes_and_moves_the_adapters_alone(
    data, tmp_path, monkeypatch, adapter
):
    config = training.config(
        data, network=tiny(adapter), size=(32, 64), crop=(32, 32), optimizer="adamw", lr=1e-2, steps=3
    )
    train(replace(config, steps=1, checkpoint_every=1), tmp_path / "one")
    with monkeypatch.context() as patch:
        training.copy_in_step(patch, ZoDi, 2, tmp_path / "whole", tmp_path / "parts")
        train(config, tmp_path / "whole")
    assert checkpoints.last_step(tmp_path / "parts") == 2
    train(config, tmp_path / "parts")
    assert training.same(tmp_path / "whole", tmp_path / "parts")
    state = read_pickled(checkpoints._weights(tmp_path / "whole", 3).with_suffix(".state"))
    moments = state["optimizers"]["segmenter"]["state"].values()
    method = checkpoints.load_run(tmp_path / "whole", "last")[0]
    trained_ones = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert sum(moment["exp_avg"].numel() for moment in moments) == trained_ones
    one, whole = training.last(tmp_path / "one"), training.last(tmp_path / "whole")
    changed = {name for name in one if not torch.equal(one[name], whole[name])}
    learnt = ("lora_A", "lora_B") if adapter == "lora" else ("lora_A",)
    assert changed and all(".head." in name or any(part in name for part in learnt) for name in changed)


@pytest.mark.parametrize("encoder", ["test_vit", "test_convnext"])
def test_both_steps_of_iccld_train_adapters_in_their_encoder(data, tmp_path, encoder):
    network = tiny(name="iccld", encoder=encoder, iccld=ICCLDNetworkConfig(latent_channels=4))
    second = training.both_steps(data, network, tmp_path, lr=1e-2, steps=1)
    assert any("lora_B" in name for name in training.last(tmp_path / "second"))
    out = predict(PredictConfig(str(tmp_path / "second"), second.source, device="cpu"), tmp_path / "out")
    assert (out / "predictions.jsonl").is_file()
    with pytest.raises(InputError, match=r"was trained with --network.adapter lora, got none"):
        train(replace(second, network=replace(network, adapter="none")), tmp_path / "other")


@pytest.mark.parametrize(
    ("adapter", "name", "reader"), [("lora", "net.onnx", onnx_file), ("mica", "net.pt2", pt2_file)]
)
def test_adapters_are_merged_for_an_export_and_the_run_stays_as_it_is(
    tmp_path, capsys, adapter, name, reader
):
    day = f"cityscapes:{trees.cityscapes(tmp_path / 'day')}:train"
    run = trained(tmp_path / "run", day, network=tiny(adapter), crop=(32, 32))
    method = moved(checkpoints.load_run(run)[0])
    checkpoints.save_best(run, 3, method, None)
    alone = merged(method)
    assert not any("lora" in name for name in alone.state_dict()) and merged(alone) is alone
    assert any("lora" in name for name in method.state_dict())
    out = export(ExportConfig(str(run)), tmp_path / name)
    count, difference, equal = told(capsys.readouterr().out)
    assert count == 3 and difference < 1e-3 and equal > 99.9
    images = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    expected, _ = inference.infer(method, images)
    torch.testing.assert_close(torch.from_numpy(reader(out)(images / 255)), expected, atol=1e-3, rtol=1e-3)


def test_a_file_with_adapters_is_read_into_a_network_without(tmp_path):
    day = f"cityscapes:{trees.cityscapes(tmp_path / 'day')}:train"
    run = trained(tmp_path / "run", day, network=tiny(), crop=(32, 32))
    method = moved(checkpoints.load_run(run)[0])
    checkpoints.save_best(run, 3, method, None)
    weights = checkpoints.best_file(run, "best")
    x = torch.rand(1, 3, 32, 64)
    plain = build(tiny("none", weights=str(weights)), 19, trained=True).eval()
    again = build(tiny("lora", weights=str(weights)), 19).eval()  # new adapters, on what the old ones learnt
    for segmenter in (plain, again):
        torch.testing.assert_close(segmenter(x), method.predict(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny(name="unet", encoder="resnet18"), "adapts the layers qkv, .* the encoder has none: take"),
        (tiny(name="networks:anonymous"), "the encoder has none"),
        (tiny("mica", rank=65), "--network.rank 65 does not fit the encoder .*MiCA requires"),
    ],
)
def test_encoders_that_cannot_be_adapted_get_one_sentence(config, message):
    with pytest.raises(InputError, match=message) as caught:
        build(config, 5)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        InputError, match=r"--network.adapter lora needs peft: pip install 'segshift\[adapters\]'"
    ):
        build(tiny(), 5)
