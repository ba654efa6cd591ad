"""Training samples as a pure function of (seed, k), k = 0, 1, 2, ... counting through the whole run.

Sample k's frame, transferred or target image, crop, flip and jitter come from generators keyed by seed and k.
Optimizer step s takes samples s * batch_size to (s + 1) * batch_size - 1. So nothing about the order has to
be saved: resuming at step s, other numbers of workers, processes or micro-batches give the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from segshift.data import frames, transforms
from segshift.data.frames import Frame
from segshift.data.labels import IGNORE, LabelSpace
from segshift.runs import InputError

CACHE_BYTES = 2_000_000_000
"""Decoded and resized images are kept in memory where all workers together stay below this."""

Batch = dict[str, Tensor]
"""Named tensors: images [B, 3, H, W] in [0, 1], labels [B, H, W] uint8 train ids, 255 ignored."""
Pair = tuple[Frame, tuple[Frame, ...]]
"""A source frame and its transferred frames, one a domain; none for source only."""


def pair_up(source: frames.Dataset, transferred: Sequence[frames.Dataset]) -> list[Pair]:
    """Source frames with their transferred ones, by id, in the source's order.

    A frame whose transfer failed in some domains has the others; one without any is left out.
    Raises: InputError when a transferred set does not match the source.
    """
    if not transferred:
        return [(frame, ()) for frame in source.frames]
    made: dict[str, list[Frame]] = {}
    for dataset in transferred:
        for frame, other in frames.pair(source, dataset):
            made.setdefault(frame.id, []).append(other)
    return [(frame, tuple(made[frame.id])) for frame in source.frames if frame.id in made]


class Pictures:
    """Reads images and labels at one size, and keeps them where memory allows."""

    def __init__(
        self,
        size: transforms.Size,
        space: LabelSpace,
        kept: Sequence[int],
        keep: bool,
        others: Mapping[Path, LabelSpace] | None = None,
    ):
        """kept: train ids that count; labels of other classes become void. others: how label files are
        written that come from further data sets, with the same classes."""
        self.size, self.space, self.keep, self.others = size, space, keep, others or {}
        self.table = np.full(256, IGNORE, np.uint8)
        self.table[list(kept)] = list(kept)
        self.memory: dict[Path, Tensor] = {}

    def image(self, frame: Frame) -> Tensor:
        """[3, H, W] uint8 at the size. Raises: InputError when it cannot be read."""
        if (known := self.memory.get(frame.image)) is not None:
            return known
        read = torch.from_numpy(frames.read_image(frame.image)).permute(2, 0, 1)
        return self._remember(frame.image, transforms.resize_image(read, self.size))

    def label(self, frame: Frame) -> Tensor:
        """[H, W] uint8 train ids at the size. Raises: InputError when it cannot be read."""
        if (known := self.memory.get(frame.truth)) is not None:
            return known
        read = torch.from_numpy(
            self.table[frames.read_label(frame, self.others.get(frame.truth, self.space))]
        )
        return self._remember(frame.truth, transforms.resize_label(read, self.size))

    def _remember(self, path: Path, value: Tensor) -> Tensor:
        if self.keep:
            self.memory[path] = value
        return value


def _has_own_label(frame: Frame, transferred: Frame) -> bool:
    return transferred.label is not None and transferred.label.resolve() != frame.truth.resolve()


class RareClasses:
    """Rare-class sampling (Hoyer et al., DAFormer, CVPR 2022, eq. 9 and 10).

        P(c) = exp((1 - f_c) / T) / sum_c' exp((1 - f_c') / T),   f_c the share of pixels of class c

    A class is drawn with P, then one of the frames that show it.
    """

    def __init__(self, counts: np.ndarray, temperature: float):
        """counts: pixels per frame and class, int64 [N, C]; classes without a pixel are never drawn."""
        share = torch.from_numpy(counts.sum(0) / counts.sum())
        self.chances = torch.where(share > 0, (1 - share) / temperature, -torch.inf).softmax(0)
        self.frames = [np.flatnonzero(column) for column in counts.T]

    def draw(self, rng: torch.Generator) -> int:
        """Index of a frame."""
        showing = self.frames[int(torch.multinomial(self.chances, 1, generator=rng))]
        return int(showing[int(torch.randint(len(showing), (), generator=rng))])


class Samples(Dataset):
    """Sample k: source and transferred images and their label, and a target image, augmented."""

    def __init__(
        self,
        pairs: list[Pair],
        pictures: Pictures,
        *,
        crop: transforms.Size,
        jitter: transforms.Jitter,
        seed: int,
        targets: tuple[Sequence[Frame], Pictures] | None = None,
        rare: RareClasses | None = None,
    ):
        """targets: unlabelled frames, drawn apart from the source's. rare: draws the source frame instead of
        the order.
        """
        self.pairs, self.pictures, self.crop, self.jitter, self.seed = pairs, pictures, crop, jitter, seed
        self.targets, self.rare = targets, rare
        self.own_labels = any(_has_own_label(frame, other) for frame, made in pairs for other in made)

    def frame(self, k: int) -> Frame:
        """Source frame of sample k: every len(pairs) samples are one permutation of all frames."""
        return self._pair(k)[0]

    def ids(self, ks: Sequence[int]) -> list[str]:
        """Ids of all frames that the samples are made of, the target's named as such."""
        found = [self.frame(k).id for k in ks]
        return found + [f"target {self.target(k).id}" for k in ks] if self.targets else found

    def _pair(self, k: int) -> Pair:
        if self.rare is not None:
            return self.pairs[self.rare.draw(transforms.generator(self.seed, "rare", k))]
        epoch, place = divmod(k, len(self.pairs))
        return self.pairs[_permutation(len(self.pairs), self.seed, epoch)[place]]

    def target(self, k: int) -> Frame:
        """Target frame of sample k: every len(targets) samples are one permutation of all target frames."""
        assert self.targets is not None
        chosen, _ = self.targets
        epoch, place = divmod(k, len(chosen))
        return chosen[_permutation(len(chosen), transforms.key_seed(self.seed, "target"), epoch)[place]]

    def __getitem__(self, k: int) -> Batch | InputError:
        """source [3, h, w], transferred [3, h, w] and target [3, h, w] where there are some, label [h, w];
        (h, w) = crop. Where transferred frames have label files of their own (a gate made parts of them
        void): transferred_label [h, w].

        An InputError is returned, not raised: out of a worker it would come with the worker's stack in its
        text.
        """
        rng = transforms.generator(self.seed, "sample", k)
        frame, made = self._pair(k)
        drawn = [frame] if not made else [frame, made[int(torch.randint(len(made), (), generator=rng))]]
        try:
            images = [self.pictures.image(f) for f in drawn]
            label = self.pictures.label(frame)
            if self.own_labels:
                label = torch.stack([label, self.pictures.label(drawn[-1])])
            target = self.targets[1].image(self.target(k)) if self.targets else None
        except InputError as error:
            return error
        images, label = transforms.augment(images, label, self.crop, self.jitter, rng)
        labels = zip(("label", "transferred_label"), label if self.own_labels else [label], strict=False)
        sample = dict(zip(("source", "transferred"), images, strict=False)) | dict(labels)
        if target is not None:  # unjittered: the methods' strong augmentation is of the mixed image alone
            [cut] = transforms.crop_and_flip(
                [target], self.crop, transforms.generator(self.seed, "target sample", k)
            )
            sample["target"] = cut.float() / 255
        return sample


