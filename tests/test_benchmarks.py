"""The tables of benchmarks/: what they make of scores. (The estimate's are in test_estimate.)"""

from dataclasses import replace
from pathlib import Path

import adapters
import full_size
import gate
import gpu
import memory
import numpy as np
import prior
import pytest
import recipe
import settings
import torch
import truth
import zodi
from transferring import manifest

from segshift import runs
from segshift.data import frames
from segshift.data.labels import CITYSCAPES
from segshift.generators import Domain
from segshift.recipes.experiment import Experiment, Row, Target
from segshift.recipes.town import town_training
from segshift.runs import InputError
from segshift.town import scenes, weather, writer
from segshift.training import checkpoints

PLAIN = town_training(steps=1, images=2)


def test_the_share_of_the_gap_is_counted_by_domain_from_means_over_seeds():
    both = ({"night": [10.0, 20.0], "game": [40.0, 40.0]}, {"night": [15.0, 15.0], "game": [35.0, 35.0]})
    lines = [
        {"row": "source only", "checkpoint": "last", "miou": both[0]},
        {"row": "source only", "checkpoint": "oracle", "miou": both[1]},
        {"row": "source + jitter", "checkpoint": "last", "miou": both[1]},
        *({"row": f"ZoDi {d}", "checkpoint": "last", "miou": {d: [30.0, 40.0]}} for d in ("night", "game")),
        *({"row": f"oracle {d}", "checkpoint": "last", "miou": {d: [55.0, 55.0]}} for d in ("night", "game")),
    ]
    text = zodi.table(settings.scores_of(lines)).splitlines()
    assert text[2] == "| source only | last | 15.0 ± 7.1 | 40.0 ± 0.0 | 27.5 |"
    assert text[3] == "| source only | oracle (not attainable) | 15.0 ± 0.0 | 35.0 ± 0.0 | 25.0 |"
    assert text[-2] == "| gap closed, source + jitter | last | 0 % | -33 % | -17 % |"
    assert text[-1] == "| gap closed, ZoDi | last | 50 % | -33 % | 8 % |"


def test_every_network_of_the_zodi_benchmark_is_chosen_by_what_it_is_judged_on():
    e = zodi.experiment(zodi.Benchmark(Path("out"), domains=("night", "game")))
    rows = {row.name: row for row in e.rows}
    night, game = ({t.name: t.data for t in e.targets}[d] for d in ("night", "game"))
    assert rows["source only"].train.oracle_validation == (night, game) and rows["source only"].targets == ()
    assert rows["ZoDi game"].train.oracle_validation == (game,) and rows["ZoDi game"].targets == ("game",)
    assert rows["ZoDi game"].train.transferred_validation == ("cityscapes:{out}/transferred-val/game:val",)
    assert rows["oracle night"].train.source == night.replace("val", "train")


def test_every_variant_of_the_gates_benchmark_is_judged_by_the_same_frames():
    e = gate.experiment(gate.Benchmark(Path("out"), domains=("night",)))
    assert [row.name for row in e.rows][:2] == ["20 steps, gate off night", "20 steps, gate on night"]
    assert {row.train.transferred_validation for row in e.rows} == {
        ("cityscapes:{out}/transferred-val/night:val",)
    }
    assert {row.train.oracle_validation for row in e.rows} == {(e.targets[0].data,)} and e.transfers[
        "transferred-val"
    ].gate is None
    assert all(row.train.validation for row in e.rows)
    lines = [
        {"row": row.name, "checkpoint": rule, "miou": {"night": [10.0, 12.0]}}
        for row in e.rows[:2]
        for rule in ("last", "oracle")
    ]
    text = gate.table(settings.scores_of(lines), {}).splitlines()
    assert text[2] == "| 20 steps, gate off | last, oracle (not attainable) | 11.0 ± 1.4 | 11.0 ± 1.4 |"


