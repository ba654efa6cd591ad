"""Run folders: atomic files and configurations that cannot be mixed up."""

from dataclasses import replace
from pathlib import Path

import pytest

from segshift import runs
from segshift.config import TrainConfig, TransferConfig
from segshift.outputs import begin
from segshift.recipes.experiment import Experiment, Row, Target
from segshift.runs import InputError, atomic, read_config, read_lines, slug, write_lines


def test_a_failing_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(RuntimeError), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_config_round_trips_and_another_one_is_refused(tmp_path: Path):
    config = TransferConfig(source="cityscapes:/data:train", to=("night", "fog"))
    begin(tmp_path, "transfer", config, free=("batch_size",))
    assert read_config(tmp_path / "config.json", TransferConfig) == config
    begin(
        tmp_path,
        "transfer",
        TransferConfig(source="cityscapes:/data:train", to=("night", "fog"), batch_size=1),
        free=("batch_size",),
    )
    with pytest.raises(InputError, match="seed 42 there, 7 asked for"):
        begin(
            tmp_path, "transfer", TransferConfig(source="cityscapes:/data:train", to=("night", "fog"), seed=7)
        )


def test_of_nested_settings_that_differ_the_inner_ones_are_told(tmp_path: Path):
    def town(*names: str) -> Experiment:
        rows = tuple(Row(name, TrainConfig(source=f"cityscapes:/{name}:train")) for name in names)
        return Experiment("mine", rows, (Target("night", "acdc:/acdc:night/val"),))

    begin(tmp_path, "run", town("a", "b"))
    with pytest.raises(InputError) as caught:
        begin(tmp_path, "run", replace(town("a", "c"), seeds=2))
    told = (
        "(--rows.1.name b there, c asked for, --rows.1.train.source cityscapes:/b:train there, "
        "cityscapes:/c:train asked for, and 1 more)"
    )
    assert told in str(caught.value)
    one = Experiment(
        "mine",
        (),
        (),
        {"a": TransferConfig(source="cityscapes:/x"), "b": TransferConfig(source="cityscapes:/x")},
    )
    begin(tmp_path / "more", "run", one)
    with pytest.raises(
        InputError, match=r"transfers\.b .* there, None asked for"
    ):  # what is gone differs too
        begin(tmp_path / "more", "run", replace(one, transfers={"a": one.transfers["a"]}))
    with pytest.raises(InputError, match="and 4 more"):
        begin(tmp_path, "run", replace(town("c", "d"), seeds=2, published="x"))


def test_a_line_cut_short_is_left_out(tmp_path: Path):
    (tmp_path / "lines.jsonl").write_text('{"id": "a"}\n{"id": ')
    assert read_lines(tmp_path / "lines.jsonl") == [{"id": "a"}]


def test_lines_hold_any_letter_and_one_cut_within_a_letter_costs_no_other(tmp_path: Path):
    lines = [{"id": "a", "prompt": "夜の運転"}, {"id": "b\u2028c", "prompt": "Fährt"}]
    write_lines(tmp_path / "lines.jsonl", lines)
    assert read_lines(tmp_path / "lines.jsonl") == lines
    whole = (tmp_path / "lines.jsonl").read_bytes()
    (tmp_path / "lines.jsonl").write_bytes(whole[: whole.index("運".encode()) + 1] + b"\n" + whole)
    assert read_lines(tmp_path / "lines.jsonl") == lines


def test_a_path_may_be_written_in_another_way(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def config(root: str) -> TrainConfig:
        return TrainConfig(
            source=f"cityscapes:{root}:train", transferred=(f"cityscapes:{root}/night:train",), from_run=root
        )

    begin(tmp_path / "run", "train", config("data/"))
    begin(tmp_path / "run", "train", config(f"{tmp_path}/data"))
    begin(tmp_path / "run", "train", config("data"))
    with pytest.raises(InputError, match="source"):
        begin(tmp_path / "run", "train", config(f"{tmp_path}/other"))


def test_progress_is_told_by_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(runs, "LOG_EVERY", 0.0)
    with runs.progress("transfer on cpu", 3, done=1) as bar:
        bar.advance()
        assert "transfer on cpu: 2 of 3" in capsys.readouterr().out
        monkeypatch.setattr(runs, "LOG_EVERY", 1000.0)
        bar.advance()
    assert "3 of 3" not in capsys.readouterr().out


def test_a_folder_name_keeps_letters_of_any_alphabet_and_the_known_domains():
    assert [slug(name) for name in ("night", "snow", "rain", "fog", "game")] == [
        "night",
        "snow",
        "rain",
        "fog",
        "game",
    ]
    assert (
        slug("Driving through a sandstorm!") == "driving-through-a-sandstorm"
        and slug("source + jitter") == "source-jitter"
    )
    assert (
        slug("夜间驾驶") == "夜间驾驶" and slug("Fährt im Schnee") == "fährt-im-schnee" and slug("...") == ""
    )
    long = [slug("a very long sentence about driving " * 3 + end) for end in ("in rain", "in snow")]
    assert long[0] != long[1] and max(map(len, long)) < 60


def test_a_long_path_loses_its_middle_and_the_advice_survives():
    deep = "/data" + "/a-folder-of-many-letters" * 12
    message = (
        f"label {deep}/aachen_000012.png holds 9, which is no class: correct it, or see {deep}/dataset.yaml"
    )
    told = runs.one_line(message)
    assert len(told) <= 300 and told.startswith("label /data/") and "/aachen_000012.png holds 9" in told
    assert told.endswith("/dataset.yaml") and "correct it, or see /data/" in told
    short = f"cannot read {deep[:100]}/x.png: restore it"
    assert runs.one_line(short) == short
    assert len(runs.one_line("word " * 100)) <= 300


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"source": "cityscapes:/x", "steps": 9, "generator": "own:build"},
            r"^in .*json, --steps is for a dif",
        ),
        (
            {"source": "cityscapes:/x", "steps": -1},
            r"\(steps: expected greater than or equal to 1\): use",
        ),
        ({"source": "cityscapes:/x", "no_such": 1}, r"is no TransferConfig of this version \(no_such\): use"),
        ({}, r"is no TransferConfig of this version \(source: Field required\): use"),
    ],
)
def test_a_configuration_that_is_wrong_is_one_sentence(tmp_path, config, message):
    runs.write_json(tmp_path / "config.json", {"stage": "transfer", "config": config})
    with pytest.raises(InputError, match=message):
        runs.read_config(tmp_path / "config.json", TransferConfig)
