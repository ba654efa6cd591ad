import pickle
import re
from dataclasses import replace

import networks
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from segshift.config import NetworkConfig
from segshift.networks import build
from segshift.networks.licences import sentence_of
from segshift.networks.refinenet import RefineNet
from segshift.networks.segmenter import IMAGENET_MEAN, Segmenter, _features
from segshift.networks.weights import load_weights
from segshift.runs import InputError


def own(name="two_convs", **more):
    return NetworkConfig(name=f"networks:{name}", **more)


def random(name, encoder="resnet18", **more):
    return NetworkConfig(name=name, encoder=encoder, pretrained=False, **more)


@pytest.fixture(scope="module")
def deeplab():
    torch.manual_seed(0)
    return build(random("deeplabv3plus"), 19)


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (33, 31)])
def test_logits_have_the_images_size_whatever_the_stride(deeplab, size):
    with torch.no_grad():
        assert deeplab.eval()(torch.rand(1, 3, *size)).shape == (1, 19, *size)


def test_features_are_those_of_the_last_encoder_stage(deeplab):
    with torch.no_grad():
        images = torch.rand(2, 3, 64, 64)
        logits, features = deeplab.eval().forward_with_features(images)
        torch.testing.assert_close(
            features, deeplab.network.encoder((images - deeplab.mean) / deeplab.std)[-1]
        )
        torch.testing.assert_close(logits, deeplab(images))
    assert features.shape[1] == deeplab.feature_channels == 512
    assert not deeplab.network.encoder._forward_hooks


def test_images_are_normalised_inside():
    seen = {}

    class Remember(nn.Module):
        def forward(self, x):
            seen["x"] = x
            return x[:, :2]

    Segmenter(Remember(), 2, None)(torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    torch.testing.assert_close(seen["x"], torch.zeros(1, 3, 32, 32))


def test_refinenet_gives_a_quarter_of_the_size_and_trains_every_weight():
    network = RefineNet("resnet18", None, 5, channels=8)
    logits = network(torch.rand(2, 3, 64, 96))
    assert logits.shape == (2, 5, 16, 24)
    logits.sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert build(random("refinenet"), 3).feature_channels == 512


def test_transformers_networks_are_read_from_a_folder(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1] * 4,
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
        num_labels=4,
    )
    saved = SegformerForSemanticSegmentation(config)
    saved.save_pretrained(tmp_path)
    segmenter = build(NetworkConfig(name=f"hf:{tmp_path}"), 7)
    loaded = segmenter.network.segformer.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in saved.segformer.state_dict().items())
    logits, features = segmenter.eval().forward_with_features(torch.rand(1, 3, 64, 96))
    assert (
        logits.shape == (1, 7, 64, 96) and features.shape[:2] == (1, 16) and segmenter.feature_channels == 16
    )
    assert build(NetworkConfig(name=f"hf:{tmp_path}", pretrained=False), 7).classes == 7
    saved.half().save_pretrained(tmp_path / "half")  # as many are published
    for pretrained in (True, False):
        weights = build(NetworkConfig(name=f"hf:{tmp_path}/half", pretrained=pretrained), 7).parameters()
        assert {parameter.dtype for parameter in weights} == {torch.float32}


def test_weights_of_a_transformers_backbone_below_another_head_are_loaded(tmp_path):
    from transformers import (
        SegformerConfig,
        SegformerForImageClassification,
        SegformerForSemanticSegmentation,
    )

    sizes = {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1] * 4,
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 8,
    }
    SegformerForSemanticSegmentation(SegformerConfig(**sizes, num_labels=4)).save_pretrained(tmp_path / "net")
    other = SegformerForImageClassification(SegformerConfig(**sizes, num_labels=9))
    other.save_pretrained(tmp_path / "other")
    weights = str(tmp_path / "other" / "model.safetensors")
    loaded = build(NetworkConfig(name=f"hf:{tmp_path}/net", weights=weights), 7).encoder.state_dict()
    saved = other.segformer.state_dict()
    assert loaded.keys() == saved.keys() and all(
        torch.equal(value, saved[key]) for key, value in loaded.items()
    )


