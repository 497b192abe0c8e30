"""One line of text on how far the rows of two recipes may differ that differ only in rounding."""

from __future__ import annotations

import math

from featx.recipe import Difference, Recipe, rule_of

# Relative L2 distances of a row.
# Between engines (the limit of "auto"), batch sizes, threads and devices; the largest measured is 8.3e-6.
FLOAT32_ERROR = 1e-4
_FLOAT16_ERROR = 2.0**-11  # of storing numbers as float16


def rounding_note(recipe: Recipe, other: Recipe, names: tuple[str, str]) -> str:
    """What is rounded differently and how far rows may differ, in one line; "" if nothing is.

    Parameters
    ----------
    recipe, other : Recipe
        They have the same meaning; see `Recipe.other_meaning`.
    names : names of the two for the text
    """
    differences = [difference for difference in recipe.compare(other) if difference.kind == "rounding"]
    if not differences:
        return ""
    first = ", ".join(_setting(difference.field, difference.first) for difference in differences)
    second = ", ".join(_setting(difference.field, difference.second) for difference in differences)
    return f"{names[0]} was made with {first}; {names[1]} with {second}: {_agreement(recipe, other, differences)}"


def _setting(field: str, value: object) -> str:
    if value is None:
        return rule_of(field).none_text
    return f"{field} {str(value).partition(',')[0]}"


def _agreement(recipe: Recipe, other: Recipe, differences: list[Difference]) -> str:
    error, only_dtype_differs = 0.0, [difference.field for difference in differences] == ["dtype"]
    if not only_dtype_differs:
        errors = [_float32_error(recipe), _float32_error(other)]
        if None in errors:
            fast = (recipe if errors[0] is None else other).precision
            return (
                f"how far rows may differ is not known: {fast} was chosen by name, and only precision auto measures it"
            )
        error = max(FLOAT32_ERROR, math.fsum(filter(None, errors)))
    error += _FLOAT16_ERROR * [recipe.dtype, other.dtype].count("float16")
    percent = math.ceil(round(error * 1e4, 6)) / 100  # rounded up, so that it remains a bound
    return f"rows agree within {percent:.2f} % (relative L2)"


def _float32_error(recipe: Recipe) -> float | None:
    """Distance of the rows from those of float32; None if it was not measured."""
    return 0.0 if recipe.precision == "float32" else recipe.precision_error
