import multiprocessing
import signal

import numpy as np
import pytest
import torch
import trees
from training import config, last, logged, trees_of

from segshift.config import NetworkConfig, ZoDiConfig
from segshift.data import samples as batches
from segshift.methods.zodi.adaptation import ZoDi
from segshift.runs import InputError
from segshift.stages.train import train
from segshift.training import checkpoints, session


@pytest.fixture
def data(tmp_path):
    return trees_of(tmp_path)


@pytest.mark.parametrize(
    ("select", "field"),
    [("source", "source"), ("transferred", "transferred/night/val"), ("oracle", "oracle/fog/val")],
)
def test_the_best_checkpoint_is_chosen_by_the_set_it_is_named_after(data, tmp_path, select, field):
    settings = config(
        data,
        select=select,
        transferred_validation=(f"cityscapes:{data}/night:val",),
        oracle_validation=(f"cityscapes:{data}/fog:val",),
        validate_every=1,
    )
    run = train(settings, tmp_path / "run")
    judged = [line for line in logged(run) if "validation" in line]
    assert len(judged) == 6
    assert [line["score"] for line in judged] == [line["validation"][field]["miou"] for line in judged]
    for rule, name in (
        ("source", "source"),
        ("transferred", "transferred/night/val"),
        ("oracle", "oracle/fog/val"),
    ):
        scores = [line["validation"][name]["miou"] for line in judged]
        assert checkpoints.best_record(run, rule) == {
            "step": 1 + int(np.argmax(scores)),
            "score": max(scores),
        }
    by_set = [tuple(line["validation"][name]["miou"] for line in judged) for name in judged[0]["validation"]]
    assert len(set(by_set)) == 3  # or one could stand for another
    assert checkpoints.best_record(run) == checkpoints.best_record(run, select)
    assert checkpoints.rules(settings) == ("last", "source", "transferred", "oracle")
    assert len(list((run / "checkpoints").glob("best*"))) == 3


def test_a_rule_goes_by_the_mean_of_all_its_sets(data, tmp_path):
    sets = (f"cityscapes:{data}/fog:val", f"cityscapes:{data}/fog:train", f"cityscapes:{data}/night:val")
    run = train(config(data, select="oracle", oracle_validation=sets, validate_every=1), tmp_path / "run")
    for line in (line for line in logged(run) if "validation" in line):
        judged = [
            line["validation"][f"oracle/{name}"]["miou"] for name in ("fog/val", "fog/train", "night/val")
        ]
        assert line["score"] == pytest.approx(np.mean(judged)) and len(set(judged)) == 3
    with pytest.raises(InputError, match="two validation sets are called 'oracle/fog/val'"):
        train(config(data, oracle_validation=(sets[0], *sets), validate_every=1), tmp_path / "twice")


def test_a_rule_without_its_set_keeps_no_checkpoint(data, tmp_path):
    run = train(config(data), tmp_path / "run")
    assert checkpoints.rules(config(data)) == ("last", "source")
    with pytest.raises(InputError, match=r"has no checkpoint 'oracle'.* choose one of last, source, or"):
        checkpoints.load_run(run, "oracle")


