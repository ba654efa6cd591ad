"""A device without memory for more than one image, for the tests of what halves its batches."""

import torch


def for_one_image(function, rows: list[int]):
    """`function`, whose second argument is a batch, out of memory for more than one; `rows` collects the
    batches' sizes.
    """

    def limited(first, batch, *more):
        rows.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(first, batch, *more)

    return limited


def for_all_but_one(function, number: int):
    """`function`, out of memory in its call of this number, from 1 on; and the list of its calls."""
    calls = []

    def limited(*arguments, **named):
        calls.append(1)
        if len(calls) == number:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return function(*arguments, **named)

    return limited, calls


def for_none(*_):
    raise torch.OutOfMemoryError("none at all")
