"""Mask classifiers of transformers: scores, squares, files of weights; predicted, never trained."""

from pathlib import Path

import pytest
import torch
import training
import trees
from safetensors.torch import load_file, save_file
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from segshift import runs
from segshift.config import EvaluateConfig, NetworkConfig, PredictConfig
from segshift.networks import build
from segshift.networks.masks import PerPixel, _starts
from segshift.runs import InputError
from segshift.stages.evaluate import evaluate
from segshift.stages.predict import predict
from segshift.stages.train import train

torch.set_num_threads(1)


DECODER = {
    "hidden_dim": 32,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "num_queries": 6,
}


def swin() -> SwinConfig:
    return SwinConfig(
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def mask2former(classes: int):
    config = Mask2FormerConfig(
        backbone_config=swin(),
        num_labels=classes,
        feature_size=32,
        mask_feature_size=32,
        **DECODER,
    )
    return Mask2FormerForUniversalSegmentation(config)


def oneformer(classes: int):
    config = OneFormerConfig(
        backbone_config=swin(),
        num_labels=classes,
        conv_dim=32,
        mask_dim=32,
        **DECODER,
        query_dec_layers=1,
        is_training=False,
        task_seq_len=8,
        text_encoder_width=32,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=20,
        text_encoder_context_length=8,
        text_encoder_proj_layers=1,
    )
    return OneFormerForUniversalSegmentation(config)


def eomt(classes: int, of=EomtForUniversalSegmentation, settings=EomtConfig):
    config = settings(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        num_blocks=1,
        num_queries=6,
        num_upscale_blocks=1,
        num_register_tokens=1,
        num_labels=classes,
    )
    return of(config)


def eomt_dinov3(classes: int):
    return eomt(classes, EomtDinov3ForUniversalSegmentation, EomtDinov3Config)


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "the", "task", "is", "semantic"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )


def saved(folder: Path, make, classes: int = 19):
    torch.manual_seed(0)
    model = make(classes).eval()
    model.save_pretrained(folder)
    if make is oneformer:
        tokenizer(folder)
    return model


FAMILIES = (mask2former, oneformer, eomt, eomt_dinov3)


def network(folder: Path) -> NetworkConfig:
    return NetworkConfig(name=f"hf:{folder}", pretrained=False, weights=str(folder / "model.safetensors"))


@pytest.mark.parametrize("make", FAMILIES)
def test_the_score_of_a_class_sums_its_masks(tmp_path, make):
    model = saved(tmp_path, make, 5)
    segmenter = build(network(tmp_path), 5, trained=True).eval()
    image = torch.rand(2, 3, 64, 64)
    x = segmenter.prepare(image)
    more = {"task_inputs": torch.tensor([[2.0, 3, 4, 5, 0, 0, 0, 0]] * 2)} if make is oneformer else {}
    with torch.no_grad():
        found = model(pixel_values=x, **more)
        logits = segmenter.network(x)
    assert logits.shape[:2] == (2, 5)
    p, m = found.class_queries_logits.softmax(-1), found.masks_queries_logits.sigmoid()
    by_hand = sum(p[:, q, :-1, None, None] * m[:, q, None] for q in range(6))
    enlarged = torch.nn.functional.interpolate(by_hand.log(), logits.shape[2:], mode="bilinear")
    torch.testing.assert_close(logits, enlarged, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert segmenter(torch.rand(1, 3, 50, 90)).shape == (1, 5, 50, 90)


def test_squares_cover_the_long_side_evenly_and_are_averaged():
    assert _starts(64, 64) == [0] and _starts(100, 64) == [0, 36] and _starts(200, 64) == [0, 45, 91, 136]

    class Column(torch.nn.Module):
        """One query, of class 0, whose mask is the picture."""

        def forward(self, pixel_values):
            self.config, masks = None, pixel_values[:, :1]
            classes = torch.tensor([[[9.0, -9.0, -9.0]]]).expand(len(masks), 1, 3)
            return type("Found", (), {"class_queries_logits": classes, "masks_queries_logits": masks})

    ramp = torch.linspace(-2, 2, 200).expand(1, 3, 64, 200)
    found = PerPixel(Column(), 64, None)(ramp)
    torch.testing.assert_close(found[0, 0, 5], ramp[0, 0, 5].sigmoid().log(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("make", [mask2former, eomt])
def test_a_file_is_predicted_and_evaluated(tmp_path, make):
    saved(tmp_path / "net", make)
    day = f"cityscapes:{trees.cityscapes(tmp_path / 'day')}:train"
    config = PredictConfig(
        str(tmp_path / "net" / "model.safetensors"),
        day,
        network=NetworkConfig(name=f"hf:{tmp_path}/net"),
        size=(64, 128),
        uncertainty=True,
        device="cpu",
    )
    out = predict(config, tmp_path / "out")
    assert all(0 < line["confidence"] <= 1 for line in runs.read_lines(out / "predictions.jsonl"))
    score = evaluate(EvaluateConfig(str(out), day), tmp_path / "score")
    assert 0 <= runs.read_json(score / "metrics.json")["miou"] <= 1


def test_they_are_not_trained(tmp_path):
    saved(tmp_path / "net", eomt)
    data = training.trees_of(tmp_path / "data")
    config = training.config(data, network=NetworkConfig(name=f"hf:{tmp_path}/net"), crop=(32, 32))
    with pytest.raises(InputError, match=r"predicts masks and cannot be trained here, .*: give its file"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_file_of_another_network_is_refused(tmp_path):
    saved(tmp_path / "net", eomt)
    saved(tmp_path / "five", eomt, 5)
    tensors = load_file(tmp_path / "net" / "model.safetensors")
    save_file(dict(list(tensors.items())[3:]), tmp_path / "part.safetensors")
    for weights, message in (
        ("part.safetensors", "tensors missing"),
        ("five/model.safetensors", "another shape"),
    ):
        config = NetworkConfig(name=f"hf:{tmp_path}/net", pretrained=False, weights=str(tmp_path / weights))
        with pytest.raises(InputError, match=rf"is a checkpoint of another network: .*{message}"):
            build(config, 19, trained=True)
