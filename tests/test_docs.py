"""README.md and docs/: links lead somewhere, commands parse, tables are what was measured, and names exist.

Prose is not tested.
"""

import ast
import functools
import inspect
import re
import shlex
from pathlib import Path
from typing import get_type_hints

import adapters
import estimate
import gate
import memory
import photographs
import prior
import pytest
import real_case
import recipe
import settings
import tyro
import zodi

import segshift
from segshift import runs
from segshift.__main__ import main
from segshift.commands import COMMANDS
from segshift.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}

# ------------------------------------------------------------------------------------------------- commands


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of every code block, fenced ones and those that are indented below text."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?<=\n\n)((?:    .*\n)+)", fence.sub("", text))
    return [*fence.findall(text), *(("", block) for block in indented)]


def command_lines(text: str) -> list[str]:
    """What follows `segshift` in every such line of a text's code blocks, those of torchrun included."""
    lines = "\n".join(content for language, content in blocks(text) if language in ("", "bash")).replace(
        "\\\n", " "
    )
    found = (re.fullmatch(r"\s*(?:torchrun .* -m )?segshift (.*)", line) for line in lines.splitlines())
    return [match[1] for match in found if match]


@pytest.fixture
def parsed(monkeypatch):
    """Parses a command line by the command's own parser; the command itself only notes that it was called."""
    called = []

    def noted(function):
        def note(*_given, **_options):
            called.append(function.__name__)

        functools.update_wrapper(note, function)
        note.__annotations__ = get_type_hints(
            function, include_extras=True
        )  # found in the command's module, not in this one
        return note

    def parse(line: str) -> None:
        name, *rest = shlex.split(line, comments=True)
        config = (tyro.conf.CascadeSubcommandArgs,)
        tyro.cli(noted(COMMANDS[name]), prog=f"segshift {name}", args=rest, config=config)
        assert called.pop() == name

    return parse


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_parses(page: str, parsed):
    for line in command_lines(TEXTS[page]):
        try:
            parsed(line)
        except SystemExit:
            pytest.fail(f"segshift {line}")


def test_wrong_commands_are_found(parsed):
    text = "First:\n\n    segshift check --data cityscapes:d --out x  # a comment\n\n"
    text += "```bash\nsegshift train x \\\n    --sauce y\n```\n"
    right, wrong = sorted(command_lines(text))
    parsed(right)
    with pytest.raises(SystemExit):
        parsed(wrong)


def test_the_readme_shows_the_way_from_a_folder_to_a_result():
    shown = [line.split()[0] for line in command_lines(TEXTS["README.md"])]
    assert shown == ["check", "transfer", "train", "predict", "evaluate"]


def test_every_recipe_that_is_named_is_there():
    named = {name for text in TEXTS.values() for name in re.findall(r"segshift run ([a-z][\w-]+)", text)}
    assert named and named <= RECIPES.keys()


def test_every_python_block_compiles_and_takes_from_segshift_what_is_there():
    names = set()
    for text in TEXTS.values():
        for language, content in blocks(text):
            if language == "python":
                nodes = ast.walk(ast.parse(content))
                names |= {
                    alias.name
                    for node in nodes
                    if isinstance(node, ast.ImportFrom) and node.module == "segshift"
                    for alias in node.names
                }
    assert names and names <= set(segshift.__all__)


# ---------------------------------------------------------------------------------------------------- links


