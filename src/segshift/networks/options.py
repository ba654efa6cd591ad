"""Options of network families: a group each, named as the family is in the table `NETWORKS`, and a field of
`NetworkConfig`. Nothing here imports torch: the command line is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from segshift.settings import Settings


@dataclass(frozen=True)
class ICCLDNetworkConfig(Settings):
    """Options of the network `iccld`."""

    prefix: ClassVar[str] = "network.iccld."

    latent_channels: Annotated[int, Field(ge=1, le=1024)] = 8
    """Channels of the latent at an eighth of the image's size, 1 or more."""
    inter_coder: bool = True
    """Inter-coder connections carry encoder features to the decoder."""
