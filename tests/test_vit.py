"""Plain vision transformers: shapes, files of weights, trainings by every method, exports."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import training
import trees
from safetensors.torch import save_file
from test_export import onnx_file, pt2_file, told
from test_predict import trained

from segshift.config import ExportConfig, NetworkConfig, PredictConfig
from segshift.data import frames
from segshift.methods.zodi.adaptation import ZoDi
from segshift.networks import build
from segshift.networks.options import ICCLDNetworkConfig
from segshift.runs import InputError
from segshift.scoring import inference
from segshift.stages.export import export
from segshift.stages.predict import predict
from segshift.stages.train import train
from segshift.training import checkpoints

torch.set_num_threads(1)
HEADS = ("linear", "dpt")


def tiny(**changes) -> NetworkConfig:
    return replace(NetworkConfig(name="vit", encoder="test_vit", pretrained=False), **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.trees_of(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "encoder", ["test_vit", "eva02_tiny_patch14_224"]
)  # the second with rotary positions
def test_logits_have_the_images_size_and_every_weight_is_trained(head, encoder):
    segmenter = build(tiny(encoder=encoder, head=head), 5)
    logits, features = segmenter.forward_with_features(torch.rand(2, 3, 37, 70))
    assert logits.shape == (2, 5, 37, 70)
    assert features.shape == (2, segmenter.feature_channels, 4, 6)  # 64 x 96 in patches of 16
    logits.sum().backward()
    without = {name.split(".")[-2] for name, p in segmenter.named_parameters() if p.grad is None}
    assert without <= {"fc_norm"}  # of a classifier that is not there


def test_the_four_maps_end_with_the_last_block_and_are_normalised_as_it_is():
    encoder = build(tiny(), 5).encoder
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        last = encoder.eval()(x)[-1]
        tokens = encoder.model.forward_features(x)[:, encoder.model.num_prefix_tokens :]
    torch.testing.assert_close(last.flatten(2), tokens.mT)


def test_a_picture_is_normalised_as_the_backbone_was_trained():
    assert build(tiny(), 5).mean.flatten().tolist() == [0.5, 0.5, 0.5]
    imagenet = build(tiny(encoder="deit_tiny_patch16_224"), 5)
    torch.testing.assert_close(imagenet.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


@pytest.mark.parametrize("name", ["vit", "iccld"])
@pytest.mark.parametrize("encoder", ["eva02_tiny_patch14_224", "test_vit"])
def test_a_file_of_timm_is_read_as_timm_reads_a_download(tmp_path, name, encoder):
    """Patches of 14 become patches of 16, and positions their grid."""
    torch.manual_seed(1)
    saved = timm.create_model(encoder, img_size=140 if "patch14" in encoder else 320)
    save_file({k: v.contiguous() for k, v in saved.state_dict().items()}, tmp_path / "model.safetensors")
    expected = timm.create_model(
        encoder,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "model.safetensors")},
        num_classes=0,
        dynamic_img_size=True,
        **({"patch_size": 16} if "patch14" in encoder else {}),
    ).state_dict()
    config = tiny(name=name, encoder=encoder, weights=str(tmp_path / "model.safetensors"))
    loaded = build(config, 5).encoder.model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


def test_the_names_of_dinov2s_authors_are_read(tmp_path):
    saved = timm.create_model("test_vit", num_classes=0).state_dict()
    theirs = {**saved, "mask_token": torch.zeros(1, 64)}  # what timm knows their files by
    torch.save(theirs, tmp_path / "dinov2.pth")
    loaded = build(tiny(weights=str(tmp_path / "dinov2.pth")), 5).encoder.model.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": "resnet18"},
            r"'resnet18' has 5 stages at strides \[2, 4, 8, 16, 32\], expected the blocks",
        ),
        ({"encoder": "no_such_vit"}, "timm makes no backbone 'no_such_vit'"),
        ({"weights": "other.safetensors"}, "other.safetensors is a checkpoint of another network"),
        (
            {"weights": "narrow.safetensors"},
            "narrow.safetensors is a checkpoint of another network: .*another shape",
        ),
    ],
)
def test_what_is_no_plain_vision_transformer_or_another_one_gets_one_sentence(
    tmp_path, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model("test_resnet").state_dict(), "other.safetensors")
    narrow = timm.create_model("test_vit", num_classes=0, embed_dim=32, num_heads=2).state_dict()
    save_file({key: value.contiguous() for key, value in narrow.items()}, "narrow.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        build(tiny(**changes), 5)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_gradient_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    segmenter, x = build(tiny(), 5), torch.rand(1, 3, 32, 32)

    def gradients():
        segmenter.zero_grad()
        segmenter(x).sum().backward()
        return [parameter.grad.clone() for parameter in segmenter.parameters()]

    before = gradients()
    segmenter.checkpoint_gradients()
    for one, other in zip(before, gradients(), strict=True):
        torch.testing.assert_close(one, other)


def test_smps_dpt_takes_patches_of_fourteen():
    segmenter = build(tiny(name="dpt", encoder="tu-eva02_tiny_patch14_224"), 5)
    assert segmenter(torch.rand(1, 3, 40, 64)).shape == (1, 5, 40, 64)


@pytest.mark.parametrize("head", HEADS)
def test_zodi_trains_it_and_an_interrupted_training_gives_the_same_bytes(data, tmp_path, monkeypatch, head):
    config = training.config(
        data, network=tiny(head=head), size=(32, 64), crop=(32, 32), optimizer="adamw", lr=1e-3, steps=3
    )
    with monkeypatch.context() as patch:
        training.copy_in_step(patch, ZoDi, 2, tmp_path / "whole", tmp_path / "parts")
        train(config, tmp_path / "whole")
    assert "similarity" in training.logged(tmp_path / "whole")[0]
    assert checkpoints.last_step(tmp_path / "parts") == 2
    train(config, tmp_path / "parts")
    assert training.same(tmp_path / "whole", tmp_path / "parts")


def test_both_steps_of_iccld_train_with_it_as_their_encoder(data, tmp_path):
    network = tiny(name="iccld", iccld=ICCLDNetworkConfig(latent_channels=4))
    second = training.both_steps(data, network, tmp_path, lr=1e-3, steps=1)
    out = predict(PredictConfig(str(tmp_path / "second"), second.source, device="cpu"), tmp_path / "out")
    assert (out / "predictions.jsonl").is_file()


@pytest.mark.parametrize(
    ("head", "dynamic", "name", "reader"),
    [("linear", False, "net.pt2", pt2_file), ("dpt", True, "net.onnx", onnx_file)],
)
def test_an_export_gives_the_logits_of_the_run(tmp_path, capsys, head, dynamic, name, reader):
    day = f"cityscapes:{trees.cityscapes(tmp_path / 'day')}:train"
    run = trained(tmp_path / "run", day, network=tiny(head=head), crop=(32, 32))
    out = export(ExportConfig(str(run), dynamic=dynamic), tmp_path / name)
    count, difference, equal = told(capsys.readouterr().out)
    assert count == 3 and difference < 1e-3 and equal > 99.9
    images = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    expected, _ = inference.infer(checkpoints.load_run(run)[0], images)
    torch.testing.assert_close(torch.from_numpy(reader(out)(images / 255)), expected, atol=1e-3, rtol=1e-3)


def test_a_file_of_weights_predicts_with_its_head(tmp_path):
    day = f"cityscapes:{trees.cityscapes(tmp_path / 'day')}:train"
    run = trained(tmp_path / "run", day, network=tiny(head="dpt"), crop=(32, 32))
    weights = checkpoints.best_file(run, "best")
    network = NetworkConfig(name="vit", encoder="test_vit", head="dpt")
    alone = PredictConfig(str(weights), day, network=network, size=(32, 64), device="cpu")
    outs = (
        predict(alone, tmp_path / "file"),
        predict(PredictConfig(str(run), day, device="cpu"), tmp_path / "out"),
    )
    data = frames.load(day)
    for frame in data.frames:
        one, other = (frames.place(data, frame, out).read_bytes() for out in outs)
        assert one == other
