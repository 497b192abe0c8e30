"""The values that fields of a recipe may have: a closed grammar over plain values.

A recipe decides what is built, read and allocated, and may come from an untrusted file. So it is checked when a file is
opened and again before a network is built; a ValueError names the field, the requirement and the value. `featx.recipe`
assigns the checks to the fields. This module knows no network and opens no file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

INTERPOLATIONS = ("nearest", "nearest-exact", "box", "bilinear", "hamming", "bicubic", "lanczos")
NUMBER_TYPES = ("float32", "bfloat16", "float16")
POOLS = ("avg", "max", "gem", "spp", "cls", "tokens", "flatten", "none")
PROJECTION_SEED = 0
_CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
VIEWS = ("center", "flip", *_CORNERS, *(f"{corner}-flip" for corner in _CORNERS))
PROGRAM_FILE = ".pt2"
WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin")
IMPORTED = "imported:"
UNNAMED = "imported:unnamed"  # rows that go with no others

MOST_BATCH = 2**16  # images
MOST_SIDE = 4096  # pixels, of the network's input
MOST_RESIZED = 2 * MOST_SIDE
MOST_BATCH_PIXELS = 2**28
MOST_PROJECTION_TERMS = 2**26  # in all sums of a projection, nine bytes each
MOST_ROW = 2**28  # numbers in a row
MOST_THREADS = 1024
_MOST_PREFIX = 1024
_MOST_TAPS = 10_000

_DIMENSIONS = {"bchw": 3, "bhwc": 3, "btc": 2, "bd": 1}  # of one image's output
_BACKBONE = re.compile(r"(torchvision|bundled):[A-Za-z0-9_]{1,100}|timm:[A-Za-z0-9_]{1,100}(\.[A-Za-z0-9_]{1,100})?")
_WEIGHTS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_ENGINE = re.compile("(eager|compiled)(, batch norms folded)?")

# Called with the name of a field, its value and the recipe, whose fields before this one have been checked; raises
# ValueError for a value that featx does not write.
Check = Callable[[str, Any, Any], None]


def is_imported(backbone: object) -> bool:
    """Whether a recipe's backbone stands for rows that were imported, not computed by featx."""
    return type(backbone) is str and backbone.startswith(IMPORTED)


def not_computed() -> dict[str, Any]:
    """The fields of a recipe that say how featx computed rows, with their values in the recipe of imported rows.

    A file does not contain them.
    """
    return {
        "weights": None,
        "preprocessing": {},
        "decoder": "",
        "engine": "",
        "precision": "",
        "precision_error": None,
        "batch_size": 0,
        "device": "",
        "threads": 0,
        "origin": None,
        "pass_rows": None,
        "weights_file_sha256": None,
        "views": None,
    }


def is_weights_file(weights: str | None) -> bool:
    """Whether `weights` is the path of a state dict, not a name."""
    return weights is not None and weights.endswith(WEIGHT_FILES)


def line(most: int) -> Check:
    """Check that a value is a line of text of at most `most` characters."""
    return lambda field, value, recipe: _require(_is_text(value, most), field, "a line of text", value)


def lines(most: int) -> Check:
    """Check that a value maps names to lines of text of at most `most` characters."""
    return lambda field, value, recipe: _check_texts(field, value, most)


def one_of(*choices: str) -> Check:
    return lambda field, value, recipe: _one_of(field, value, choices)


def whole(least: int, most: int) -> Check:
    return lambda field, value, recipe: _whole(field, value, least, most)


def hexadecimal(digits: int) -> Check:
    needed = f"{digits} hexadecimal digits"
    return lambda field, value, recipe: _require(_is_hexadecimal(value, digits), field, needed, value)


def check_not_computed(field: str, value: Any, recipe: Any) -> None:
    absent = not_computed()[field]
    _require(type(value) is type(absent) and value == absent, field, "absent from a recipe of imported rows", value)


def check_backbone(field: str, value: Any, recipe: Any) -> None:
    needed = "torchvision:NAME, timm:NAME, bundled:NAME, module:NAME, export:NAME or imported:NAME"
    fits = is_imported(value) and _is_text(value.removeprefix(IMPORTED), 200)
    _require(fits or _is_users(value) or _matches(_BACKBONE, value), field, needed, value)


