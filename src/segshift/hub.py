"""Access to the Hugging Face hub that gives up at once where the hub cannot be reached.

huggingface_hub retries every file of a download for half a minute, and only its offline mode prevents that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HTTPError

SECONDS = 5
"""Longest wait for the hub's first answer."""


@contextmanager
def access() -> Iterator[None]:
    """A block that downloads; where the hub does not answer, the libraries in it find what is in their cache.

    Raises: ConnectionError when the hub does not answer and the cache lacks a file; else the libraries' own.
    """
    if constants.HF_HUB_OFFLINE:
        yield
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except (OSError, HTTPError) as error:
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        except (OSError, HTTPError) as missing:
            raise ConnectionError(f"{constants.ENDPOINT} does not answer: {error}") from missing
        finally:
            constants.HF_HUB_OFFLINE = False
        return
    yield