def test_a_transfers_cost_holds_every_draw_and_its_part_of_the_measuring(tmp_path):
    lines = [
        {
            "id": "a",
            "seconds": 1.0,
            "gate": {"tries": 1, "passed": True, "decision": "kept", "failing_share": 0.0},
        },
        {
            "id": "b",
            "seconds": 3.0,
            "gate": {"tries": 3, "passed": False, "decision": "ignored", "failing_share": 0.5},
        },
    ]
    for domain in ("night", "fog"):
        (tmp_path / domain).mkdir()
        runs.write_lines(tmp_path / domain / "manifest.jsonl", lines)
    runs.write_json(tmp_path / "gate.json", {"seconds": 8.0})
    expected = {
        "seconds": 2.0 + 8 / 2 / 2,
        "redrawn": 0.5,
        "failed": 0.5,
        "dropped": 0.0,
        "ignored": 0.25,
        "draws": 2.0,
    }
    assert gate.cost(tmp_path / "night") == pytest.approx(expected)
    (tmp_path / "gate.json").unlink()
    runs.write_lines(tmp_path / "night" / "manifest.jsonl", [{"id": "a", "seconds": 1.0}])
    assert gate.cost(tmp_path / "night") == {
        "seconds": 1.0,
        "redrawn": 0,
        "failed": 0,
        "dropped": 0,
        "ignored": 0,
        "draws": 1,
    }


def test_risks_are_gathered_by_target_row_sampling_and_seed(tmp_path):
    rows = (Row("plain", PLAIN), Row("full", PLAIN, uncertainty=True, samplings=((1, 5),)))
    e = Experiment("e", rows, (Target("night", "x"), Target("day", "y")), seeds=2)
    places = {"night": 0.01, "day": 0.02, "night-steps-1-draws-5": 0.03}
    for seed in range(2):
        for place, area in places.items():
            told = {"risk_coverage": {"entropy": {"area": area + 0.001 * seed}}}
            runs.write_json(tmp_path / f"seed-{seed}/full/evaluation/last/{place}/metrics.json", told)
    found = recipe.areas(e, tmp_path)
    assert found["day"] == {"full": {"entropy": [pytest.approx(20), pytest.approx(21)]}}
    assert list(found["night"]) == ["full", "full, DDIM steps 1, draws 5"]
    assert "| full, DDIM steps 1, draws 5 | 30.5 ± 0.7 |" in recipe.table("area", found["night"])


def test_a_recipes_table_has_a_line_for_every_rule():
    night = {"last": [10.0, 20.0], "source": [10.0, 18.0], "oracle": [10.0, 20.0]}
    lines = [{"row": "a", "checkpoint": rule, "miou": {"night": values}} for rule, values in night.items()]
    text = recipe.tables(lines, {"night": {"a": {"entropy": [30.0, 31.0]}}}).splitlines()
    assert text[:5] == [
        "| mIoU % | checkpoint | night |",
        "|---|---|---|",
        "| a | last, oracle (not attainable) | 15.0 ± 7.1 |",
        "| a | best on source | 14.0 ± 5.7 |",
        "",
    ]
    assert text[5:] == ["| risk-coverage area x 1000, night | entropy |", "|---|---|", "| a | 30.5 ± 0.7 |"]


def test_adapters_are_measured_against_full_training_in_one_table():
    made = {a: adapters.training(adapters.Benchmark(Path("/out")), "test_vit", a) for a in adapters.ADAPTERS}
    for adapter, config in made.items():
        assert config == replace(made["none"], network=replace(config.network, adapter=adapter))
    assert made["lora"].network.adapter == "lora" and made["none"].transferred == (made["none"].source,)
    row = {"parameters": 1.26, "memory": 0.5, "rate": 2.0}
    assert adapters.table({"a": row}).splitlines()[2] == "| a | 1.3 | 0.50 | 2.00 |"


def test_memory_is_measured_of_the_published_settings():
    made = memory.trainings(memory.Benchmark(Path("/out")), "resnet50", True)
    (step1, home), (full, _) = made["step 1"], made["full"]
    assert (
        full.from_run == str(home)
        and step1.source.startswith("gta5:/out/town/")
        and step1.target.startswith("cityscapes:/out/town/")
    )
    assert made["source only"][0].target is None
    for config, _ in made.values():
        assert (config.batch_size, config.crop, config.precision) == (
            2,
            (512, 512),
            "bf16",
        ) and not config.oracle_validation
        assert (
            config.network.encoder == "resnet50"
            and not config.network.pretrained
            and config.gradient_checkpointing
        )
        assert config.iccld.adversary_warmup == 0
    assert "| a | 1.2 | 3.0 |" in memory.table({"a": {"step 1": 1.23, "full": 3.0}})


