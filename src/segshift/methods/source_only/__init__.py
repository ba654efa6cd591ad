"""Source only: the baseline of every method. It has no settings of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from segshift.methods.spec import MethodSettings, MethodSpec, Setup

if TYPE_CHECKING:
    from segshift.methods.base import Method


def build(setup: Setup) -> Method:
    """Raises: InputError."""
    from segshift.methods.source_only.training import SourceOnly

    segmenter = setup.segmenter()
    return SourceOnly(segmenter, setup.excluded, setup.config.head_lr or segmenter.head_lr)


@dataclass(frozen=True)
class SourceOnlyConfig(MethodSettings):
    """Training on the source images alone."""

    methods = (MethodSpec("source_only", "Source only", "the source images alone", build),)
