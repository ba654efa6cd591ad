"""Check: every fault of a data set found and named, classes counted."""

import os
from pathlib import Path

import numpy as np
import pytest
import trees

from segshift.config import CheckConfig
from segshift.runs import InputError, failures, read_json
from segshift.stages.check import check


def test_a_sound_data_set_has_no_faults_and_its_classes_are_counted(tmp_path: Path):
    root = trees.cityscapes(tmp_path / "data")
    trees.cityscapes(root, ["berlin_000000_000019"], split="test", labelled=False)  # a test split is no fault
    report = check(CheckConfig(f"cityscapes:{root}"), tmp_path / "out")
    assert report.failures == () and failures(tmp_path / "out") == []
    labels = np.stack([trees.train_ids(id) for id in trees.IDS])
    assert [(c.name, c.pixels) for c in report.classes[:2]] == [
        ("road", (labels == 0).sum()),
        ("sidewalk", (labels == 1).sum()),
    ]
    assert {c.frames for c in report.classes} == {3}
    assert report.void_pixels == (labels == 255).sum()
    written = read_json(tmp_path / "out/check.json")
    assert (written["frames"], written["labelled"], written["sizes"]) == (4, 3, {"64x32": 4})
    assert written["classes"][0] == {"name": "road", "pixels": int((labels == 0).sum()), "frames": 3}


def test_every_fault_is_listed_with_its_frame(tmp_path: Path):
    ids = [f"ulm_{i:06d}_000019" for i in range(8)]
    root = trees.cityscapes(tmp_path / "data", ids)
    image = [root / f"leftImg8bit/train/ulm/{id}_leftImg8bit.png" for id in ids]
    label = [root / f"gtFine/train/ulm/{id}_gtFine_labelIds.png" for id in ids]
    label[0].unlink()
    image[1].unlink()
    image[2].write_bytes(image[2].read_bytes()[:300])
    label[3].write_bytes(label[3].read_bytes()[:60])
    trees.save(label[4], np.zeros((16, 64), np.uint8))
    trees.save(label[5], np.full((32, 64), 77, np.uint8))
    image[6].write_text("no picture")
    report = check(CheckConfig(f"cityscapes:{root}:train"), tmp_path / "out")
    assert failures(tmp_path / "out") == list(report.failures)
    found = {fault["id"]: fault["error"] for fault in report.failures}
    assert found.keys() == set(ids[:7]) and len(report.failures) == 7
    expected = [
        f"no label {label[0]}",
        f"no image {image[1]}",
        f"cannot read {image[2]}",
        f"cannot read {label[3]}",
        f"image {image[4]} is 64x32, its label 64x16",
        f"label {label[5]} holds the values 77",
        f"cannot read {image[6]}",
    ]
    for id, text in zip(ids, expected, strict=False):
        assert found[id].startswith(text)


def test_a_subset_without_labels_is_called_that(tmp_path: Path, capsys):
    root = trees.cityscapes(tmp_path, split="test", labelled=False)
    report = check(CheckConfig(f"cityscapes:{root}:test"))
    assert (report.frames, report.labelled, report.unlabelled, report.failures) == (3, 0, 3, ())
    assert "3 frames, no labels: an unlabelled set" in capsys.readouterr().out
    ids = [f"ulm_{i:06d}_000019" for i in range(3)]
    trees.cityscapes(root, ids)
    assert check(CheckConfig(f"cityscapes:{root}:train")).unlabelled == 0
    assert "label" not in capsys.readouterr().out.splitlines()[-1]
    label = root / f"gtFine/train/ulm/{ids[0]}_gtFine_labelIds.png"
    label.write_text("no picture")
    report = check(CheckConfig(f"cityscapes:{root}"))
    assert (report.frames, report.labelled, report.unlabelled) == (6, 2, 3)
    assert "6 frames, 1 without a readable label, 3 in subsets without labels" in capsys.readouterr().out


def test_a_picture_of_another_kind_is_named_with_what_takes_it(tmp_path: Path):
    root = trees.folder(tmp_path / "data")
    trees.save(root / "train/images/b.PNG", trees.picture("b", (32, 64)))
    (root / "train/images/b.jpg").unlink()
    [fault] = check(CheckConfig(f"folder:{root}:train")).failures
    assert "b.jpg, but b.PNG: end `images`" in fault["error"]
    (root / "dataset.yaml").write_text(trees.FOLDER_YAML.replace("*.jpg", "*"))
    report = check(CheckConfig(f"folder:{root}:train"))
    assert (report.frames, report.failures) == (3, ())


def test_names_are_printed_as_they_are(tmp_path: Path, capsys):
    text = trees.FOLDER_YAML.replace("road", '"[/road]"').replace("day", '"[/day]"')
    check(CheckConfig(f"folder:{trees.folder(tmp_path, yaml=text)}:train"))
    out = capsys.readouterr().out
    assert "[/road]" in out and "domain: [/day] (3)" in out


def test_names_that_cannot_be_written_are_faults(tmp_path: Path):
    root = trees.folder(tmp_path / "data")
    (root / "train/images/a.jpg").rename(Path(os.fsdecode(os.fsencode(root) + b"/train/images/\xff.jpg")))
    check(CheckConfig(f"folder:{root}:train"), tmp_path / "out")
    assert [fault["id"] for fault in failures(tmp_path / "out")] == ["\\udcff", "a"]


def test_a_label_that_links_to_nothing_is_a_fault(tmp_path: Path):
    root = trees.cityscapes(tmp_path)
    label = root / f"gtFine/train/aachen/{trees.IDS[0]}_gtFine_labelIds.png"
    label.unlink()
    label.symlink_to(tmp_path / "gone.png")
    [fault] = check(CheckConfig(f"cityscapes:{root}:train")).failures
    assert (
        fault["error"]
        == f"{label} links to {tmp_path}/gone.png, which is gone: restore it, or transfer again"
    )


def test_smaller_images_of_a_transferred_tree_are_no_fault(tmp_path: Path):
    root = trees.cityscapes(tmp_path)
    for file in root.glob("leftImg8bit/*/*/*.png"):
        trees.save(file, trees.picture("small", (16, 32)))
    assert len(check(CheckConfig(f"cityscapes:{root}:train")).failures) == 3
    trees.mark_transferred(root, trees.IDS)
    assert check(CheckConfig(f"cityscapes:{root}:train")).failures == ()


def test_processes_change_nothing(tmp_path: Path):
    root = trees.gta5(
        tmp_path / "data", [f"{i:05d}" for i in range(20)], (16, 16), splits={"train": [*range(20), 99]}
    )
    alone, together = (check(CheckConfig(f"gta5:{root}:train", workers=n)) for n in (1, 2))
    assert alone == together
    assert [fault["id"] for fault in alone.failures] == ["00099"]


def test_a_folder_of_another_check_is_refused(tmp_path: Path):
    root = trees.cityscapes(tmp_path / "data")
    check(CheckConfig(f"cityscapes:{root}:train"), tmp_path / "out")
    check(CheckConfig(f"cityscapes:{root}:train", workers=1), tmp_path / "out")
    with pytest.raises(InputError, match="other options"):
        check(CheckConfig(f"cityscapes:{root}"), tmp_path / "out")
