"""Pools a layer's output to one row per image, on the device, so that only small tensors leave it.

A pool is written "avg", or "flatten~512": pooled, then projected at random to 512 numbers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from featx.errors import LayerError, nearest
from featx.grammar import MOST_PROJECTION_TERMS, POOLS, PROJECTION_SEED

GEM_POWER = 3
SPP_SIDES = (1, 2, 4)
_GATHERED = 2**24  # maximum size of a projection's temporary tensor, in numbers


@dataclass(frozen=True)
class Tap:
    """A layer and how it is pooled.

    Attributes
    ----------
    node : str
        The layer.
    pool : str
        See `Pool`; with "~512", a random projection to 512 numbers follows.
    layout : "bchw", "bhwc" (Swin), "btc" (tokens) or "bd"
        Dimensions of the layer's output: batch, channels, height, width, tokens, features.
    shape : tuple of int
        Shape of one image's row, after pooling and projection.
    prefix : int
        Number of leading tokens of a "btc" layer that are not patches of the image: class token, then registers.
    projected : int or None
        Length of a row before projection.
    """

    node: str
    pool: str
    layout: str
    shape: tuple[int, ...]
    prefix: int = 0
    projected: int | None = None

    def __post_init__(self) -> None:
        if self.projected is not None and self.shape[0] * math.isqrt(self.projected) > MOST_PROJECTION_TERMS:
            raise LayerError(
                f"a projection of layer {self.node!r} from {self.projected:,} to {self.shape[0]:,} numbers is too "
                "large for memory; project to fewer"
            )

    @property
    def name(self) -> str:
        return f"{self.node}:{self.pool}" + (f"~{self.shape[0]}" if self.projected else "")

    @classmethod
    def of(
        cls,
        node: str,
        pool: str,
        output: tuple[int, ...],
        prefix_tokens: int = 0,
        size: tuple[int, int] = (1, 1),
        class_token: bool = True,
    ) -> Tap:
        """The tap of a node whose output for one image has this shape, (c, h, w), (h, w, c), (t, c) or (d,).

        An image plane (h, w) is recognised by the aspect ratio of the images, `size`; if the channels could be first or
        last, they are taken to be first. Tokens are the network's `prefix_tokens` followed by such a plane; otherwise
        they have no prefix. The first token of the prefix is the class token if `class_token`, else a register.

        Raises
        ------
        LayerError
            The pool is unknown, or does not apply to the layer.
        """
        kind, _, width = str(pool).partition("~")
        if not isinstance(pool, str) or kind not in POOLS or not re.fullmatch(r"\w+(~[1-9]\d{0,6})?", pool):
            raise LayerError(
                f"pool {pool!r} is not one of {', '.join(POOLS)}, or one with '~512'{nearest(kind, POOLS)}"
            )
        prefix = 0
        if len(output) == 3:
            channels_last = _skewness(output[0], output[1], size) < _skewness(output[1], output[2], size)
            layout, channels = ("bhwc", output[2]) if channels_last else ("bchw", output[0])
            places = math.prod(output) // channels
        elif len(output) == 2:
            layout, (places, channels) = "btc", output
            prefix = prefix_tokens if _is_plane(places - prefix_tokens, size) else 0
            places -= prefix
        else:
            layout, channels, places, kind = "bd", math.prod(output), 1, "none"  # there is nothing to pool
        if kind == "cls" and not (prefix and class_token):
            has, mean = ("register tokens only", "tokens") if prefix else ("none", "avg")
            raise LayerError(f"pool 'cls' needs a class token; layer {node!r} has {has}. {mean!r} is the mean")
        if kind == "tokens" and layout == "bchw":
            raise LayerError(f"pool 'tokens' needs tokens; layer {node!r} has an image plane. 'avg' is its mean")
        if kind == "spp" and layout == "btc" and math.isqrt(places) ** 2 != places:
            raise LayerError(f"pool 'spp' needs a plane; the {places} tokens of layer {node!r} do not form a square")
        flat = (math.prod(output),)
        shape = {"flatten": flat, "none": output, "spp": (channels * sum(side**2 for side in SPP_SIDES),)}.get(
            kind, (channels,)
        )
        d = math.prod(shape)
        if not width or int(width) >= d:  # narrow rows are not projected
            return cls(node, kind, layout, shape, prefix)
        return cls(node, kind, layout, (int(width),), prefix, d)

    def to_dict(self) -> dict[str, Any]:
        """The tap as a dict of JSON values, as a recipe contains it."""
        values: dict[str, Any] = {"node": self.node, "pool": self.pool, "layout": self.layout}
        values["shape"] = list(self.shape)
        if self.prefix:
            values["prefix"] = self.prefix
        if self.projected:
            values |= {"projected": self.projected, "seed": PROJECTION_SEED}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tap:
        """The inverse of `to_dict`."""
        optional = values.get("prefix", 0), values.get("projected")
        return cls(values["node"], values["pool"], values["layout"], tuple(values["shape"]), *optional)


def _skewness(h: int, w: int, size: tuple[int, int]) -> float:
    """|log of the ratio of two aspect ratios|, h / w and that of the images: 0 if they are equal."""
    return abs(math.log(h * size[1] / (w * size[0])))


def _is_plane(places: int, size: tuple[int, int]) -> bool:
    """Whether so many tokens can form a plane with the aspect ratio of the images."""
    h = round(math.sqrt(max(places, 0) * size[0] / size[1]))
    return h > 0 and places % h == 0 and _skewness(h, places // h, size) < 0.1


class Pool(nn.Module):
    """Pool a layer's output (b, ...), in any float type, to rows (b, ...) float32; float64 stays float64.

    Notes
    -----
    - "avg", "max": over the plane, or over all tokens
    - "gem": generalised mean, ``(mean x^3)^(1/3)`` of x clamped at 1e-6 (Radenovic et al. 2018, "Fine-tuning CNN image
      retrieval with no human annotation", eq. 3)
    - "spp": spatial pyramid, the maxima of 1 x 1, 2 x 2 and 4 x 4 parts of the plane (He et al. 2014, section 2.2),
      (c, side, side) flattened for each side in turn
    - "cls": the class token
    - "tokens": the mean of the image's tokens, without class token and registers
    - "flatten", "none": the whole output, flattened or in its shape
    """

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self._pool, self._layout, self._prefix = tap.pool, tap.layout, tap.prefix
        self._over = {"bchw": (2, 3), "bhwc": (1, 2), "btc": (1,)}.get(tap.layout, ())
        self._projected = tap.projected
        self._project = None if tap.projected is None else _Projection(tap.projected, tap.shape[0])

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        if self._prefix and output.shape[1] <= self._prefix:
            raise LayerError(
                f"the layer's output has {output.shape[1]} tokens; needed are the network's {self._prefix} class and "
                "register tokens and at least one of the image"
            )
        rows = self._pooled(output if output.dtype == torch.float64 else output.float())
        if self._project is None:
            return rows
        rows = rows.flatten(1)
        if rows.shape[1] != self._projected:
            raise LayerError(
                f"the layer's output has {rows.shape[1]:,} numbers per image; the projection needs {self._projected:,}"
            )
        return self._project(rows)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        match self._pool:
            case "avg":
                return x.mean(self._over)
            case "max":
                return x.amax(self._over)
            case "gem":
                return x.clamp_min(1e-6).pow(GEM_POWER).mean(self._over).pow(1 / GEM_POWER)
            case "spp":
                plane = self._plane(x)
                return torch.cat([_maxima(plane, side).flatten(1) for side in SPP_SIDES], 1)
            case "cls":
                return x[:, 0].clone()
            case "tokens":
                return x[:, self._prefix :].mean(self._over)
            case "flatten":  # a copy: later layers may change the output in place
                return x.flatten(1).clone()
            case "none":
                return x.clone()
        raise AssertionError(f"pool {self._pool!r} has no implementation")

    def _plane(self, x: torch.Tensor) -> torch.Tensor:
        """The output as an image plane (b, c, h, w)."""
        if self._layout == "bhwc":
            return x.permute(0, 3, 1, 2)
        if self._layout == "btc":
            places = x[:, self._prefix :].transpose(1, 2)
            side = math.isqrt(places.shape[2])
            return places.reshape(*places.shape[:2], side, side)
        return x


def _maxima(plane: torch.Tensor, side: int) -> torch.Tensor:
    """(b, c, h, w) -> (b, c, side, side), or (b, c, side^2) in an exported program: the maxima of the plane's parts."""
    if not torch.compiler.is_exporting():
        return F.adaptive_max_pool2d(plane, side)
    h, w = plane.shape[2:]  # ONNX has no adaptive pooling of parts of unequal sizes
    rows, columns = ([slice(i * n // side, -(-(i + 1) * n // side)) for i in range(side)] for n in (h, w))
    return torch.stack([plane[:, :, row, column].amax((2, 3)) for row in rows for column in columns], 2)


class _Projection(nn.Module):
    """y_j = sqrt(d / (k s)) sum_i sign_ij x[place_ij], j = 1 ... k, with s = sqrt(d) terms: (b, d) -> (b, k).

    Places and signs are random. This is the very sparse projection of Li, Hastie and Church (2006, KDD), with the same
    number of terms in every sum; the factor preserves squared lengths on average. Random numbers are Philox's raw
    output, which is the same on all machines and in all versions of NumPy.
    """

    _places: torch.Tensor
    _signs: torch.Tensor

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        shape = k, math.isqrt(d)
        raw = np.random.Philox(key=PROJECTION_SEED).random_raw(math.prod(shape)).reshape(shape)
        places = ((raw >> np.uint64(1)) % np.uint64(d)).astype(np.int64)
        signs = (raw & np.uint64(1)).astype(np.int8) * 2 - 1
        self.register_buffer("_places", torch.from_numpy(places), persistent=False)  # (k, s)
        self.register_buffer(
            "_signs", torch.from_numpy(signs), persistent=False
        )  # (k, s) integers: changing the module's float type leaves them
        self._scale = math.sqrt(d / (k * shape[1]))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        k, terms = self._places.shape
        # one part in an exported program, whose number of parts must not depend on the number of images
        step = k if torch.compiler.is_exporting() else max(1, _GATHERED // (len(rows) * terms))
        sums = []
        for at in range(0, k, step):
            gathered = rows[:, self._places[at : at + step].flatten()].unflatten(1, (-1, terms))
            sums.append((gathered * self._signs[at : at + step]).sum(2))
        return torch.cat(sums, 1) * self._scale
