"""Access to the Hugging Face hub that gives up at once where the hub cannot be reached.

huggingface_hub retries every file of a download for half a minute, and only its offline mode prevents that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

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


def refusal(name: str, revision: str | None, error: Exception) -> str | None:
    """Why the hub does not give `name` to this login, and what to do; None for an error of another kind."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):  # libraries wrap what the hub said
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, GatedRepoError):
        return (
            f"{name} is given to those who accept its terms: do so at {constants.ENDPOINT}/{name}, then log "
            "in here (hf auth login)"
        )
    if isinstance(cause, RepositoryNotFoundError):
        return (
            f"there is no {name} on {constants.ENDPOINT}, or it is private: correct the name, or log in (hf "
            "auth login) as somebody who may read it"
        )
    if isinstance(cause, RevisionNotFoundError):
        return f"{name} has no revision '{revision}': name a branch, a tag or a commit of it"
    if cause is not None and cause.response is not None and cause.response.status_code in (401, 403):
        return (
            f"{constants.ENDPOINT} does not let this login read {name}: log in (hf auth login) as somebody "
            "who may read it"
        )
    return None
