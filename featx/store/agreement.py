"""Two recipes that differ in rounding alone in; one line that says how far their rows may differ, out."""

from __future__ import annotations

import math

from featx.recipe import Difference, Recipe

# Relative L2 distances of a row.
FLOAT32_ERROR = 1e-4  # between engines (what "auto" accepts), batch sizes, threads, devices; measured: 8.3e-6 at most
_FLOAT16_ERROR = 2.0**-11  # of storing numbers as float16


def rounding_note(recipe: Recipe, other: Recipe, names: tuple[str, str]) -> str:
    """What rounds differently and how far rows may differ, in one line; "" where all rounds alike.

    Parameters
    ----------
    recipe, other : Recipe
        Of one meaning; see `Recipe.other_meaning`.
    names : what to call the two
    """
    differences = [difference for difference in recipe.compare(other) if difference.kind == "rounding"]
    if not differences:
        return ""
    mine = ", ".join(_setting(difference.field, difference.there) for difference in differences)
    others = ", ".join(_setting(difference.field, difference.here) for difference in differences)
    return f"{names[0]} was made with {mine}; {names[1]} with {others}: {_agreement(recipe, other, differences)}"


def _setting(field: str, value: object) -> str:
    if value is None:
        return "whole batches in one pass"  # the one field that may be None is pass_rows
    return f"{field} {str(value).partition(',')[0]}"


def _agreement(recipe: Recipe, other: Recipe, differences: list[Difference]) -> str:
    error, computed_alike = 0.0, [difference.field for difference in differences] == ["dtype"]
    if not computed_alike:
        off = [_off_float32(recipe), _off_float32(other)]
        if None in off:
            fast = (recipe if off[0] is None else other).precision
            return (
                f"how far rows may differ is not known: {fast} was chosen by name, and only precision auto measures it"
            )
        error = max(FLOAT32_ERROR, math.fsum(filter(None, off)))
    error += _FLOAT16_ERROR * [recipe.dtype, other.dtype].count("float16")
    percent = math.ceil(round(error * 1e4, 6)) / 100  # rounded up, it still holds
    return f"rows agree within {percent:.2f} % (relative L2)"


def _off_float32(recipe: Recipe) -> float | None:
    """How far rows are from those of float32; None where nobody measured it."""
    return 0.0 if recipe.precision == "float32" else recipe.precision_error
