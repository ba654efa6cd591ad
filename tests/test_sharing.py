"""Runs on the hub: what goes there, what comes back, and what is refused on either way. The hub is a stand-in
over HTTP (`hub_server`)."""

import json
import re
from dataclasses import replace
from pathlib import Path

import hub_server
import numpy as np
import pytest
import torch
import trees
import yaml
from test_predict import trained

import segshift
from segshift import generators, networks, runs
from segshift.__main__ import main
from segshift.config import (
    DiffusionConfig,
    EstimateConfig,
    EvaluateConfig,
    ExportConfig,
    NetworkConfig,
    PredictConfig,
    PushConfig,
    TrainConfig,
)
from segshift.data.labels import CITYSCAPES
from segshift.runs import InputError
from segshift.stages import estimate, push
from segshift.stages.evaluate import evaluate
from segshift.stages.export import export
from segshift.stages.predict import predict
from segshift.training import checkpoints, sharing

NETWORK = NetworkConfig(name="vit", encoder="test_vit", pretrained=False)
HIDDEN = {"stage": "train", "config": {"source": "cityscapes:day", "network": {"name": "os:abort"}}}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, where ada is logged in."""
    there = hub_server.Hub()
    for name, value in {
        "ENDPOINT": there.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": there.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    sharing.pulled.cache_clear()
    yield there
    sharing.pulled.cache_clear()
    there.close()


@pytest.fixture
def day(tmp_path: Path) -> str:
    return f"cityscapes:{trees.cityscapes(tmp_path / 'ada/day')}:train"


@pytest.fixture
def run(tmp_path: Path, day: str) -> Path:
    return trained(tmp_path / "run", day, network=NETWORK)


def upload(hub: hub_server.Hub, name: str, files: dict[str, bytes]) -> hub_server.Repository:
    made = hub.repositories[name] = hub_server.Repository(name.split("/")[0], private=False)
    made.commit(files)
    return made


def test_a_run_goes_to_the_hub_and_predicts_there_as_it_does_here(tmp_path, run, day, hub, capsys):
    here = predict(PredictConfig(str(run), day, device="cpu"), tmp_path / "here")
    score = evaluate(EvaluateConfig(str(here), day), tmp_path / "score")
    assert main(["push", str(run), "ada/town", "--evaluations", str(score), "--license", "apache-2.0"]) == 0
    assert "/ada/town, private: predict with --run hf:ada/town" in capsys.readouterr().out
    made = hub.repositories["ada/town"]
    assert made.private and set(made.files) == {
        *(".gitattributes", "README.md", "config.json", "labels.json", "environment.json", "scores.json"),
        "checkpoints/best.safetensors",
    }

    there = predict(PredictConfig("hf:ada/town", day, device="cpu"), tmp_path / "there")
    for file in here.rglob("*.png"):
        assert file.read_bytes() == (there / file.relative_to(here)).read_bytes()
    told = [runs.read_json(out / "model.json") for out in (here, there)]
    assert told[1]["run"] == "hf:ada/town" and told[0]["weights"] == told[1]["weights"]
    picture = trees.picture("x", (32, 64))
    revision = f"hf:ada/town@{made.main}"
    a, b = (segshift.load(name, device="cpu").predict(picture) for name in (str(run), revision))
    assert np.array_equal(a, b)
    [candidate] = estimate._candidates(
        EstimateConfig(run=(revision,), source=day), estimate.frames.load(day), tmp_path
    )
    assert candidate.size is None and candidate.predictor.record["method"] == "source_only"
    with pytest.raises(
        InputError, match="hf:ada/town has no frames to compare on: name pictures in --images"
    ):
        export(ExportConfig("hf:ada/town"), tmp_path / "x.pt2")
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink()}
    assert fetched <= {"config.json", "labels.json", "environment.json", "best.safetensors", "README.md"}


def test_the_card_says_protocol_scores_classes_method_and_licence(tmp_path, run, day, hub):
    out = predict(PredictConfig(str(run), day, device="cpu"), tmp_path / "out")
    score = evaluate(EvaluateConfig(str(out), day), tmp_path / "score")
    push.push(PushConfig(str(run), "ada/town", evaluations=(str(score),), license="mit"))
    text = hub.repositories["ada/town"].files["README.md"].decode()
    metrics = runs.read_json(score / "metrics.json")
    assert f"**mIoU {100 * metrics['miou']:.1f} %**" in text and metrics["protocol"] in text
    assert all(
        f"| {name} | {100 * iou:.1f} |" in text for name, iou in metrics["iou"].items() if iou is not None
    )
    assert "0 road" in text and "`cityscapes:day:train`" in text and "given under mit" in text
    head = yaml.safe_load(re.match(r"---\n(.*?)\n---", text, re.DOTALL)[1])
    assert head["license"] == "mit" and head["library_name"] == "segshift"
    [result] = head["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(metrics["miou"])
    scores = json.loads(hub.repositories["ada/town"].files["scores.json"])
    assert scores["checkpoints"]["best.safetensors"] == {"step": 2, "rule": "last", "validation": {}}
    assert scores["evaluations"][0]["miou"] == metrics["miou"]


def test_no_place_of_this_machine_and_no_optimizer_goes_there(tmp_path, day, hub):
    folder = tmp_path / "ada"
    changes = {
        "method": "zodi",
        "transferred": (f"cityscapes:{folder}/night:train",),
        "validation": day,
        "transferred_validation": (f"cityscapes:{folder}/night:val",),
        "from_run": str(folder / "first"),
        "rare_classes": str(folder / "check"),
        "network": replace(NETWORK, weights=str(folder / "start.pth")),
    }
    config = TrainConfig(source=day, steps=2, **changes)
    text = json.dumps(sharing.portable(config))
    assert str(tmp_path) not in text and "/" not in text and "night:train" in text and "start.pth" in text
    run = trained(tmp_path / "run", day, network=NETWORK, validation=day)
    state = {"optimizers": {}, "scaler": None, "best": {}, "frames": ""}
    checkpoints.save(run, 2, checkpoints.load_run(run)[0], state)
    push.push(PushConfig(str(run), "ada/town", public=True))
    made = hub.repositories["ada/town"]
    assert not made.private
    assert [name for name in made.files if name.startswith("checkpoints")] == ["checkpoints/best.safetensors"]
    assert not any(str(tmp_path).encode() in content for content in made.files.values())
    text = made.files["README.md"].decode()
    assert "No licence is given" in text and "Nothing was evaluated" in text


@pytest.mark.parametrize(
    ("network", "told"),
    [
        ("networks:two_convs", "of this machine, which --run hf: cannot find elsewhere"),
        ("hf:{here}", "of this machine"),
        ("vit", "network.encoder of the run is 'local-dir:/models/vit', a place on this machine"),
    ],
)
def test_a_network_that_others_cannot_build_is_refused(tmp_path, day, network, told):
    encoder = "local-dir:/models/vit" if network == "vit" else "resnet18"
    named = NetworkConfig(name=network.format(here=tmp_path), encoder=encoder)
    with pytest.raises(InputError, match=re.escape(told)):
        sharing.portable(TrainConfig(source=day, network=named))


def test_what_the_repository_holds_is_kept(tmp_path, run, day, hub):
    push.push(PushConfig(str(run), "ada/town"))
    made = hub.repositories["ada/town"]
    before = made.files
    edited = before["README.md"].decode().replace("# town", "# Our town") + "\nWritten by hand.\n"
    made.commit(before | {"README.md": edited.encode(), "notes.txt": b"x"})
    hub.asked.clear()
    push.push(PushConfig(str(run), "ada/town", license="mit"))
    assert "PUT" not in " ".join(hub.asked)  # no weights twice
    text = made.files["README.md"].decode()
    assert "# Our town" in text and "Written by hand." in text and text.count("## Scores") == 1
    assert "given under mit" in text and made.files["notes.txt"] == b"x"

    other = trained(tmp_path / "other", day, network=NETWORK, lr=0.2)
    with pytest.raises(InputError, match=r"ada/town holds another run \(--lr 0.1 there, 0.2 here\)"):
        push.push(PushConfig(str(other), "ada/town"))
    for files, told in [
        ({"model.bin": b""}, r"ada/mine holds other files \(model.bin\): name a new repository"),
        (
            {"config.json": b'{"model_type": "segformer"}'},
            "ada/mine holds a model that is no run of segshift",
        ),
    ]:
        upload(hub, "ada/mine", files)
        with pytest.raises(InputError, match=told):
            push.push(PushConfig(str(run), "ada/mine"))
        assert hub.repositories["ada/mine"].files == files
    upload(hub, "ada/begun", {"README.md": b"---\nlicense: mit\n---\nMine.\n"})
    push.push(PushConfig(str(run), "ada/begun"))
    text = hub.repositories["ada/begun"].files["README.md"].decode()
    assert text.startswith("---\nlicense: mit\n---\nMine.\n") and "## Scores" in text


@pytest.mark.parametrize(
    ("token", "name", "changes", "told"),
    [
        (
            None,
            "ada/town",
            {},
            "nobody is logged in at http://127.0.0.1:.*: run `hf auth login`, or set HF_TOKEN",
        ),
        ("hf_old", "ada/town", {}, "does not know the token of this login"),
        ("hf_ben", "ada/town", {}, r"may not write to ada/town \(.*\): name a repository of yours"),
        ("hf_ada", "ada/a--b", {}, "'ada/a--b' is no name on the hub"),
        (
            "hf_ada",
            "ada/town",
            {"license": "mine"},
            "the hub refuses the model card .*must be one of.* --license",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(run, hub, monkeypatch, token, name, changes, told):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=told):
        push.push(PushConfig(str(run), name, **changes))
    assert all(len(made.commits) == 1 for made in hub.repositories.values())


def test_a_repository_of_another_and_one_that_changes_meanwhile(run, hub):
    upload(hub, "ben/town", {".gitattributes": b""})
    with pytest.raises(InputError, match=r"may not write to ben/town"):
        push.push(PushConfig(str(run), "ben/town"))
    hub.broken = "/api/models/ada/town/commit"
    with pytest.raises(InputError, match="the hub refuses ada/town"):
        push.push(PushConfig(str(run), "ada/town"))
    hub.broken = None
    push.push(PushConfig(str(run), "ada/town"))  # the same command again
    assert "checkpoints/best.safetensors" in hub.repositories["ada/town"].files


def test_wrong_runs_and_evaluations_cost_no_request(tmp_path, run, day, hub):
    other = trained(tmp_path / "other", day, network=NETWORK, select="source", validation=day)
    (other / "checkpoints/best.safetensors").unlink()
    with pytest.raises(InputError, match=r"no checkpoint best.safetensors: continue the training"):
        push.push(PushConfig(str(other), "ada/town"))
    with pytest.raises(InputError, match=r"no file .*config.json: name a folder that segshift wrote"):
        push.push(PushConfig(str(tmp_path / "nothing"), "ada/town"))
    torch.manual_seed(1)
    moved = trained(tmp_path / "moved", day, network=replace(NETWORK, head="dpt"))
    out = predict(PredictConfig(str(moved), day, device="cpu"), tmp_path / "out")
    score = evaluate(EvaluateConfig(str(out), day), tmp_path / "score")
    with pytest.raises(InputError, match=r"score is an evaluation of .*moved with other weights than"):
        push.push(PushConfig(str(run), "ada/town", evaluations=(str(score),)))
    assert not hub.asked
    with pytest.raises(InputError, match="--name is 'town': expected a repository on the hub as user/name"):
        PushConfig(str(run), "town")


@pytest.mark.parametrize("name", ["hf:town", "hf:", "hf:a/b/c", "hf:ada/town@"])
def test_a_malformed_name_is_told_where_it_is_given(name, day):
    with pytest.raises(
        InputError, match=f"--run is '{name}': expected hf:user/name or hf:user/name@revision"
    ):
        PredictConfig(name, day)


@pytest.mark.parametrize(
    ("name", "token", "told"),
    [
        ("hf:ada/none", "hf_ada", "there is no ada/none on http://.*, or it is private"),
        ("hf:ada/mine", "hf_ben", "there is no ada/mine on http://.*, or it is private"),
        ("hf:ada/open@v9", "hf_ben", "ada/open has no revision 'v9'"),
        ("hf:ada/gated", "hf_ben", "ada/gated is given to those who accept its terms: do so at http://"),
        ("hf:ada/open", "hf_ben", "hf:ada/open holds no run of segshift"),
        ("hf:ada/hidden", "hf_ben", "hf:ada/hidden asks for the code 'os:abort' as its network"),
        ("hf:ada/a--b", "hf_ben", "'ada/a--b' is no name on the hub"),
    ],
)
def test_a_run_that_cannot_be_had_is_one_sentence(hub, monkeypatch, name, token, told):
    monkeypatch.setenv("HF_TOKEN", token)
    upload(hub, "ada/mine", {"config.json": b"{}"}).private = True
    upload(hub, "ada/open", {"config.json": b'{"model_type": "segformer"}', "model.safetensors": b"x"})
    upload(hub, "ada/gated", {"config.json": b"{}"}).gated = True
    hidden = {"config.json": json.dumps(HIDDEN).encode(), "checkpoints/best.safetensors": b"x"}
    upload(hub, "ada/hidden", hidden)
    with pytest.raises(InputError, match=told):
        segshift.load(name)


@pytest.mark.parametrize(
    "ask",
    [
        lambda name: segshift.load(f"hf:{name}"),
        lambda name: generators.family(DiffusionConfig(model=name)),
        lambda name: networks.build(NetworkConfig(name=f"hf:{name}"), CITYSCAPES.classes),
    ],
)
def test_what_the_hub_does_not_give_to_this_login_is_told_alike(hub, monkeypatch, ask):
    monkeypatch.setenv("HF_TOKEN", "hf_ben")
    upload(hub, "ada/gated", {"config.json": b"{}", "model_index.json": b"{}"}).gated = True
    upload(hub, "ada/mine", {"config.json": b"{}"}).private = True
    with pytest.raises(
        InputError, match="ada/gated is given to those who accept its terms: do so at http://"
    ):
        ask("ada/gated")
    with pytest.raises(InputError, match=r"there is no ada/mine on http://.*, or it is private: correct"):
        ask("ada/mine")
    monkeypatch.setattr(hub, "readable", refuse)
    with pytest.raises(InputError, match=r"http://\S+ does not let this login read ada/mine: log in"):
        ask("ada/mine")


def refuse(*_):
    raise hub_server.Refusal(403, "Your token has no right to read this")


def test_without_the_hub_the_cache_serves_and_nothing_waits(run, hub, unreachable, monkeypatch):
    with pytest.raises(InputError, match=r"cannot download hf:ada/town \(http://127.0.0.1:9 does not answer"):
        segshift.load("hf:ada/town")
    with pytest.raises(InputError, match=r"cannot upload to ada/town \(http://127.0.0.1:9 does not answer"):
        push.push(PushConfig(str(run), "ada/town"))
    with monkeypatch.context() as online:
        online.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        push.push(PushConfig(str(run), "ada/town"))
        segshift.load("hf:ada/town")
    sharing.pulled.cache_clear()
    assert segshift.load("hf:ada/town").record["run"] == "hf:ada/town"
