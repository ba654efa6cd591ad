"""What a package of a method exports: its settings, and what each of its methods needs. Nothing here imports
torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from segshift.settings import Settings

if TYPE_CHECKING:
    from segshift.config import TrainConfig
    from segshift.data.labels import LabelSpace
    from segshift.methods.base import Method
    from segshift.networks.segmenter import Segmenter


@dataclass(frozen=True)
class Setup:
    """What a method is built from."""

    config: TrainConfig
    space: LabelSpace
    excluded: tuple[int, ...]
    """Train ids outside the class set, which are never predicted."""
    start: Method | None = None
    """The finished method of `config.from_run`; None where the method needs none, and where a checkpoint is
    read into it.
    """

    def segmenter(self) -> Segmenter:
        """The network that the configuration names. Raises: InputError, as `networks.build`."""
        from segshift import networks

        return networks.build(self.config.network, self.space.classes)


@dataclass(frozen=True)
class MethodSpec:
    """A method: what it needs, and how it is built."""

    name: str
    """As --method takes it."""
    title: str
    """As tables show it."""
    summary: str
    """What it trains on, for --help."""
    build: Callable[[Setup], Method]
    """Makes the method on the CPU; imports what needs torch. Raises: InputError."""
    transferred: bool = False
    """It trains on pairs of source frame and transferred frame."""
    target: bool = False
    """It trains on unlabelled target frames."""
    from_run: str | None = None
    """The method whose finished run it starts from."""
    paper: str | None = None
    """Its citation; None where nobody published it."""
    network: str | None = None
    """The only network that it trains, as --network.name takes it; None for any."""


class MethodSettings(Settings):
    """Base of a package's settings, a frozen dataclass; its options begin with `prefix`."""

    methods: ClassVar[tuple[MethodSpec, ...]]
