"""An engine for the tests, without Ray: each item goes to a worker with a copy of the job, the last one
first, and some items cost their workers their lives."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from segshift.execution import Lost

deadly: set[str] = set()
"""What kills a worker that is given an item with it."""


class Reversing:
    def __init__(self, job: Any) -> None:
        self.job = pickle.dumps(job)

    def close(self) -> None:
        pass

    def once(self, method: str, *arguments: Any) -> Any:
        given = pickle.loads(pickle.dumps(arguments))
        return pickle.loads(pickle.dumps(getattr(pickle.loads(self.job), method)(*given)))

    def map(
        self,
        method: str,
        items: Sequence[Any],
        asked: Callable[[], bool],
        after: Sequence[Sequence[int]] = (),
    ) -> Iterator[Any]:
        left = set(range(len(items)))
        while left and not asked():
            i = max(i for i in left if not (after and left & set(after[i])))
            if any(word in repr(items[i]) for word in deadly):
                yield Lost(items[i], "its worker died 3 times (killed)")
            else:
                given = pickle.loads(pickle.dumps(items[i]))
                yield from list(getattr(pickle.loads(self.job), method)([given], lambda: False))
            left.remove(i)


def workers(config: Any, job: Any, device: str) -> Reversing:
    return Reversing(job)
