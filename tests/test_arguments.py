"""What the command line cannot take: one sentence, which names options as they are typed."""

import itertools

import pytest

from segshift import arguments, commands
from segshift.runs import InputError


@pytest.mark.parametrize(
    ("command", "words", "sentence"),
    [
        ("evaluate", "", "needs OUT, --predictions, --data:"),
        ("evaluate", "out --predictons x", "needs --predictions, --data and does not know --predictons:"),
        (
            "evaluate",
            "o --predictions x --data y --protocl z",
            "does not know --protocl, perhaps --protocol",
        ),
        ("evaluate", "out more --predictions x --data y", "does not know more:"),
        (
            "evaluate",
            "o --predictions x --data y --protocol z",
            "--protocol is 'z': expected native, as-published",
        ),
        ("evaluate", "o --predictions x --data y --classes 12", "--classes is '12': expected 13, 16, 19:"),
        (
            "evaluate",
            "o --predictions x --data y --workers abc",
            "--workers is 'abc': expected a whole number",
        ),
        (
            "evaluate",
            "o --predictions x --data y --workers=1e3",
            "--workers is '1e3': expected a whole number",
        ),
        ("evaluate", "out --predictions", "--predictions needs a value:"),
        ("predict", "out --run x --size 3", "--size is '3': expected 2 whole numbers:"),
        ("predict", "out --run x --size 3 a", "--size is '3 a': expected 2 whole numbers:"),
        ("predict", "out --run x --draws many", "--draws is 'many': expected a whole number"),
        ("transfer", "out --source x --guidance a", "--guidance is 'a': expected a number:"),
        (
            "transfer",
            "out --source x --diffusion.modl a",
            "does not know --diffusion.modl, perhaps --diffusion.model",
        ),
        (
            "run",
            "demo --data cityscapes",
            "--data is 'cityscapes': expected names with values,",
        ),
        ("prior", "trin out", "action is 'trin': expected train:"),
    ],
)
@pytest.mark.parametrize("columns, encoding", [("80", "ascii"), ("250", "utf-8")])
def test_wrong_arguments_are_one_sentence(
    command: str, words: str, sentence: str, columns: str, encoding: str, monkeypatch, capsys
):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", encoding == "utf-8")
    with pytest.raises(InputError) as caught:
        arguments.parsed(f"segshift {command}", commands.COMMANDS[command], words.split())
    told = str(caught.value)
    assert told.removeprefix(f"segshift {command} ").startswith(sentence)
    assert told.endswith(f": segshift {command} --help explains all options")
    assert "\n" not in told and "│" not in told and len(told) <= 300
    assert "".join(capsys.readouterr()) == ""


def test_help_is_printed_and_good_arguments_make_a_call(capsys):
    with pytest.raises(SystemExit) as stop:
        arguments.parsed("segshift evaluate", commands.evaluate, ["--help"])
    assert not stop.value.code and "--predictions" in capsys.readouterr().out
    call = arguments.parsed("segshift recipes", commands.recipes, [])
    call()
    assert "zodi-town-night" in capsys.readouterr().out


def test_help_breaks_a_line_only_where_no_word_fits(capsys):
    with pytest.raises(SystemExit):
        arguments.parsed("segshift train", commands.train, ["--help"])
    lines = [line.removeprefix("│").removesuffix("│") for line in capsys.readouterr().out.splitlines()]
    told = [(a, b) for a, b in itertools.pairwise(lines) if a[:7] == b[:7] == " " * 7 and b.strip()]
    assert len(told) > 50
    for one, following in told:
        assert len(f"{one.rstrip()} {following.split()[0]} ") > len(one), one
