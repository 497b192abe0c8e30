"""The result of `adapt` as a table and as JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from featx.display import printable_lines
from featx.errors import count
from featx.report.columns import FittedTable
from featx.report.interchange import json_text
from featx.report.scores import bracket, number, score_name, scored, value_text

if TYPE_CHECKING:
    from featx.learn.scores import Interval
    from featx.transfer import Adaptation, AdaptationRow

_METHODS = {"scaler": "own scalers", "coral": "CORAL", "linear_ot": "linear OT"}


def adaptation_table(adaptation: Adaptation) -> FittedTable:
    """One row for each way to train, from the source alone to the most labels; none is marked as chosen."""
    table = FittedTable(adaptation_title(adaptation), spare=("C", "source, cross-validated"))
    table.add_names("trained on")
    table.add_numbers("labels a class")
    table.add_words(f"{score_name(adaptation.scoring)} [95%]", "gain over source [95%]")
    table.add_numbers("source, cross-validated", "C")
    for row in adaptation.rows:
        is_first = math.isnan(row.gain_interval.low) and row is adaptation.rows[0]
        table.add_row(
            way_name(row),
            f"{row.shots}" if row.shots else "",
            scored(row.score, row.interval, adaptation.scoring),
            "" if is_first else f"{row.gain:+.3f} {bracket(row.gain_interval)}".strip(),
            "" if row.source_score is None else number(row.source_score, adaptation.scoring),
            value_text(row.C),
        )
    notes = [
        f"images held out took part in nothing, in no alignment either; {adaptation.n_target:,} other target images "
        "are aligned with, without their labels"
    ]
    if any(row.shots for row in adaptation.rows):
        drawn = f"the mean of {count(adaptation.draws, 'random draw')}"
        notes.append(f"with labels of the target: {drawn} among those {adaptation.n_target:,}")
    if adaptation.omitted_shots:
        name, n = adaptation.fewest
        left_out = " and ".join(map(str, adaptation.omitted_shots))
        notes.append(f"not tried: {left_out} labels a class; {name} has {count(n, 'target image')} to draw from")
    unclear = [row for row in adaptation.rows[1:] if row.gain_interval.low <= 0 <= row.gain_interval.high]
    if unclear:
        notes.append("where the interval of the gain includes 0, these images do not show a difference")
    table.caption = printable_lines(notes)
    return table


def adaptation_title(adaptation: Adaptation) -> str:
    """ "layer4:avg, 1,000 labelled images of ours.h5; accuracy on 400 held-out images of theirs.h5 (chance 0.500)" """
    return (
        f"{adaptation.layer}, {adaptation.n_source:,} labelled images of {adaptation.source.path.name}; "
        f"{score_name(adaptation.scoring)} on {adaptation.n_test:,} held-out images of {adaptation.target.path.name} "
        f"(chance {number(adaptation.chance, adaptation.scoring)})"
    )


def way_name(row: AdaptationRow) -> str:
    """ "source", "source, CORAL" or "source and target" """
    return f"{row.training}, {_METHODS[row.method]}" if row.method else row.training


def adaptation_json(adaptation: Adaptation) -> str:
    """A JSON object with everything in the table; unknown numbers are null."""
    return json_text(
        {
            "source": str(adaptation.source.path),
            "target": str(adaptation.target.path),
            "layer": adaptation.layer,
            "scoring": adaptation.scoring,
            "chance": adaptation.chance,
            "classes": adaptation.classes.tolist(),
            "source_images": adaptation.n_source,
            "target_images": adaptation.n_target,
            "held_out_images": adaptation.n_test,
            "draws": adaptation.draws,
            "omitted_shots": list(adaptation.omitted_shots),
            "ways": [
                {
                    "training": row.training,
                    "method": row.method or None,
                    "shots": row.shots,
                    "score": row.score,
                    "interval": _known(row.interval),
                    "gain": row.gain,
                    "gain_interval": _known(row.gain_interval),
                    "source_score": row.source_score,
                    "C": row.C,
                }
                for row in adaptation.rows
            ],
        },
        indent=1,
    )


def _known(interval: Interval) -> list[float] | None:
    return None if math.isnan(interval.low) else list(interval)
