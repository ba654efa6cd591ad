"""The noise formulas of diffusion and flow models, each once.

| symbol | meaning |
|---|---|
| x0, n | clean latent, Gaussian noise |
| t, a, b | a point: what the network is told, and the scales of z_t = a x0 + b n |
| eps | the noise in z_t as the network sees it |
| o | the network's output |
| eta, s | DDIM's eta in [0, 1], standard deviation of the noise that a step adds |
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "flow"]
"""What a network is trained to predict: n; v = a n - b x0, where a^2 + b^2 = 1; or n - x0, where a = 1 -
b."""


class Point(NamedTuple):
    """A point of a noise schedule."""

    t: float
    a: float
    b: float


class Points(NamedTuple):
    """One point for each latent of a batch: scales [B, 1, 1, 1]."""

    a: Tensor
    b: Tensor

    @classmethod
    def of(cls, abar: Tensor) -> Points:
        """a = sqrt(abar_t), b = sqrt(1 - abar_t)."""
        return cls(abar.sqrt(), (1 - abar).sqrt())


def noised(x0: Tensor, n: Tensor, point: Point | Points) -> Tensor:
    """z_t = a x0 + b n."""
    return point.a * x0 + point.b * n


def target(prediction: PredictionType, x0: Tensor, n: Tensor, point: Point | Points) -> Tensor:
    """What a network is trained to predict at z = a x0 + b n."""
    if prediction == "epsilon":
        return n
    return point.a * n - point.b * x0 if prediction == "v_prediction" else n - x0


def eps_and_x0(
    prediction: PredictionType, o: Tensor, z: Tensor, point: Point | Points
) -> tuple[Tensor, Tensor]:
    """The noise and the clean latent that an output implies at z = a x0 + b eps."""
    a, b = point.a, point.b
    if prediction == "epsilon":
        return o, (z - b * o) / a
    if prediction == "v_prediction":
        return a * o + b * z, a * z - b * o
    return z + (1 - b) * o, z - b * o


def sigma(here: Point, there: Point, eta: float) -> float:
    """s = eta b' sqrt(1 - (a b' / (a' b))^2): DDIM, eq. 16, of any a and b."""
    return eta * there.b * (1 - (here.a * there.b / (there.a * here.b)) ** 2) ** 0.5


def step(x0: Tensor, eps: Tensor, there: Point, s: float, n: Tensor | None) -> Tensor:
    """z' = a' x0 + sqrt(b'^2 - s^2) eps + s n: DDIM, eq. 12, of any a and b. n: None where s is 0."""
    z = there.a * x0 + max(there.b**2 - s**2, 0.0) ** 0.5 * eps
    return z if n is None else z + s * n