class Schedule:
    """Which samples this process takes: a list of k for each micro-batch, from step `start` on."""

    def __init__(self, start: int, steps: int, batch_size: int, parts: int, process: int, processes: int):
        """`parts`: micro-batches a step. `batch_size` is a multiple of parts * processes."""
        self.start, self.steps, self.batch_size = start, steps, batch_size
        self.parts, self.process, self.processes = parts, process, processes

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch_size // (self.parts * self.processes)
        for step in range(self.start, self.steps):
            for part in range(self.parts):
                first = step * self.batch_size + (part * self.processes + self.process) * share
                yield list(range(first, first + share))

    def __len__(self) -> int:
        return (self.steps - self.start) * self.parts


def collate(samples: list[Batch | InputError]) -> Batch | InputError:
    """Samples to a batch; the first sample that could not be read stands for the whole batch."""
    return next((sample for sample in samples if isinstance(sample, InputError)), None) or default_collate(
        samples
    )


def checked(batch: Batch | InputError) -> Batch:
    """Raises: InputError when a file of the batch could not be read."""
    if isinstance(batch, InputError):
        raise batch
    return batch


@lru_cache(maxsize=4)  # source and target; a batch may reach over the end of an epoch
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=transforms.generator(seed, "epoch", epoch)).tolist()
