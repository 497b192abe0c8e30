"""What must be equal on all nodes: versions, the kind of processor, and the images, which every node has to see."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featx.errors import FeatxError, ImageError, SourceError
from featx.extraction import portable_image
from featx.images import Member, content_digest, is_remote, stamp
from featx.store import KEPT

PACKAGES = ("featx", "torch", "torchvision", "timm", "pillow", "numpy")
_SAMPLE = 32  # images that every node must see before the first batch
_OF_THE_FILE = ("missing", "unreadable")  # codes of failures that depend on the machine, not on the file's content

Report = dict[str, Any]


def processor() -> dict[str, str]:
    """The kind of processor, which decides the last bits of rows."""
    kinds = {"cpu": torch.backends.cpu.get_cpu_capability()}
    if torch.cuda.is_available():
        kinds["cuda"] = torch.cuda.get_device_name()
    return kinds


def pickled_sample(images: Sequence[Any], in_output: Path | None = None) -> bytes:
    """Some images that are files, evenly spaced, with their names and sizes; images that are gone are left out.

    Parameters
    ----------
    images : n paths, Members or other images
    in_output : a file in the output's folder, if every node must see that
    """
    chosen = [image for image in _spaced(images) if isinstance(image, str | os.PathLike)]
    sample = [(image, repr(os.fspath(image))) for image in map(portable_image, chosen)]
    if in_output is not None:
        sample.append((portable_image(in_output), f"the output's folder {str(in_output.parent)!r}"))
    return pickle.dumps([(image, name, size) for image, name in sample if (size := _size(image)) is not None])


def unseen(sample: bytes) -> str:
    """The name of the first file of a sample that this machine does not see as it was; "" if it sees all."""
    try:
        images = pickle.loads(sample)
    except Exception as error:  # a package that reads them may be missing
        return f"the images ({type(error).__name__}: {error})"
    return next((f"{name} as it is here" for image, name, size in images if _size(image) != size), "")


def unseen_images(images: Sequence[Any]) -> list[Any]:
    """The images whose files this machine does not see; of remote ones, which take a request each, a few are tried."""
    files = [image for image in images if isinstance(image, str | os.PathLike) and not is_remote(image)]
    remote = [image for image in _spaced(images) if is_remote(image)]
    return [image for image in [*files, *remote] if _size(image) is None]


def _spaced(images: Sequence[Any]) -> list[Any]:
    """A few images, evenly spaced."""
    positions = np.linspace(0, len(images) - 1, min(_SAMPLE, len(images)), dtype=int)
    return [images[i] for i in positions.tolist()]


def _size(image: Any) -> int | None:
    """Bytes of an image's file now; None if it cannot be seen, or an archive has changed since it was listed."""
    if isinstance(image, Member):
        try:
            return image.file.listed[0] if image.file.stamp() == image.file.listed else None
        except FeatxError:  # the object is gone, or the server does not answer this machine
            return None
    now = stamp(image)
    return None if now is None or not os.access(image, os.R_OK) else now[0]


def refuse_other_node(report: Report, node: str, device: str) -> None:
    """Raise FeatxError if a node has other packages or another processor than this machine, or does not see the images.

    Parameters
    ----------
    report : what the function of `worker.inspector` returned on the node
    device : "cpu" or "cuda", on which rows are computed
    """
    for name, there in report["versions"].items():
        here = _version(name)
        if here is not None and there is None:
            raise FeatxError(f"node {node} of the Ray cluster has no {name}; install version {here} on it, as here")
        if here is not None and here != there:
            raise FeatxError(
                f"node {node} of the Ray cluster has {name} {there}, and this machine has {here}; install the same "
                "version, since it may change the rows"
            )
    if "error" in report:
        raise FeatxError(f"node {node} of the Ray cluster cannot use its featx: {report['error']}")
    own, other = processor().get(device), report["processor"].get(device)
    if device == "cpu" and own != other:
        raise FeatxError(
            f"node {node} of the Ray cluster computes with {other} instructions, and this machine with {own}: the "
            "last digits of the rows would differ; use nodes of one kind"
        )
    if report["unseen"]:
        raise SourceError(
            f"node {node} of the Ray cluster does not see {report['unseen']}; every node needs the same files, in a "
            "shared folder or at a URL"
        )


def refuse_other_gpu(gpu: str | None, driver: str | None, node: str) -> None:
    """Raise FeatxError if a node's GPU is of another kind than the driver's."""
    if gpu != driver:
        raise FeatxError(
            f"node {node} of the Ray cluster computes on {gpu or 'no GPU that torch can use'}, and this machine on "
            f"{driver}: the last digits of the rows would differ; use nodes of one kind"
        )


def refuse_unseen(image: Any, error: ImageError, node: str) -> None:
    """Raise SourceError if a node cannot read the file of an image that this machine can read."""
    is_of_the_node = error.code in _OF_THE_FILE or (isinstance(image, Member) and error.code == "changed")
    if not is_of_the_node or not isinstance(image, str | os.PathLike):
        return
    with contextlib.suppress(ImageError):
        content_digest(image)
        raise _unseen_image(image, node)


def refuse_seen_here(images: Sequence[Any], node: str) -> None:
    """Raise SourceError for the first image that this machine sees, of those that a node does not see."""
    for image in images:
        if _size(image) is not None:
            raise _unseen_image(image, node)


def _unseen_image(image: Any, node: str) -> SourceError:
    return SourceError(
        f"node {node} of the Ray cluster cannot read {os.fspath(image)!r}, which this machine can; every node needs "
        f"the same files, in a shared folder or at a URL; {KEPT}"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
