"""Exports: what the file computes, on onnxruntime and torch, and what cannot be exported."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import trees
from test_predict import TWO_CONVS, trained

import segshift
from segshift.config import ExportConfig, ICCLDNetworkConfig, NetworkConfig
from segshift.data import frames
from segshift.data.labels import CITYSCAPES
from segshift.networks.segmenter import STRIDE
from segshift.runs import InputError
from segshift.scoring import inference
from segshift.stages import export as stage
from segshift.stages.export import export
from segshift.training import checkpoints

ICCLD = NetworkConfig(
    name="iccld", encoder="test_resnet", pretrained=False, iccld=ICCLDNetworkConfig(latent_channels=4)
)
UNET = NetworkConfig(name="unet", encoder="tu-test_resnet", pretrained=False)


@pytest.fixture
def day(tmp_path: Path) -> str:
    return f"cityscapes:{trees.cityscapes(tmp_path / 'day')}:train"


def onnx_file(file: Path) -> Callable[[torch.Tensor], np.ndarray]:
    session = onnxruntime.InferenceSession(file)
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def pt2_file(file: Path) -> Callable[[torch.Tensor], np.ndarray]:
    network = torch.export.load(file).module()
    return lambda images: network(images).detach().numpy()


def told(text: str) -> tuple[int, float, float]:
    """Frames, largest difference of logits and share of equal labels in percent, as printed."""
    found = re.search(r"(\d+) frames: largest difference of logits (\S+), equal labels (\S+) %;", text)
    assert found and re.search(r"torch \S+ frames/s, (onnxruntime|the file) \S+ frames/s on cpu", text)
    return int(found[1]), float(found[2]), float(found[3])


@pytest.mark.parametrize(("name", "reader"), [("net.onnx", onnx_file), ("net.pt2", pt2_file)])
def test_a_file_of_one_size_gives_the_logits_of_the_run(tmp_path: Path, day: str, capsys, name, reader):
    run = trained(tmp_path / "run", day, classes=13, size=(30, 50), crop=(16, 32))  # to be padded
    out = export(ExportConfig(str(run)), tmp_path / name)
    count, difference, equal = told(capsys.readouterr().out)
    assert count == 3 and difference < 1e-4 and equal > 99.9
    images = torch.randint(0, 256, (1, 3, 30, 50), dtype=torch.uint8)
    expected, _ = inference.infer(checkpoints.load_run(run)[0], images)
    np.testing.assert_allclose(reader(out)(images / 255), expected, atol=1e-4)


def test_a_dynamic_file_takes_any_number_and_size_and_gives_train_ids_where_asked(tmp_path: Path, day: str):
    for name, argmax, kind in (("logits", False, UNET), ("classes", True, TWO_CONVS)):
        run = trained(tmp_path / f"run-{name}", day, network=kind)
        method = checkpoints.load_run(run)[0]
        out = export(ExportConfig(str(run), dynamic=True, argmax=argmax, opset=20), tmp_path / f"{name}.onnx")
        network = onnx_file(out)
        for shape in ((1, 3, STRIDE, 3 * STRIDE), (2, 3, 2 * STRIDE, STRIDE)):
            images = torch.randint(0, 256, shape, dtype=torch.uint8)
            expected, _ = inference.infer(method, images)
            found = network(images / 255)
            if argmax:
                assert found.dtype == np.uint8 and (found == expected.argmax(1).numpy()).mean() > 0.999
            else:
                np.testing.assert_allclose(found, expected, atol=1e-3)
        model = onnx.load(out)
        assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", name]
        assert model.opset_import[0].version == 20
        assert json.loads({p.key: p.value for p in model.metadata_props}["classes"]) == list(CITYSCAPES.names)


def test_the_sampled_prediction_of_iccld_is_exported_with_the_noise_of_seed_0(
    tmp_path: Path, day: str, capsys
):
    run = trained(
        tmp_path / "run",
        day,
        method="adversarial_diffusion",
        network=ICCLD,
        target=day,
        from_run=str(tmp_path / "step1"),
        iccld=segshift.ICCLDConfig(unet_channels=(8,)),
    )
    method = checkpoints.load_run(run)[0]
    torch.nn.init.normal_(method.average.module.denoiser.unet.conv_out.weight, std=0.3)  # or noise is nothing
    checkpoints.save_best(run, 3, method, None)
    for name, reader in (("net.onnx", onnx_file), ("net.pt2", pt2_file)):
        out = export(ExportConfig(str(run)), tmp_path / name)
        count, difference, equal = told(capsys.readouterr().out)
        assert count == 3 and difference < 1e-2 and equal > 99
        images = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
        expected, other = (inference.infer(method, images, [seed])[0] for seed in (0, 1))
        network = reader(out)
        for _ in range(2):  # nothing is drawn
            np.testing.assert_allclose(network(images / 255), expected, atol=1e-2)
        assert abs(other - expected).max() > 0.05
    with pytest.raises(InputError, match="samples its prediction from noise of the image's size"):
        export(ExportConfig(str(run), dynamic=True), tmp_path / "dynamic.onnx")


def test_a_file_that_differs_is_warned_of(tmp_path: Path, day: str, caplog, monkeypatch):
    run = trained(tmp_path / "run", day)
    method = checkpoints.load_run(run)[0]
    monkeypatch.setattr(stage, "_reader", lambda path: lambda images: -method.predict(images))
    out = export(ExportConfig(str(run)), tmp_path / "net.pt2")
    assert re.search(r"give \d+.* % of the pixels other labels: do not rely on the file", caplog.text)
    assert out.exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("net.pth", {}, "net.pth ends in neither .onnx nor .pt2"),
        ("there.onnx", {}, "there.onnx exists: name a new file"),
        (
            "net.onnx",
            {"images": None},
            "networks:two_convs has no frames to compare on: name pictures in --images",
        ),
        ("net.onnx", {"run": "networks:seeing"}, "networks:seeing is a black box, which cannot be exported"),
        (
            "net.onnx",
            {"run": "networks:branching"},
            r"cannot be traced .GuardOnDataDependentSymNode.* at 'return logits \+ 1 if images.mean.. > 0.5 "
            r"else logits' in .*networks.py, line \d+",
        ),
        (
            "net.onnx",
            {"run": "networks:of_bessel"},
            "uses the operation prims.bessel_j0, which ONNX does not have",
        ),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(tmp_path: Path, capfd, name, changes, message):
    (tmp_path / "there.onnx").touch()
    trees.save(tmp_path / "photos" / "one.png", trees.picture("one"))
    config = {"run": "networks:two_convs", "images": str(tmp_path / "photos")} | changes
    with pytest.raises(InputError, match=message) as caught:
        export(ExportConfig(**config), tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"there.onnx", "photos"}


def test_an_old_opset_and_missing_packages_are_told(tmp_path: Path, monkeypatch):
    with pytest.raises(InputError, match="--opset is 9: expected 18 or more"):
        ExportConfig("networks:two_convs", opset=9)
    monkeypatch.setattr(stage, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx, onnxscript, onnxruntime: .* 'segshift\[export\]'"):
        export(ExportConfig("networks:two_convs"), tmp_path / "net.onnx")


def test_an_exported_file_is_a_black_box_that_sees_what_the_run_sees(tmp_path: Path, day: str, monkeypatch):
    run = trained(tmp_path / "run", day)
    file = export(ExportConfig(str(run)), tmp_path / "net.onnx")
    (tmp_path / "onnx_box.py").write_text(
        "import cv2, numpy as np, onnxruntime\n"
        "def build(classes):\n"
        f"    session = onnxruntime.InferenceSession({str(file)!r})\n"
        "    def predict(image):\n"
        "        image = image.astype(np.float32).transpose(2, 0, 1)[None] / 255\n"
        "        return session.run(None, {'images': image})[0][0]\n"
        "    return predict\n"
    )
    monkeypatch.chdir(tmp_path)
    picture = frames.load(day).frames[0].image
    with pytest.raises(InputError, match="fails on a picture of 128x256"):
        segshift.load("onnx_box:build")  # a file of one size takes no other
    text = (
        (tmp_path / "onnx_box.py")
        .read_text()
        .replace("        image = ", "        image = cv2.resize(image, (64, 32))\n        image = ", 1)
    )
    (tmp_path / "onnx_box_2.py").write_text(text)
    found = segshift.load("onnx_box_2:build", device="cpu").predict(picture)
    np.testing.assert_array_equal(found, segshift.load(run, device="cpu").predict(picture))