def test_the_last_checkpoint_needs_no_validation(data, tmp_path):
    train(config(data, validation=None, select="last"), tmp_path / "run")
    assert checkpoints.best_record(tmp_path / "run") == {"step": 6, "score": None}
    best, newest = (
        checkpoints.load_run(tmp_path / "run", which)[0].state_dict() for which in ("best", "last")
    )
    assert all(torch.equal(best[key], newest[key]) for key in best)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transferred": ()}, "method zodi needs transferred images"),
        ({"method": "source_only"}, "source_only does not use --transferred"),
        ({"validation": None}, "--select source needs a validation set: name one as --validation"),
        ({"select": "target"}, "--select target needs an unlabelled target data set: name one as --target,"),
        ({"select": "transferred"}, "name one as --transferred-validation"),
        ({"select": "oracle"}, "name one as --oracle-validation"),
        ({"crop": (64, 64)}, r"--crop \(64, 64\) is larger than the size \(32, 64\)"),
        ({"accumulate": 3}, "--batch-size 4 cannot be divided into 3 micro-batches"),
        ({"precision": "fp16"}, "precision fp16 needs a GPU"),
        (
            {"network": NetworkConfig(name="networks:one_class_too_many")},
            "one channel for each of the 19 classes",
        ),
        ({"zodi": ZoDiConfig(similarity="simsiam"), "batch_size": 1}, "a micro-batch of one image"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(data, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        train(config(data, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_processes_that_see_another_folder_are_refused(data, tmp_path, monkeypatch):
    train(config(data, steps=2), tmp_path / "run")
    first = "segshift.training.session.broadcast_object_list"
    monkeypatch.setattr(first, lambda told: [0])  # where nothing is there, as on another node's own disk
    with pytest.raises(
        InputError, match="is at step 2 where process 0 runs and at step 0 where the first one"
    ):
        train(config(data, steps=2), tmp_path / "run")


def test_a_device_that_is_not_there_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch finds no device 'cuda'"):
        train(config(data, device="cuda"), tmp_path / "run")


def test_a_transferred_set_that_does_not_match_is_refused(data, tmp_path):
    next((data / "night").rglob("*_leftImg8bit.png")).unlink()
    with pytest.raises(InputError, match=r"has 5 frames and .*night:train 4"):
        train(config(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_label_of_another_size_is_refused_but_for_a_transferred_tree(data, tmp_path):
    for tree in ("night", "day"):
        path = next((data / tree / "gtFine" / "train").rglob("*.png"))
        trees.save(path, np.full((64, 128), 7, np.uint8))
        if tree == "night":
            train(config(data, steps=1), tmp_path / "fine")
    with pytest.raises(InputError, match=r"not the same size .*day"):
        train(config(data), tmp_path / "run")


def test_validation_with_other_classes_is_refused(data, tmp_path):
    (data / "mine").mkdir()
    trees.save(data / "mine" / "images" / "a.png", trees.picture("a"))
    trees.save(data / "mine" / "labels" / "a.png", np.zeros((32, 64), np.uint8))
    (data / "mine" / "dataset.yaml").write_text(
        "images: images/*.png\nlabels: labels/*.png\nclasses: [sky, road]\n"
    )
    with pytest.raises(InputError, match="expected the same"):
        train(config(data, validation=f"folder:{data}/mine"), tmp_path / "run")
    with pytest.raises(InputError, match="expected Cityscapes' 19 for --classes 16"):
        source = f"folder:{data}/mine"
        train(
            config(
                data,
                source=source,
                validation=None,
                select="last",
                method="source_only",
                transferred=(),
                classes=16,
            ),
            tmp_path / "run",
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_stops_the_run_with_its_path(data, tmp_path, workers):
    path = next((data / "night" / "leftImg8bit" / "train").rglob("*.png"))
    path.write_bytes(path.read_bytes()[:1500])
    settings = config(
        data, transferred=(f"cityscapes:{data}/night:train",), workers=workers, checkpoint_every=1, steps=9
    )
    with pytest.raises(InputError, match=str(path)) as caught:
        train(settings, tmp_path / "run")
    assert "Traceback" not in str(caught.value)
    assert not multiprocessing.active_children()  # they would keep the process, which waits for them


def test_a_loss_that_is_not_finite_stops_with_step_term_and_frames(data, tmp_path, monkeypatch):
    losses = ZoDi.losses

    def explode(self, player, batch, step):
        terms = losses(self, player, batch, step)
        return terms | {"similarity": terms["similarity"] / (0.0 if step == 3 else 1.0)}

    monkeypatch.setattr(ZoDi, "losses", explode)
    with pytest.raises(
        InputError, match=r"loss 'similarity' is -inf in step 4 \(frames aachen_.*, aachen_.*\)"
    ):
        train(config(data), tmp_path / "run")
    assert checkpoints.last_step(tmp_path / "run") == 2
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3, 3]


def test_weights_that_are_not_finite_never_replace_a_checkpoint(data, tmp_path, monkeypatch):
    after_step = ZoDi.after_step

    def poison(self, step):
        after_step(self, step)
        if step == 3:  # as a gradient that overflows where the loss did not
            next(self.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(ZoDi, "after_step", poison)
    with pytest.raises(InputError, match=r"is not finite after step 4, .*the last checkpoint is kept"):
        train(config(data), tmp_path / "run")
    assert checkpoints.last_step(tmp_path / "run") == 2 and all(
        t.isfinite().all() for t in last(tmp_path / "run").values()
    )


def test_frames_that_are_trained_on_and_validated_on_are_told(data, tmp_path, caplog):
    train(config(data, validation=f"cityscapes:{data}/day:train", steps=1), tmp_path / "run")
    assert "5 of 5 frames of cityscapes:" in caplog.text and "scores on source mean nothing" in caplog.text


def test_an_unwritable_output_is_refused(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file: name a new folder"):
        train(config(data), tmp_path / "file" / "run")


def test_data_sets_of_other_layouts_with_the_same_classes_train_together(data, tmp_path, monkeypatch):
    """Each label is read as its own data set writes it: ids of GTA5 and SYNTHIA, or another folder's."""
    trees.synthia(tmp_path / "synthia")
    trees.gta5(tmp_path / "gta5")
    more = (f"synthia:{tmp_path}/synthia", f"gta5:{tmp_path}/gta5")
    seen = {}
    read = batches.Pictures.label
    monkeypatch.setattr(
        batches.Pictures, "label", lambda self, frame: seen.setdefault(frame.id, read(self, frame))
    )
    settings = config(
        data,
        method="source_only",
        transferred=(),
        more_sources=more,
        validation=f"gta5:{tmp_path}/gta5",
        steps=6,
    )
    train(settings, tmp_path / "run")
    for id in ("0000000", "00001"):
        assert np.array_equal(seen[id].numpy(), trees.train_ids(id)), id


def test_two_folders_write_the_same_classes_with_other_values(tmp_path, monkeypatch):
    one, two = trees.folder(tmp_path / "one", ["a"]), trees.folder(tmp_path / "two", ["b"])
    text = (two / "dataset.yaml").read_text()
    (two / "dataset.yaml").write_text(text.replace("[road, tree, car]", "{road: 1, tree: 0, car: 2}"))
    seen = {}
    read = batches.Pictures.label
    monkeypatch.setattr(
        batches.Pictures, "label", lambda self, frame: seen.setdefault(frame.id, read(self, frame))
    )
    settings = config(
        tmp_path,
        source=f"folder:{one}:train",
        more_sources=(f"folder:{two}:train",),
        method="source_only",
        transferred=(),
        validation=None,
        select="last",
        steps=2,
        batch_size=2,
    )
    train(settings, tmp_path / "run")
    label = trees.train_ids("b")
    expected = np.where(label == 255, 255, np.array([1, 0, 2])[np.minimum(label, 18) % 3])
    assert np.array_equal(seen["b"].numpy(), expected)


def test_data_workers_leave_ctrl_c_to_the_training(data, tmp_path, monkeypatch):
    def record(worker):
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        (tmp_path / f"worker{worker}").write_text(str(blocked))

    monkeypatch.setattr(session, "_data_worker", record)
    train(config(data, steps=2, workers=1), tmp_path / "run")
    assert [path.read_text() for path in tmp_path.glob("worker*")] == ["True"]