def test_rows_are_chosen_by_name():
    rows = (Row("a", PLAIN), Row("b", PLAIN))
    assert recipe.chosen(rows, ()) == rows and recipe.chosen(rows, ("b",)) == rows[1:]
    with pytest.raises(InputError, match="no row 'c': there are a, b"):
        recipe.chosen(rows, ("c",))


def test_every_line_of_the_gpu_benchmark_runs_at_a_tiny_size(tmp_path: Path):
    gpu.main(gpu.Benchmark(tmp_path, device="cpu", tiny=True))
    found = runs.read_json(tmp_path / "lines-cpu-tiny.json")
    assert {name.split(",")[0] for name in found} == {
        "matrix product",
        "transfer",
        "ZoDi",
        "ICCLD",
        "prediction",
    }
    assert all(line["rate"] > 0 for line in found.values())  # no line failed
    assert found["transfer, ours, bfloat16, 2"]["tflops"] > 0
    text = (tmp_path / "gpu.md").read_text()
    assert "| matrix product, float32 |" in text and " 100%" in text
    gpu.main(gpu.Benchmark(tmp_path, device="cpu", tiny=True))  # nothing is measured again
    assert runs.read_json(tmp_path / "lines-cpu-tiny.json") == found


def test_a_line_that_fails_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail() -> gpu.Line:
        raise torch.OutOfMemoryError("no memory left\nand a long trace")

    monkeypatch.setattr(gpu, "lines", lambda b, device: {"a": fail})
    monkeypatch.setattr(gpu, "iccld_trainings", lambda b, device: {})
    gpu.main(gpu.Benchmark(tmp_path, device="cpu", tiny=True))
    assert "| a | no memory left | | |" in (tmp_path / "gpu.md").read_text()


def test_the_full_size_benchmark_transfers_a_frame_at_a_tiny_size(tmp_path: Path, capsys):
    told = full_size.Benchmark(tmp_path, (32, 32, 32, 32), (32, 32, 32, 32), (32, 1), (64, 128))
    full_size.main(told)
    assert '"code": 0, "frames": 1' in capsys.readouterr().out
    assert len(manifest(tmp_path / "transferred")) == 1
    assert manifest(tmp_path / "transferred")[0]["settings"]["steps"] == 2


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> Path:
    """A measurement of the embedded prior with a judge that has learnt next to nothing."""
    out = tmp_path_factory.mktemp("prior")
    prior.main(prior.Benchmark(out, scenes=2, judge_scenes=1, steps=2))
    return out


def test_the_priors_benchmark_measures_every_domain_and_draws_its_streets(judged: Path):
    lines = (judged / "prior.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in prior.MEASURES]
    assert all(line.count("|") == 9 for line in lines[2:])
    space = checkpoints.read_space(judged / "judge")
    assert space.names == CITYSCAPES.names and space.ids == tuple(range(19))  # else it is judged by others
    assert (judged / "town.jpg").stat().st_size > 10_000


def test_a_prior_that_draws_the_truth_keeps_everything(judged: Path, monkeypatch: pytest.MonkeyPatch):
    benchmark = prior.Benchmark(judged, scenes=2, judge_scenes=1, steps=2)
    labels, true = prior.streets(1, 2)
    monkeypatch.setattr(prior, "transfer_images", lambda *a, **k: true)
    told = prior.measure(prior.judge(benchmark), "town", labels, true, judged / "true.jpg")
    for name in ("kept", "small kept", "sharpness", "recognised"):
        assert told[name] == dict.fromkeys(prior.TOWN_DOMAINS, 1.0), name
    assert set(told["decoded kept"].values()) != {1.0}


def test_perfect_pictures_are_the_towns_own_of_the_same_streets(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(truth, "TOWN", replace(truth.TOWN, source_train=2))
    writer.write(tmp_path, counts={"cityscapes/train": 2})
    images = [frames.read_image(path) for path in sorted(tmp_path.rglob("*_leftImg8bit.png"))]
    layers = scenes.draw(scenes.BENCHMARK, 1, *images[1].shape[:2])
    made = truth.build()(images[1], None, Domain("night", "driving at night", 0.9), 0)
    assert np.array_equal(made, weather.render(layers, ("night",), 0))
