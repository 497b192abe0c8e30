"""The result in a few sentences, and what speaks for and against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from featx.errors import listed
from featx.report.page.sections import Bullets, Check, Section, Text
from featx.report.scores import named, number, score_name, scored, value_text
from featx.store import near_duplicates

if TYPE_CHECKING:
    from featx.learn.selection import Selection

PIXELS = "bundled:pixels"
_FEW_TRAINING, _FEW_TEST = 20, 10  # images of a class
_WIDE = 0.1  # of an accuracy's interval
_AIM = 0.02  # half width of an accuracy's interval that tells most models apart
_MOSTLY_ONE = 0.7  # share of the most frequent class
_MOST_COMPARED = 20_000  # images; the time grows with the square of their number
_ERROR = "neg_mean_absolute_error"


def verdict_section(selection: Selection) -> Section:
    return Section("verdict", "The result", [Text(" ".join(_sentences(selection))), Bullets(list(checks(selection)))])


def _sentences(selection: Selection) -> Iterator[str]:
    scoring, chosen, training = selection.settings.scoring, selection.chosen, selection.training
    yield f"Chosen of {len(selection.candidates):,}: {named(chosen)}, on features of {chosen.backbone}."
    if selection.held_out is not None and selection.test is not None:
        score = scored(selection.held_out, selection.held_out_interval, scoring)
        yield (
            f"On {len(selection.test.y):,} images that played no part in the choice, its {score_name(scoring)} is "
            f"{score} (95 % interval)."
        )
    else:
        score = scored(chosen.mean, chosen.interval, scoring)
        yield f"Its cross-validated {score_name(scoring)} is {score}; the choice has flattered it."
    chance = number(training.chance, scoring)
    yield f"A constant answer has {chance}{_pixels(selection)}."
    yield f"It was trained on {training.n:,} images{_of_classes(selection)}."


def _of_classes(selection: Selection) -> str:
    return "" if selection.training.classes is None else f" of {len(selection.training.classes):,} classes"


def _pixels(selection: Selection) -> str:
    """The baseline of raw pixels, if it was searched."""
    if selection.chosen.backbone == PIXELS:
        return ""
    best = next((candidate for candidate in selection.candidates if candidate.backbone == PIXELS), None)
    return "" if best is None else f", the best model of raw pixels {number(best.mean, selection.settings.scoring)}"


def checks(selection: Selection) -> Iterator[Check]:
    """What a careful reader would ask of the result, answered."""
    if selection.is_partial:
        yield _warning("The search was interrupted: these are the candidates that were done until then.")
    yield from _above_chance(selection)
    yield from _flattered(selection)
    yield from _noise(selection)
    yield from _edges(selection)
    yield from _sizes(selection)
    yield from _balance(selection)
    yield from _copies(selection)
    if n := selection.training.n_duplicates:
        yield _note(f"{n:,} images have the same content as another one; copies were kept on one side of each split.")
    if (n_groups := selection.training.n_groups) is not None:
        yield _good(f"{n_groups:,} groups of images were never split between training and test.")


def _good(text: str) -> Check:
    return "good", text


def _note(text: str) -> Check:
    return "note", text


def _warning(text: str) -> Check:
    return "warning", text


def _above_chance(selection: Selection) -> Iterator[Check]:
    interval, chance = selection.held_out_interval, selection.training.chance
    if selection.held_out is None:
        yield _warning("No images were held out, so no score here is free of the choice of the model.")
    elif interval is None or not np.isfinite(interval.low):
        yield _warning("The held-out score has no interval: there are too few images.")
    elif interval.low > chance:
        yield _good("The held-out score is above that of a constant answer: its interval excludes it.")
    else:
        yield _warning("The held-out score may be that of a constant answer: its interval includes it.")


def _flattered(selection: Selection) -> Iterator[Check]:
    interval, mean = selection.held_out_interval, selection.chosen.mean
    if interval is not None and mean > interval.high:
        yield _note(
            f"The cross-validated {number(mean, selection.settings.scoring)} is above the held-out interval: the best "
            f"of {len(selection.candidates):,} is flattered by the choice. Trust the held-out score."
        )


def _noise(selection: Selection) -> Iterator[Check]:
    from featx.learn.scores import within_one_se

    candidates = selection.candidates
    if len(candidates) < 2 or len(candidates[0].scores) < 2:
        return
    near = int(sum(within_one_se([c.mean for c in candidates], [c.scores for c in candidates]))) - 1
    if not near:
        yield _good("No other candidate is within one standard error of the best.")
        return
    others = "Another candidate is" if near == 1 else f"{near:,} other candidates are"
    simpler = selection.simpler
    which = "" if simpler is None else f" The simplest of them is {named(simpler)}."
    yield _note(f"{others} within one standard error of the best.{which}")


def _edges(selection: Selection) -> Iterator[Check]:
    """Whether the chosen value is at an end of those that were tried, and better than the next one."""
    chosen = selection.chosen
    key = chosen.backbone, chosen.layer, chosen.estimator
    means = {c.value: c.mean for c in selection.candidates if (c.backbone, c.layer, c.estimator) == key}
    if chosen.value is None or len(means) < 2:
        return
    values = sorted(value for value in means if value is not None)
    for end, following, name, other in ((values[0], values[1], "smallest", "smaller"),
                                        (values[-1], values[-2], "largest", "larger")):  # fmt: skip
        if chosen.value == end and means[following] < chosen.mean:
            yield _note(
                f"{chosen.parameter} = {value_text(end)} is the {name} value that was tried: a {other} one may be "
                "better."
            )


def _sizes(selection: Selection) -> Iterator[Check]:
    interval, score = selection.held_out_interval, selection.held_out
    if interval is not None and score is not None and selection.settings.scoring == "accuracy":
        width = interval.high - interval.low
        if width > _WIDE:
            needed = int(np.ceil(max(score * (1 - score), 0.05) * (1.96 / _AIM) ** 2 / 100)) * 100
            yield _note(
                f"The held-out score is known to within {width / 2:.2f} only; with about {needed:,} held-out images it "
                f"would be known to within {_AIM}."
            )
    classes, training, test = selection.training.classes, selection.training.y, selection.test
    if classes is None:
        return
    if training is not None and (few := [str(c) for c in classes if np.sum(training == c) < _FEW_TRAINING]):
        yield _note(f"Classes with fewer than {_FEW_TRAINING} training images: {listed(few)}.")
    if test is not None and (few := [str(c) for c in classes if np.sum(test.y == c) < _FEW_TEST]):
        yield _note(f"Classes with fewer than {_FEW_TEST} held-out images, too few to score: {listed(few)}.")


def _balance(selection: Selection) -> Iterator[Check]:
    chance = selection.training.chance
    if selection.training.classes is not None and selection.settings.scoring == "accuracy" and chance > _MOSTLY_ONE:
        yield _note(
            f"{chance:.0%} of the training images are of one class, so accuracy says little about the others: balanced "
            "accuracy counts each class alike."
        )


def _copies(selection: Selection) -> Iterator[Check]:
    """Whether held-out images are near duplicates of training images, by the statistics that stores keep."""
    training, test = selection.training, selection.test
    if test is None or training.X is None:
        return
    store = training.stores[0]
    other = store if test.store is None else test.store
    if not store.statistics or not other.statistics or max(len(store), len(other)) > _MOST_COMPARED:
        return
    layer = next((name for name in reversed(store.layers) if name in other.layers), None)
    is_training, is_test = np.zeros(len(store), bool), np.zeros(len(other), bool)
    is_training[store.rows(training.X)], is_test[other.rows(test.X)] = True, True
    first, second = near_duplicates(store, None if other is store else other, layer).pairs.T
    copies = set(second[is_training[first] & is_test[second]].tolist())
    if other is store:  # pairs are in the order of their rows
        copies |= set(first[is_test[first] & is_training[second]].tolist())
    if not copies:
        yield _good("No held-out image is a copy of a training image, saved again, resized, mirrored or cropped.")
        return
    how = "held-out image is a copy" if len(copies) == 1 else "held-out images are copies"
    advice = "" if other is not store else "; groups 'near-duplicates' keep copies on one side"
    yield _warning(
        f"{len(copies):,} {how} of training images, saved again, resized, mirrored or cropped: the score is too good"
        f"{advice}."
    )
