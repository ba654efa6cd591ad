import numpy as np
import pytest
import torch
import trees
from training import config, in_two_processes, last, logged, trees_of

from segshift.config import NetworkConfig
from segshift.methods.base import Method
from segshift.stages.train import train
from segshift.training import loop


@pytest.fixture
def data(tmp_path):
    return trees_of(tmp_path)


def test_accumulation_gives_the_gradient_of_the_whole_batch(data, tmp_path):
    network = NetworkConfig(name="networks:without_norm", pretrained=False)
    for path in data.rglob("*labelIds.png"):  # no void: micro-batches weigh the same
        trees.save(path, np.full((32, 64), 7, np.uint8))
    train(config(data, network=network, steps=1), tmp_path / "whole")
    train(config(data, network=network, steps=1, accumulate=2), tmp_path / "parts")
    one, two = last(tmp_path / "whole"), last(tmp_path / "parts")
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-6, rtol=1e-5)


def test_learning_rate_warms_up_and_falls_by_the_step():
    rates = [loop.learning_rate(step, 10, 4, 0.9) for step in range(10)]
    assert rates[:2] == pytest.approx([0.2, 0.4 * 0.9**0.9])
    assert rates[5:] == pytest.approx([(1 - step / 10) ** 0.9 for step in range(5, 10)])
    assert loop.learning_rate(0, 10, 0, 0.9) == 1


def test_two_players_train_in_turn_and_a_teacher_follows():
    """What an adversarial method with a teacher asks of the loop."""
    from accelerate import Accelerator

    order = []

    class Adversarial(Method):
        def __init__(self):
            super().__init__()
            self.student, self.judge = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
            self.teacher = torch.nn.Linear(1, 1)

        @property
        def networks(self):
            return {"student": self.student, "judge": self.judge}

        def losses(self, player, batch, step):
            order.append((step, player))
            verdict = self.judge(self.student(batch["x"])).mean()
            return {"fool": -0.1 * verdict} if player == "student" else {"catch": verdict.square()}

        def after_step(self, step):
            order.append((step, "teacher"))
            self.teacher.load_state_dict(self.student.state_dict())

    torch.manual_seed(0)
    method, lines = Adversarial(), []
    expected, x = {key: value.clone() for key, value in method.state_dict().items()}, torch.ones(4, 1)
    accelerator = Accelerator(cpu=True)
    optimizers = {
        name: torch.optim.SGD(network.parameters(), 1.0) for name, network in method.networks.items()
    }
    for optimizer in optimizers.values():
        optimizer.param_groups[0]["initial_lr"] = 1.0
    loop.fit(
        method,
        optimizers,
        iter([{"x": x}] * 2),
        accelerator,
        start=0,
        steps=2,
        accumulate=1,
        seed=0,
        factor=lambda step: 0.5 if step == 0 else 0.0,
        frames_of=lambda step: [],
        done=lambda step, line: lines.append(line),
    )
    assert order == [(s, name) for s in (0, 1) for name in ("student", "judge", "teacher")]
    student = expected["student.weight"] + 0.5 * 0.1 * expected["judge.weight"]
    bias = expected["student.bias"] + 0.5 * 0.1 * expected["judge.weight"][0]
    verdict = expected["judge.weight"] * (student + bias) + expected["judge.bias"]
    torch.testing.assert_close(method.student.weight.data, student)
    torch.testing.assert_close(
        method.judge.bias.data, expected["judge.bias"] - 0.5 * 2 * verdict[0]
    )  # its own loss alone
    torch.testing.assert_close(method.teacher.weight.data, student)
    assert (
        lines[0].keys() == {"step", "lr", "student/fool", "judge/catch", "seconds"} and lines[0]["lr"] == 0.5
    )


def test_two_processes_share_a_batch_and_keep_one_network(data, tmp_path):
    network = NetworkConfig(name="networks:without_norm", pretrained=False)
    for path in data.rglob("*labelIds.png"):
        trees.save(path, np.full((32, 64), 7, np.uint8))
    settings = config(data, network=network, steps=3)
    in_two_processes(settings, tmp_path / "two")
    train(settings, tmp_path / "one")
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-4)
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert a.keys() == b.keys() and a.get("source", 0) == pytest.approx(b.get("source", 0), abs=1e-4)


def test_two_processes_keep_the_statistics_of_both(data, tmp_path):
    """The mean over equal halves is the mean over the whole, in the first step, where the weights are still
    the same.
    """
    settings = config(data, steps=1, validation=None, select="last")
    train(settings, tmp_path / "one")
    in_two_processes(settings, tmp_path / "two")
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    [name] = [name for name in one if name.endswith("running_mean")]
    torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-5)