def check_weights(field: str, value: Any, recipe: Any) -> None:
    if _is_users(recipe.backbone):
        is_program = recipe.backbone.startswith("export:") and type(value) is str and value.endswith(PROGRAM_FILE)
        fits = value == "its own" or (is_program and _is_absolute(value))
    else:
        is_name = _matches(_WEIGHTS, value) and not is_weights_file(value) and not value.endswith(PROGRAM_FILE)
        fits = value is None or _is_state_dict(value) or is_name
    _require(fits, field, "a name of weights, the absolute path of a state dict, or null", value)


def check_weights_file_sha256(field: str, value: Any, recipe: Any) -> None:
    is_file = _is_state_dict(recipe.weights) and not _is_users(recipe.backbone)
    fits = value is None or (is_file and _is_hexadecimal(value, 64))
    _require(fits, field, "64 hexadecimal digits, only if the weights are a file", value)


def check_taps(field: str, value: Any, recipe: Any) -> None:
    _require(type(value) is dict and 0 < len(value) <= _MOST_TAPS, field, "one layer or more", value)
    check_views("views", recipe.views, recipe)  # they decide the shapes
    for name, tap in value.items():
        _check_tap(name, tap, recipe.views)
        made = tap["pool"], tap["layout"], "projected" in tap
        fits = not is_imported(recipe.backbone) or made == ("none", "bd", False)
        _require(fits, "taps", "rows (bd) without a pool if they were imported", {name: tap})


def check_aliases(field: str, value: Any, recipe: Any) -> None:
    _check_texts(field, value, 1000)
    missing = [name for name in value.values() if name not in recipe.taps]
    _require(not missing, field, "names of layers", missing)


def check_engine(field: str, value: Any, recipe: Any) -> None:
    _require(_matches(_ENGINE, value), field, "eager or compiled", value)


def check_precision_error(field: str, value: Any, recipe: Any) -> None:
    _require(value is None or _is_number(value, 0, 1e9), field, "a number, 0 or more, or null", value)


def check_batch_size(field: str, value: Any, recipe: Any) -> None:
    _whole(field, value, 1, MOST_BATCH)
    height, width = recipe.preprocessing["crop"]
    pixels = value * height * width * len(recipe.views or (None,))
    needed = f"at most {MOST_BATCH_PIXELS:,} pixels per batch"
    _require(pixels <= MOST_BATCH_PIXELS, f"{field} x crop", needed, pixels)


def check_origin(field: str, value: Any, recipe: Any) -> None:
    _require(value is None or (type(value) is str and len(value) < 2**16), field, "a path or URL, or null", value)


def check_collection(field: str, value: Any, recipe: Any) -> None:
    _require(value is None or _is_hexadecimal(value, 32), field, "32 hexadecimal digits, or null", value)


def check_pass_rows(field: str, value: Any, recipe: Any) -> None:
    if value is not None:
        _whole(field, value, 1, recipe.batch_size - 1)


def check_views(field: str, value: Any, recipe: Any) -> None:
    fits = type(value) is list and len(value) > 0 and all(type(view) is str and view in VIEWS for view in value)
    needed = f"different views of {', '.join(VIEWS)}, or null"
    _require(value is None or (fits and len(set(value)) == len(value)), field, needed, value)


def check_preprocessing_field(field: str, value: Any, recipe: Any) -> None:
    check_preprocessing(value)


def check_preprocessing(values: Mapping[str, Any]) -> None:
    """Raise ValueError unless these are the values of a preprocessing, see `Preprocessing.to_dict`."""
    required, optional = {"crop", "resize"}, {"interpolation", "mean", "std"}
    fits = type(values) is dict and required <= values.keys() <= required | optional
    _require(fits, "preprocessing", "crop, resize, interpolation, mean and std", values)
    crop, resize = values["crop"], values["resize"]
    fits = _is_list(crop) and len(crop) == 2 and all(_is_whole(side, 1, MOST_SIDE) for side in crop)
    _require(fits, "crop", f"(height, width), pixels from 1 to {MOST_SIDE:,}", crop)
    sides = resize if _is_list(resize) and len(resize) == 2 else [resize]
    fits = all(_is_whole(side, 1, MOST_RESIZED) for side in sides)
    _require(fits, "resize", f"pixels of the shorter edge, or (height, width), from 1 to {MOST_RESIZED:,}", resize)
    if "interpolation" in values:
        _one_of("interpolation", values["interpolation"], INTERPOLATIONS)
    for field, least in (("mean", -1e6), ("std", 1e-6)):
        channels = values.get(field, [1, 1, 1])
        fits = _is_list(channels) and len(channels) == 3 and all(_is_number(value, least, 1e6) for value in channels)
        _require(fits, field, f"three numbers from {least:g} to 1e+06, one per channel", channels)