def test_features_of_transformers_output_objects():
    from transformers.modeling_outputs import BackboneOutput, BaseModelOutput

    a, b = torch.zeros(1, 2, 3, 3), torch.ones(1, 5, 4)
    assert _features(BackboneOutput(feature_maps=(b, a))) is a
    assert _features(BaseModelOutput(last_hidden_state=b)) is b
    assert _features([b, a]) is a
    assert _features(([b, a], [b])) is a  # smp's transformers add their class tokens


def test_the_users_own_network_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "somebodys_net.py").write_text(
        "from torch import nn\ndef make(classes):\n    return nn.Conv2d(3, classes, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    segmenter = build(NetworkConfig(name="somebodys_net:make"), 6)
    assert segmenter(torch.rand(1, 3, 20, 30)).shape == (1, 6, 20, 30)
    assert segmenter.feature_channels is None


def test_the_users_own_layer_is_compared_by_name():
    segmenter = build(own("anonymous", feature_layer="body"), 5)
    assert segmenter.forward_with_features(torch.rand(1, 3, 32, 32))[1].shape == (1, 4, 32, 32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (random("nonet"), "no network 'nonet' with encoder 'resnet18'"),
        (random("unet", encoder="resnet19"), "encoder 'resnet19'"),
        (own("one_class_too_many"), r"shape \[1, 6, 64, 128\], expected \[1, 5, "),
        (own("not_there"), "cannot import network 'networks:not_there'"),
        (NetworkConfig(name="no_such_module:make"), "cannot import network 'no_such_module:make'"),
        (own("of_one_size"), "the network fails on a picture of 128x256 .RuntimeError: .*mat1 and mat2"),
        (
            own("of_another_name"),
            r"cannot be called as of_another_name\(classes=5\) .missing a required argument: 'num_classes",
        ),
        (own("no_network"), "made a int, expected a torch.nn.Module"),
        (own("seeing"), "'networks:seeing' only predicts and cannot be trained"),
        (own("seeing_one_too_many"), "returned train ids 5 to 5, expected 0 to 4: map its classes"),
        (own("seeing_nothing"), r"returned uint8 \[128, 256, 3\] .* return scores \[5, h, w\]"),
        (own("seeing_badly"), r"fails on a picture of 128x256 .AttributeError: .* in .*networks.py, line"),
        (own(feature_layer="nowhere"), "no layer 'nowhere' in the network: .* such as encoder"),
        (own(weights="nowhere.safetensors"), "no weights at .*nowhere.safetensors"),
        (
            NetworkConfig(name="hf:/no/such/folder"),
            "cannot read config.json and model.safetensors of '/no/such/folder'",
        ),
        (own("failing"), r"fails when it is built .LookupError: no in .*networks.py, line \d+."),
        (own("leaving"), r"fails when it is built .SystemExit: 0 in .*networks.py, line \d+."),
        (own("failing_later"), r"128x256 .AttributeError: .*no_such_thing.* in .*networks.py, line \d+."),
        (own("of_whole_numbers"), "logits are torch.int32, expected floating-point numbers"),
        (own("of_three_dimensions"), r"output has shape \[5, 64, 128\], expected \[1, 5, height, width\]"),
        (own("swapped"), r"picture of 128x256 has shape \[1, 5, 128, 64\]"),
        (own("of_one_pixel"), r"picture of 128x256 has shape \[1, 5, 1, 1\]"),
        (own("detached"), "logits carry no gradient to its parameters"),
        (own("frozen"), "nothing to train, for requires_grad is False"),
        (NetworkConfig(name="./mynet:build"), "cannot import network 'mynet:build'"),
        (NetworkConfig(name="nets/mynet.py:make"), "without .py, as in mynetwork:build"),
        (NetworkConfig(name=":make"), "write it with dots for folders"),
        (NetworkConfig(name="mynet.py:"), "is no <module>:<factory>"),
    ],
)
def test_bad_networks_get_one_sentence(config, message):
    with pytest.raises(InputError, match=message) as caught:
        build(config, 5)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make(classes:\n", r"SyntaxError: .* in .*{0}.py, line 1"),
        ("\nimport no_such_library\n", r"ModuleNotFoundError: .*no_such_library' in .*{0}.py, line 2"),
        ("import sys\nsys.exit(0)\n", r"SystemExit: 0 in .*{0}.py, line 2"),
        ("\n\n1 / 0\n", r"ZeroDivisionError: division by zero in .*{0}.py, line 3"),
    ],
)
def test_a_module_that_cannot_be_imported_names_its_line(tmp_path, monkeypatch, text, message):
    module = f"broken_{abs(hash(text))}"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message.format(module)):
        build(NetworkConfig(name=f"{module}:make"), 5)


