"""README.md: what it shows was measured, and what it names is there."""

import re
from pathlib import Path
from statistics import mean

import estimate
import gate
import memory
import pytest
import recipe
import settings
import zodi

from segshift import runs
from segshift.bootstrap import CLASS_FLOOR, GENERATOR, GENERATOR_CLASS
from segshift.recipes import RECIPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHOWN = dict(re.findall(r"<!-- benchmarks/results/([\w-]+)\.md -->\n(.*?)<!-- end -->", README, re.DOTALL))


RESULTS = ROOT / "benchmarks" / "results"
TABLES = {
    "estimate": estimate.tables,
    "estimate-night": estimate.tables,
    "memory": lambda told: memory.table(told["peaks"]),
    "gate": lambda told: gate.table(settings.scores_of(told["scores"]), told["transfers"]),
    "zodi": lambda told: zodi.table(settings.scores_of(told["scores"])),
}
"""What makes a table of the figures; of all others recipe.tables."""


def test_every_measured_table_is_what_a_benchmark_wrote():
    assert SHOWN.keys() >= {"demo", "estimate", "zodi", "gate"}
    for name, shown in SHOWN.items():
        assert shown.strip() == (RESULTS / f"{name}.md").read_text().strip(), name


def test_every_table_is_made_of_the_figures_beside_it():
    names = {path.stem for path in RESULTS.iterdir()}
    assert names >= SHOWN.keys()
    for name in names:
        told = runs.read_json(RESULTS / f"{name}.json")
        made = TABLES.get(name, lambda told: recipe.tables(told["scores"], told["risk_coverage_area"]))(told)
        assert made == (RESULTS / f"{name}.md").read_text(), name
        assert {"machine", "versions", "date"} <= told.keys()


def test_no_table_outside_of_those_has_measured_figures():
    rest = re.sub(r"<!-- benchmarks/results/.*?<!-- end -->", "", README, flags=re.DOTALL)
    assert not [line for line in rest.splitlines() if line.startswith("|") and "±" in line]


@pytest.mark.parametrize("name", sorted({*re.findall(r"segshift run ([a-z][\w-]+)", README), *re.findall(r"recipe\.py ([\w-]+)", README)}))
def test_every_recipe_that_is_named_is_there(name):
    assert name in RECIPES


def test_every_file_that_is_named_is_there():
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"\b(?:benchmarks|docs|tests|src)/[\w./-]*\w", text))
    assert named and not [path for path in named if not (ROOT / path).exists()]


def results(name: str) -> dict:
    return runs.read_json(RESULTS / f"{name}.json")


def means(name: str, target: str) -> dict[str, float]:
    """By row, of the last checkpoint."""
    scores = (line for line in results(name)["scores"] if line["checkpoint"] == "last" and target in line["miou"])
    return {line["row"]: mean(line["miou"][target]) for line in scores}


def share(part: float, low: float, high: float) -> str:
    return f"{(part - low) / (high - low):.0%}".replace("%", " %")


def told_of_the_estimate() -> list[str]:
    told = results("estimate")
    of, known, failing = told["results"]["segshift estimate"], told["networks"], told["failing_classes"]
    leaking, honest = known["trained on transferred frames of the domain"], known["not trained on them"]
    too_kind = {True: [], False: []}
    for pair in told["pairs"]:
        if not pair["trained_on"]:
            value, true = (pair["miou"][i] for i in (1, 0))
            too_kind[pair["domain"] == "rain"].append(100 * (value - true))
    night = results("estimate-night")
    errors = (night["results"][way]["error"] for way in ("segshift estimate", "uncorrected", "whole cost taken off"))
    return [
        f"is {of['over_networks']:.2f} over networks within a domain ({honest['over_networks']:.2f} without",
        f"and {of['over_domains']:.2f} over domains within a network",
        f"a precision of {100 * failing['precision']:.0f} % and a recall of {100 * failing['recall']:.0f} %",
        f"by {honest['bias']:.1f} points ({mean(too_kind[True]):.1f} in rain, {mean(too_kind[False]):.1f} elsewhere), and by {leaking['bias']:.1f} of",
        "half errs by {:.1f}, none by {:.1f}, all by {:.1f}".format(*errors),
        f"generator of {100 * GENERATOR:.0f} % of the mIoU, of a class {100 * GENERATOR_CLASS:.0f} % of its IoU and {100 * CLASS_FLOOR:.0f} points",
        f"{100 * night['coverage_of_90_percent_intervals']['classes']['all']:.0f} % of the classes lie inside",
        f"{len({pair['network'] for pair in told['pairs']})} networks on the embedded town",
    ]


def told_of_iccld() -> list[str]:
    day = means("iccld-town-game-ablations", "clear")
    longer = share(day["step 1, equal steps"], day["source only, equal steps"], day["oracle, equal steps"])
    closed = [share(day[row], day["source only"], day["oracle"]) for row in ("step 1", "full")]
    night = {line["row"]: line["miou"]["night"] for line in results("iccld-town-night-ablations")["scores"] if line["checkpoint"] == "last"}
    lost = (f"{a - b:.1f}" for a, b in zip(night["source only"], night["step 1"], strict=True))
    pairs = results("estimate-night")["pairs"]
    by_row = [[p["miou"] for p in pairs if p["network"].endswith(f"/{row}")] for row in ("source-only", "step-1", "full")]
    true, predicted = ([f"{100 * mean(miou[i] for miou in row):.1f}" for row in by_row] for i in (0, 1))
    moved = means("iccld-town-night-from-zodi", "night")
    photographs = means("camvid", "day")
    return [
        f"Step 1 closes {closed[0]} of the gap, the full method {closed[1]},",
        f"is {day['step 1, equal steps'] - day['full']:.1f} points better still and closes {longer} of a gap",
        "step 1 loses {}, {} and {} points".format(*lost),
        "{} for source only, {} after step 1, {} after step 2".format(*predicted),
        "the truth is {}, {} and {} (three".format(*true),
        f"are worth {moved['source + transferred'] - moved['source only']:.0f} points",
        f"connections are worth {photographs['full'] - photographs['full without inter-coder connections']:.1f} points. Of the dusk",
    ]


def test_the_figures_in_the_text_are_those_of_the_results():
    text = " ".join(README.split())
    assert not [told for told in told_of_the_estimate() + told_of_iccld() if told not in text]
