"""README.md: what it shows was measured, and what it names is there."""

import re
from pathlib import Path

import estimate
import gate
import memory
import pytest
import recipe
import settings
import zodi

from segshift import runs
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
