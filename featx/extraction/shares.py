"""Shares of a run for other processes: whole batches, the network and errors, in a form that can be pickled."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from joblib import wrap_non_picklable_objects
from PIL import Image, ImageFile

from featx.backbones import Backbone
from featx.errors import FeatxError, ImageError
from featx.forward import Block, stream
from featx.images import Member, decode
from featx.store import Recipe


@dataclass(frozen=True)
class Share:
    """Some whole batches of a run.

    starts : position in the run of each batch's first image, ascending
    images, todo : images of these batches, and which of them are to be done
    workers : decoding threads
    threads : threads of the forward pass
    load_truncated : Pillow's setting, which decides which images can be read
    """

    recipe: Recipe
    starts: list[int]
    images: list[Any]
    todo: np.ndarray
    workers: int
    threads: int
    load_truncated: bool

    def blocks(self, backbone: Backbone, device: str) -> Iterator[Block]:
        """Compute the blocks of the batches that have images to do, with their positions in the run."""
        torch.set_num_threads(self.threads)
        ImageFile.LOAD_TRUNCATED_IMAGES = self.load_truncated
        for block in stream(self.images, self.recipe, backbone, device=device, workers=self.workers, todo=self.todo):
            shift = self.starts[block.start // self.recipe.batch_size] - block.start
            yield replace(
                block,
                start=block.start + shift,
                stop=block.stop + shift,
                indices=block.indices + shift,
                digests={i + shift: digest for i, digest in block.digests.items()},
                failures={i + shift: error for i, error in block.failures.items()},
                statistics={i + shift: record for i, record in block.statistics.items()},
            )

    def wanted(self, indices: np.ndarray) -> np.ndarray:
        """(m,) bool, which images of a block, given by their positions in the run, are to be done."""
        size = self.recipe.batch_size
        batches = np.searchsorted(self.starts, indices, side="right") - 1
        return self.todo[batches * size + indices - np.array(self.starts)[batches]]


def share_of(
    images: Sequence[Any], recipe: Recipe, starts: list[int], todo: np.ndarray, *, workers: int, threads: int
) -> Share:
    """The share of the batches at `starts`, of a run of n images of which (n,) `todo` are to be done."""
    positions = [i for start in starts for i in range(start, min(start + recipe.batch_size, len(images)))]
    chosen = [portable_image(images[i]) for i in positions]
    return Share(recipe, starts, chosen, todo[positions], workers, threads, ImageFile.LOAD_TRUNCATED_IMAGES)


def batch_starts(recipe: Recipe, todo: np.ndarray) -> list[int]:
    """The first image of each batch that has images to do."""
    size = recipe.batch_size
    return [start for start in range(0, len(todo), size) if todo[start : start + size].any()]


def portable_image(image: Any) -> Any:
    """An image for another process, which may run in another folder: a path as absolute text; of a PIL image, the RGB
    pixels, which have the same digest.
    """
    if isinstance(image, str | os.PathLike) and not isinstance(image, Member):
        return os.path.join(os.getcwd(), os.fspath(image))
    if isinstance(image, Image.Image):
        try:
            picture = decode(image)[0]
        except ImageError as error:
            return error
        return Image.frombytes("RGB", picture.size, picture.tobytes())  # without the rotation that its EXIF records
    return image


def pickled(backbone: Backbone) -> bytes:
    """A run's network with the classes that a script or a notebook defines: a new process does not run those.

    Raises
    ------
    Exception
        Of many types: locks, open files and exported programs cannot be pickled.
    """
    return pickle.dumps(wrap_non_picklable_objects(backbone.with_its_module(), keep_wrapper=False))


def portable(error: BaseException, place: str) -> BaseException:
    """The error, or one with the same message if it cannot be pickled; the traceback is a note."""
    error.add_note(f"On {place}:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return FeatxError(f"on {place}: {type(error).__name__}: {error}")
    return error