def anchors(text: str) -> set[str]:
    """Of the headings, as forges and the site make them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of it."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        if re.match(r"\w+:", link):
            continue
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path):
    assert not broken(page, page.read_text())


def test_broken_links_are_found():
    text = "# A heading, here\n[a](README.md) "
    text += "[b](#a-heading-here) [c](nowhere.md) [d](README.md#nowhere) [e](ftp://x)"
    assert broken(ROOT / "CHANGELOG.md", text) == ["#a-heading-here", "nowhere.md", "README.md#nowhere"]
    assert anchors(text) == {"a-heading-here"}


def test_every_file_that_is_named_is_there():
    named = {
        path
        for text in TEXTS.values()
        for path in re.findall(r"\b(?:benchmarks|docs|tests|src)/[\w./-]*\w", text)
    }
    assert named and not [path for path in named if not (ROOT / path).exists()]


# --------------------------------------------------------------------------------------------------- tables

SHOWN = [
    (page, name, how, table.strip())
    for page, text in TEXTS.items()
    for name, how, table in re.findall(
        r"<!-- benchmarks/results/([\w-]+)\.md(.*?) -->\n(.*?)<!-- end -->", text, re.DOTALL
    )
]
TABLES = {
    "prior": lambda told: prior.table(told["measured"]),
    "adapters": lambda told: adapters.table(told["rows"]),
    "estimate": estimate.tables,
    "estimate-night": estimate.tables,
    "memory": lambda told: memory.table(told["peaks"]),
    "gate": lambda told: gate.table(settings.scores_of(told["scores"]), told["transfers"]),
    "photographs": lambda told: recipe.table(photographs.HEAD, told["day"]),
    "real-case": real_case.table,
    "zodi": lambda told: zodi.table(settings.scores_of(told["scores"])),
}
"""What makes a table of the figures; of all others recipe.tables."""


def last_checkpoint(table: str) -> str:
    """The lines of the last checkpoint, without the column that says so."""
    head, rule, *rows = (line.split("|") for line in table.splitlines())
    kept = [head, rule, *(row for row in rows if row[2].strip().startswith("last"))]
    return "\n".join("|".join(cells[:2] + cells[3:]) for cells in kept)


WAYS = {"": str.strip, ", last checkpoint": lambda table: last_checkpoint(table.strip())}
"""How a result may be shown."""


@pytest.mark.parametrize(
    ("page", "name", "how", "table"), SHOWN, ids=[f"{page}:{name}" for page, name, *_ in SHOWN]
)
def test_every_measured_table_is_what_a_benchmark_wrote(page: str, name: str, how: str, table: str):
    assert table == WAYS[how]((RESULTS / f"{name}.md").read_text())


def test_every_result_is_shown_in_full():
    assert {name for page, name, how, _ in SHOWN if page == "docs/results.md" and not how} == {
        f.stem for f in RESULTS.glob("*.md")
    }


def test_every_table_is_made_of_the_figures_beside_it():
    for path in sorted(RESULTS.glob("*.md")):
        told = runs.read_json(path.with_suffix(".json"))
        made = TABLES.get(path.stem, lambda told: recipe.tables(told["scores"], told["risk_coverage_area"]))(
            told
        )
        assert made == path.read_text(), path.stem
        assert {"machine", "versions", "date"} <= told.keys()


def test_no_table_outside_of_those_has_measured_figures():
    for page, text in TEXTS.items():
        rest = re.sub(r"<!-- benchmarks/results/.*?<!-- end -->", "", text, flags=re.DOTALL)
        assert not [line for line in rest.splitlines() if line.startswith("|") and "±" in line], page


# --------------------------------------------------------------------------------------- reference, messages


def test_the_reference_has_every_public_name():
    assert sorted(re.findall(r"^::: segshift\.(\w+)$", TEXTS["docs/reference.md"], re.MULTILINE)) == sorted(
        segshift.__all__
    )


def texts_of(path: Path) -> list[str]:
    """Every text in a module's source, f-strings with a gap for each of their values."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append(
                "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_troubleshooting_quotes_messages_that_are_there():
    texts = [text for path in (ROOT / "src").rglob("*.py") for text in texts_of(path)]
    quoted = [
        q
        for bold in re.findall(r"^\*\*`.*$", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
        for q in re.findall(r"\*\*`(.*?)`\*\*", bold)
    ]
    lost = []
    for quote in quoted:
        pattern = re.compile(".*".join(map(re.escape, quote.split("..."))), re.DOTALL)
        if not any(pattern.search(text) for text in texts):
            lost.append(quote)
    assert quoted
    assert not lost, lost


def test_every_option_that_is_named_is_there(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
    main(["--help"])
    options = set(re.findall(r"--[a-z][\w.-]*[a-z]", capsys.readouterr().out)) | {
        "--version",
        "--tables",
        "--help",
    }
    named = {(page, name) for page, text in TEXTS.items() for name in re.findall(r"`(--[a-z][\w.-]*)", text)}
    assert named
    assert sorted((page, name) for page, name in named if name not in options) == []


def test_paths_in_docstrings_keep_their_brackets_on_the_site():
    bare = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            text = getattr(getattr(node, "value", None), "value", None)
            if not (isinstance(node, ast.Expr) and isinstance(text, str)):
                continue
            blocks_and_code = r"`[^`]*`|^    \S.*\n(?: .*\n)*"
            text = re.sub(blocks_and_code, "", inspect.cleandoc(text) + "\n", flags=re.MULTILINE)
            bare += [f"{path.name}: {found}" for found in re.findall(r"<[a-z][\w ]*>", text)]
    assert not bare
