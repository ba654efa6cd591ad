import pytest
import torch
import trees
from training import IDS, config, logged, same, trees_of

from segshift.data import frames
from segshift.data import samples as batches
from segshift.stages.train import train
from segshift.training import checkpoints


@pytest.fixture
def data(tmp_path):
    return trees_of(tmp_path)


def test_workers_change_nothing(data, tmp_path):
    train(config(data, jitter=(0.5, 0.5, 0.5, 0.3)), tmp_path / "none")
    train(config(data, jitter=(0.5, 0.5, 0.5, 0.3), workers=2), tmp_path / "two")
    assert same(tmp_path / "none", tmp_path / "two")


def test_micro_batches_and_processes_share_the_samples_of_a_step():
    whole = list(batches.Schedule(3, 5, 8, 1, 0, 1))
    assert whole == [list(range(24, 32)), list(range(32, 40))]
    parts = [list(batches.Schedule(3, 5, 8, 2, process, 2)) for process in (0, 1)]
    assert sorted(k for part in parts[0][:2] + parts[1][:2] for k in part) == whole[0]


def samples(data, **changes):
    source = frames.load(f"cityscapes:{data}/day:train")
    made = [frames.load(f"cityscapes:{data}/{name}:train") for name in ("night", "fog")]
    pictures = batches.Pictures((32, 64), source.space, changes.get("kept", range(19)), keep=True)
    return batches.Samples(
        batches.pair_up(source, made), pictures, crop=(32, 64), jitter=(0, 0, 0, 0), seed=0
    )


def test_every_frame_comes_once_an_epoch_in_another_order(data):
    drawn = samples(data)
    first, second = ([drawn.frame(k).id for k in range(e * 5, e * 5 + 5)] for e in (0, 1))
    assert sorted(first) == sorted(second) == sorted(IDS) and first != second


def test_pairs_go_by_id_and_every_transferred_domain_is_drawn(data):
    for path in (data / "fog").rglob("*_leftImg8bit.png"):
        trees.save(path, 255 - trees.picture(path.name.removesuffix("_leftImg8bit.png")))
    drawn, domains = samples(data), set()
    for k in range(40):
        sample, picture = drawn[k], torch.from_numpy(trees.picture(drawn.frame(k).id)).permute(2, 0, 1)
        source, transferred = ((sample[name] * 255).round() for name in ("source", "transferred"))
        flip = torch.equal(source, picture.flip(-1).float())
        picture = (picture.flip(-1) if flip else picture).float()
        assert torch.equal(source, picture)
        domains.add("night" if torch.equal(transferred, picture) else "fog")
        assert (
            domains <= {"night"}
            or torch.equal(transferred, picture)
            or torch.equal(transferred, 255 - picture)
        )
        label = torch.from_numpy(trees.train_ids(drawn.frame(k).id))
        assert torch.equal(sample["label"], label.flip(-1) if flip else label)
    assert domains == {"night", "fog"}


def test_labels_outside_the_class_set_become_void(data):
    label = samples(data, kept=[0, 3])[0]["label"]
    assert set(label.unique().tolist()) == {0, 3, 255}


def test_a_class_set_is_trained_scored_and_predicted(data, tmp_path):
    train(config(data, classes=16), tmp_path / "run")
    method, _, space = checkpoints.load_run(tmp_path / "run")
    with torch.no_grad():
        logits = method.predict(torch.rand(1, 3, 32, 64))
    assert logits.shape[1] == space.classes == 19
    assert torch.isinf(logits[:, [9, 14, 16]]).all() and torch.isfinite(logits[:, [0, 3, 18]]).all()
    validation = next(line for line in logged(tmp_path / "run") if "validation" in line)
    assert len(validation["validation"]["source"]["iou"]) == 16