def test_a_network_that_cannot_be_trained_may_predict(tmp_path):
    for name in ("detached", "frozen"):
        save_file(networks.__dict__[name](5).state_dict(), tmp_path / "w.safetensors")
        segmenter = build(own(name, weights=str(tmp_path / "w.safetensors")), 5, trained=True)
        assert segmenter(torch.rand(1, 3, 32, 32)).shape == (1, 5, 32, 32)


def test_a_network_that_cannot_recompute_activations_says_so():
    with pytest.raises(InputError, match=r"--gradient-checkpointing needs a network .* TwoConvs cannot"):
        build(own(), 5).checkpoint_gradients()


def test_the_probe_leaves_batch_norm_and_training_mode_alone():
    segmenter = build(own(), 5)
    assert segmenter.training and segmenter.network.encoder[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("encoder", "home"), [("resnet18", "smp-hub/resnet18.imagenet"), ("tu-resnet10t", "resnet10t")]
)
def test_a_missing_download_says_which_file_and_how_to_go_on(tmp_path, monkeypatch, encoder, home):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=rf"of .*{home} .*--network.no-pretrained.*--network.weights"):
        build(NetworkConfig(encoder=encoder), 5)


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(encoder="resnet18"),
        NetworkConfig(encoder="tu-resnet10t"),
        NetworkConfig(name="hf:a/b"),
        NetworkConfig(name="hf:a/b", pretrained=False),
        NetworkConfig(name="iccld", encoder="resnet10t"),
    ],
)
def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(unreachable, config):
    with pytest.raises(InputError, match=r"\(http://127.0.0.1:9 does not answer: "):
        build(config, 5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            NetworkConfig(name="segformer", encoder="mit_b0"),
            "of mit_b0 are NVIDIA's, for non-commercial use only",
        ),
        (NetworkConfig(name="hf:nvidia/segformer-b0-x"), "NVIDIA's, for non-commercial use only"),
        (
            NetworkConfig(name="vit", encoder="vit_small_patch16_dinov3"),
            "under dinov3-license, whose terms are",
        ),
        (
            NetworkConfig(name="unet", encoder="tu-convnextv2_atto"),
            "under cc-by-nc-4.0, for non-commercial use",
        ),
        (
            NetworkConfig(name="iccld", encoder="vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"),
            "research-license, for non-commercial use only; --network.no-pretrained does without",
        ),
        (NetworkConfig(name="hf:/models/eomt-dinov3-l"), "under Meta's DINOv3 licence, whose terms"),
    ],
)
def test_weights_that_are_not_free_come_with_a_warning(monkeypatch, config, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.warns(UserWarning, match=message), pytest.raises(InputError):
        build(config, 5)


def test_free_weights_and_random_ones_come_without(recwarn):
    for name, encoder in (
        ("vit", "vit_small_patch14_dinov2"),
        ("unet", "resnet50"),
        ("networks:two_convs", "mit_b0"),
    ):
        assert sentence_of(NetworkConfig(name=name, encoder=encoder)) is None
    build(random("segformer", "mit_b0"), 5)
    assert not [warning for warning in recwarn if "weights" in str(warning.message)]


def weights_of(config, classes=5):
    torch.manual_seed(3)
    return build(config, classes).network.state_dict()


@pytest.mark.parametrize("prefix", ["", "module.", "segmenter.network."])
def test_weights_of_the_whole_network(tmp_path, prefix):
    saved = weights_of(own())
    save_file({prefix + key: value for key, value in saved.items()}, tmp_path / "w.safetensors")
    torch.save({"state_dict": {prefix + key: value for key, value in saved.items()}}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        loaded = build(own(weights=str(tmp_path / name)), 5).network.state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in saved.items())


def test_weights_of_the_encoder_alone_as_the_hub_keeps_them(tmp_path):
    encoder = build(random("deeplabv3plus"), 5).network.encoder.state_dict()
    encoder = {key: value.contiguous() for key, value in encoder.items()}
    save_file(encoder | {"fc.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    config = NetworkConfig(
        encoder="resnet18", weights=str(tmp_path / "model.safetensors")
    )  # pretrained: no download
    loaded = build(config, 5).network.encoder.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in encoder.items())


def test_weights_of_an_encoder_alone_are_nothing_to_predict_with(tmp_path):
    encoder = {name: value.contiguous() for name, value in own_encoder().items()}
    save_file(encoder, tmp_path / "encoder.safetensors")
    config = own(weights=str(tmp_path / "encoder.safetensors"))
    assert all(
        torch.equal(value, build(config, 5).network.encoder.state_dict()[key])
        for key, value in encoder.items()
    )
    with pytest.raises(InputError, match=r"encoder.safetensors holds weights of an encoder alone"):
        build(config, 5, trained=True)


@pytest.mark.parametrize(
    ("name", "encoder", "more"),
    [
        ("unet", "tu-resnet10t", {}),
        ("deeplabv3plus", "tu-convnext_atto", {}),
        ("refinenet", "tu-regnetx_002", {}),
        ("dpt", "tu-test_vit", {}),
        ("iccld", "test_vit", {}),
        ("iccld", "convnext_atto", {}),
        ("unet", "tu-convnext_atto", {"num_classes": 0}),
        ("iccld", "test_vit", {"num_classes": 0}),
    ],
)
def test_a_backbones_own_file_of_timm_is_loaded(tmp_path, name, encoder, more):
    source = timm.create_model(encoder.removeprefix("tu-"), **more)
    saved = {key: value.contiguous() for key, value in source.state_dict().items()}
    save_file(saved, tmp_path / "model.safetensors")
    config = NetworkConfig(name=name, encoder=encoder, weights=str(tmp_path / "model.safetensors"))
    loaded = build(config, 5).network.encoder.state_dict()
    for key, value in loaded.items():
        name = key.removeprefix("model.")  # timm's feature extractors flatten the first level of names
        assert torch.equal(value, saved[name] if name in saved else saved[name.replace("_", ".", 1)]), key
    with pytest.raises(InputError, match="weights of an encoder alone"):
        build(config, 5, trained=True)


@pytest.mark.parametrize(
    ("name", "encoder"), [("pspnet", "resnet18"), ("unet", "mobilenet_v2"), ("segformer", "mit_b0")]
)
def test_smps_own_encoders_load_their_file_with_its_classifier(tmp_path, name, encoder):
    saved = build(random(name, encoder), 5).network.encoder.state_dict()
    saved = {key: value.contiguous() for key, value in saved.items()}
    save_file(saved | {"head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    config = NetworkConfig(name=name, encoder=encoder, weights=str(tmp_path / "model.safetensors"))
    loaded = build(config, 5).network.encoder.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.items())


def test_smps_older_names_are_understood(tmp_path):
    saved = build(random("unet", "densenet121"), 5).network.encoder.state_dict()
    older = {
        re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", key): value.contiguous()
        for key, value in saved.items()
        if "num_batches_tracked" not in key
    }
    save_file(older, tmp_path / "model.safetensors")
    config = NetworkConfig(name="unet", encoder="densenet121", weights=str(tmp_path / "model.safetensors"))
    loaded = build(config, 5).network.encoder.state_dict()
    assert all(torch.equal(value, saved[key]) for key, value in loaded.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    saved = weights_of(own())
    saved["classifier.bias"][2] = value
    save_file(saved, tmp_path / "w.safetensors")
    for trained in (False, True):
        with pytest.raises(InputError, match=r"'classifier.bias' in .*w.safetensors is not finite"):
            build(own(weights=str(tmp_path / "w.safetensors")), 5, trained=trained)


def own_encoder():
    return build(own(), 5).network.encoder.state_dict()


def test_a_network_with_a_part_called_network_keeps_its_names(tmp_path, monkeypatch):
    (tmp_path / "nested_net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self, classes):\n        super().__init__()\n"
        "        self.network, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, classes, 1)\n"
        "    def forward(self, images):\n        return self.head(self.network(images))\n"
    )
    monkeypatch.chdir(tmp_path)
    config = NetworkConfig(name="nested_net:Net")
    saved = build(config, 5).network.state_dict()
    save_file(saved, tmp_path / "w.safetensors")
    loaded = build(replace(config, weights=str(tmp_path / "w.safetensors")), 5).network.state_dict()
    assert saved.keys() == {"network.weight", "network.bias", "head.weight", "head.bias"}
    assert all(torch.equal(value, loaded[key]) for key, value in saved.items())


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    save_file(weights_of(own("anonymous")), tmp_path / "w.safetensors")
    save_file(weights_of(own(), classes=6), tmp_path / "six.safetensors")
    segmenter = build(own(), 5)
    before = segmenter.network.classifier.weight.clone()
    with pytest.raises(
        InputError,
        match=r"w.safetensors is a checkpoint of another network: 8 tensors missing, 4 unknown, such as",
    ):
        load_weights(segmenter, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"2 of another shape, such as 'classifier.bias'"):
        load_weights(segmenter, tmp_path / "six.safetensors")
    assert torch.equal(before, segmenter.network.classifier.weight)


def test_files_that_are_no_weights_are_refused(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    (tmp_path / "text.pt").write_text("no weights")
    torch.save(networks.TwoConvs(5), tmp_path / "module.pt")  # a pickled object: code, not weights
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    torch.save({0: torch.zeros(1)}, tmp_path / "numbered.pt")
    torch.save("weights", tmp_path / "word.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "numbered.pt").read_bytes()[:200])
    (tmp_path / "bytes.pt").write_bytes(bytes(range(256)))
    pickled = ("text.pt", "module.pt", "other.pt", "numbered.pt", "word.pt", "cut.pt", "bytes.pt")
    for name in ("cut.safetensors", *pickled):
        with pytest.raises(InputError, match=name) as caught:
            build(own(weights=str(tmp_path / name)), 5)
        assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_encoder_without_batch_counters_loads(tmp_path):
    """As files of other programs are; the counters only matter to a momentum that we do not use."""
    config = NetworkConfig(name="unet", encoder="resnet18", pretrained=False)
    torch.manual_seed(1)
    encoder = build(config, 3).encoder.state_dict()
    torch.save({k: v for k, v in encoder.items() if not k.endswith("num_batches_tracked")}, tmp_path / "e.pt")
    loaded = build(replace(config, weights=str(tmp_path / "e.pt")), 3).encoder.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in encoder.items())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello", "it is a file of another kind"),
        (pickle.dumps({"a": print}, protocol=4), "it holds other objects"),
    ],
)
def test_what_torch_did_not_write_is_refused_in_one_sentence(tmp_path, recwarn, content, reason):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(InputError, match=rf"cannot read .*weights\.pt \({reason}\): expected tensors"):
        build(own(weights=str(tmp_path / "weights.pt")), 5)
    assert not [str(warning.message) for warning in recwarn if "pickle" in str(warning.message)]
