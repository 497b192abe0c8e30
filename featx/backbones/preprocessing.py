"""The preprocessing of a network's images, as plain data that a recipe can carry.

Resizing and cropping take a picture to uint8 pixels; the arithmetic is done on the device, in `normalise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from featx.errors import BackboneError, FeatxError, Parameter, listed
from featx.grammar import VIEWS, check_preprocessing
from featx.resizing import resized_and_cropped


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the centre, scale to 0..1, subtract `mean`, divide by `std`.

    Parameters
    ----------
    crop : (height, width) in pixels, the network's input
    resize : int or (height, width) in pixels
        An int is the length of the shorter edge, with the aspect ratio kept; a pair may change the aspect ratio.
    interpolation : "nearest", "bilinear", "bicubic", "lanczos" and torchvision's others
    mean, std : one value per channel, for pixels in 0..1

    Raises
    ------
    BackboneError
        A value has the wrong type, or is out of range: sides are 1 to 4,096 pixels, `std` is positive.

    Examples
    --------
    >>> Preprocessing(crop=(224, 224), resize=256).size
    (224, 224)
    """

    crop: tuple[int, int]
    resize: int | tuple[int, int]
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        try:
            check_preprocessing(self.to_dict())
        except ValueError as error:
            raise BackboneError(f"a preprocessing's {error}") from error

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the prepared pixels."""
        return self.crop

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """RGB picture -> (h, w, 3) uint8, pixel for pixel as torchvision's transforms."""
        return self.views(picture, ("center",))[0]

    def for_views(self, views: Sequence[str] | None) -> tuple[Callable[[Image.Image], np.ndarray], tuple[int, ...]]:
        """The function that prepares a picture, and the shape of its result without channels: (h, w), or (v, h, w)."""
        if views is None:
            return self, self.size
        return partial(self.views, views=views), (len(views), *self.size)

    def views(self, picture: Image.Image, views: Sequence[str]) -> np.ndarray:
        """RGB picture -> (v, h, w, 3) uint8, of one resized picture.

        "center" is the crop of `__call__`; "top-left" and the other corners are crops of the same size, as those of
        torchvision's `FiveCrop`; "flip", "top-left-flip" ... are their horizontal mirror images.
        """
        return resized_and_cropped(picture, self.resize, self.crop, self.interpolation, views)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """(b, h, w, 3) uint8 -> (b, 3, h, w) float32, channels last in memory."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return pixels.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        """The preprocessing as a dict of JSON values, as a recipe contains it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`."""
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**tuples)

    @classmethod
    def from_torchvision(cls, preset: Any) -> Preprocessing:
        """Convert the `transforms()` of a torchvision weights entry."""
        (resize,), (crop,) = preset.resize_size, preset.crop_size
        return cls((crop, crop), resize, preset.interpolation.value, tuple(preset.mean), tuple(preset.std))

    @classmethod
    def from_timm(cls, config: dict[str, Any]) -> Preprocessing:
        """Convert a result of `timm.data.resolve_model_data_config`, as `timm.data.create_transform` does."""
        height, width = config["input_size"][1:]
        scaled = (int(height / config["crop_pct"]), int(width / config["crop_pct"]))
        if config["crop_mode"] not in ("center", "squash") or config["input_size"][0] != 3:
            raise BackboneError(
                f"its preprocessing (crop mode {config['crop_mode']!r}, input {config['input_size']}) is unknown; "
                "give your own: featx.Backbone(name, preprocessing=featx.Preprocessing(...))"
            )
        squash = config["crop_mode"] == "squash" or scaled[0] != scaled[1]
        resize = scaled if squash else scaled[0]
        return cls((height, width), resize, config["interpolation"], tuple(config["mean"]), tuple(config["std"]))


def expand_views(views: str | Sequence[str] | None) -> list[str] | None:
    """Names of views, each once: "crop:N" stands for the first N of the four corners and their mirror images.

    Raises
    ------
    FeatxError
        A view is unknown or there twice, or there is none.
    """
    if views is None:
        return None
    corners, names = VIEWS[2:], [views] if isinstance(views, str) else views
    numbered = {f"crop:{n}": corners[:n] for n in range(1, len(corners) + 1)}
    expanded: list[str] = []
    for name in names if isinstance(names, Sequence) else [names]:
        if not isinstance(name, str) or name not in (*VIEWS, *numbered):
            raise FeatxError(
                Parameter("views"),
                f" are center, flip, crop:1 to crop:{len(corners)}, {', '.join(corners)}; got {name!r}",
            )
        expanded += numbered.get(name, [name])
    if not expanded or len(set(expanded)) < len(expanded):
        raise FeatxError(Parameter("views"), f" are different, and one or more; got {listed(expanded, 20) or 'none'}")
    return expanded
