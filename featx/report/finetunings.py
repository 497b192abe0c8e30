"""What `featx finetune` prints: the fine-tuned network beside its linear probe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from featx.display import printable_lines
from featx.report.columns import FittedTable
from featx.report.interchange import json_text
from featx.report.scores import bracket, number, score_name, scored

if TYPE_CHECKING:
    from featx.transfer import FineTuning


def finetuning_table(result: FineTuning) -> FittedTable:
    """A row each for the probe and the fine-tuned network; the caption says whether they differ significantly."""
    tuner = result.tuner
    chance = number(result.chance, result.scoring)
    images = f"{result.n_train:,} training, {result.n_test:,} test images"
    table = FittedTable(f"from {tuner.boundary}: {images} (chance {chance})")
    table.add_names("model")
    table.add_words(f"{score_name(result.scoring)} [95%]")
    table.add_numbers("epochs", "fit s")
    table.add_row("linear probe", scored(result.probe_score, result.probe_interval, result.scoring), "0",
                  f"{result.probe_seconds:.1f}")  # fmt: skip
    table.add_row("fine-tuned", scored(result.score, result.interval, result.scoring), str(tuner.n_iter_),
                  f"{result.seconds:.1f}")  # fmt: skip
    verdict = "better than the probe" if result.is_better else "not clearly better: the interval includes 0"
    if result.difference_interval.high < 0:
        verdict = "worse than the probe"
    elif math.isnan(result.difference_interval.low):
        verdict = "too few groups for an interval"
    notes = [f"difference on the same images {result.difference:+.3f} {bracket(result.difference_interval)}: {verdict}"]
    if tuner.best_epoch_ != tuner.n_iter_:
        notes.append(f"the weights are those of epoch {tuner.best_epoch_}")
    table.caption = printable_lines(notes)
    return table


def finetuning_json(result: FineTuning) -> str:
    """A JSON object; unknown numbers are null."""

    def known(values: object) -> object:
        return [None if math.isnan(value) else value for value in values]  # type: ignore[attr-defined]

    tuner = result.tuner
    return json_text(
        {
            "boundary": tuner.boundary,
            "scoring": result.scoring,
            "training_images": result.n_train,
            "test_images": result.n_test,
            "classes": result.n_classes,
            "chance": result.chance,
            "score": result.score,
            "interval": known(result.interval),
            "probe_score": result.probe_score,
            "probe_interval": known(result.probe_interval),
            "difference": result.difference,
            "difference_interval": known(result.difference_interval),
            "is_better": result.is_better,
            "seconds": result.seconds,
            "probe_seconds": result.probe_seconds,
            "best_epoch": tuner.best_epoch_,
            "history": {name: known(values.tolist()) for name, values in tuner.history_.items()},
        },
        indent=1,
    )