def _check_tap(name: object, tap: object, views: list[str] | None) -> None:
    required, optional = {"node", "pool", "layout", "shape"}, {"prefix", "projected", "seed"}
    fits = _is_text(name, 2000) and type(tap) is dict and required <= tap.keys() <= required | optional
    _require(fits, "taps", "names of layers, each with node, pool, layout and shape", {name: tap})
    assert isinstance(tap, dict)
    node, pool, layout, shape = (tap[key] for key in ("node", "pool", "layout", "shape"))
    projected = tap.get("projected")
    _require(_is_text(node, 1000), "node", "the name of a layer", node)
    _one_of("pool", pool, POOLS)
    _one_of("layout", layout, tuple(_DIMENSIONS))
    fits = _is_list(shape) and 1 <= len(shape) <= 4 and all(_is_whole(size, 1, MOST_ROW) for size in shape)
    _require(fits and math.prod(shape) <= MOST_ROW, "shape", f"sizes of a row of up to {MOST_ROW:,} numbers", shape)
    if views is not None:
        _require(shape[0] == len(views), "shape", f"of {len(views)} views and their sizes", shape)
        shape = shape[1:]
    dimensions = _DIMENSIONS[layout] if pool == "none" and projected is None else 1
    _require(len(shape) == dimensions, "shape", f"{dimensions} sizes for {layout} and pool {pool}", shape)
    prefix = tap.get("prefix", 0)
    _require(prefix == 0 or layout == "btc", "prefix", "present only for tokens (btc)", prefix)
    _whole("prefix", prefix, 0, _MOST_PREFIX)
    _require(pool != "cls" or prefix > 0, "pool", "'cls' only if there is a class token", pool)
    _require(
        ("projected" in tap) == ("seed" in tap), "seed", "present if and only if rows are projected", tap.get("seed")
    )
    full = f"{node}:{pool}"
    if projected is not None:
        _whole("projected", projected, shape[0] + 1, 2**40)
        terms = shape[0] * math.isqrt(projected)
        _require(terms <= MOST_PROJECTION_TERMS, "projected", f"sums of at most {MOST_PROJECTION_TERMS:,} terms", terms)
        seed = tap["seed"]
        _require(type(seed) is int and seed == PROJECTION_SEED, "seed", str(PROJECTION_SEED), seed)
        full += f"~{shape[0]}"
    _require(name == full, "taps", f"a layer under its own name, {full!r}", name)


def _require(fits: bool, field: str, needed: str, got: object) -> None:
    if not fits:
        shown = ascii(got)  # no control character reaches a message
        raise ValueError(f"{field} must be {needed}; got {shown if len(shown) <= 80 else shown[:77] + '...'}")


def _one_of(field: str, got: object, choices: tuple[str, ...]) -> None:
    _require(type(got) is str and got in choices, field, f"one of {', '.join(choices)}", got)


def _whole(field: str, got: object, least: int, most: int) -> None:
    _require(_is_whole(got, least, most), field, f"a whole number from {least:,} to {most:,}", got)


def _check_texts(field: str, got: object, most: int) -> None:
    fits = isinstance(got, dict) and len(got) <= _MOST_TAPS
    texts = [text for pair in got.items() for text in pair] if isinstance(got, dict) else []
    fits = fits and all(_is_text(text, most) for text in texts)
    _require(fits, field, "a mapping of names to lines of text", got)


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_list(value: object) -> bool:
    return type(value) in (list, tuple)


def _is_text(value: object, most: int) -> bool:
    """Whether this is a line of text that is safe in a terminal: no control and no bidirectional characters."""
    return type(value) is str and 0 < len(value) <= most and value.isprintable()


def _is_users(backbone: object) -> bool:
    """Whether a backbone's name is that of the user's own module or exported program."""
    source, _, name = backbone.partition(":") if type(backbone) is str else ("", "", "")
    return source in ("module", "export") and _is_text(name, 200) and "/" not in name


def _is_state_dict(weights: object) -> bool:
    return type(weights) is str and is_weights_file(weights) and _is_absolute(weights)


def _is_hexadecimal(value: object, digits: int) -> bool:
    return type(value) is str and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) is not None


def _is_absolute(path: str) -> bool:
    return path.startswith("/") and len(path) <= 4096 and "\0" not in path


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return type(value) is str and pattern.fullmatch(value) is not None
