"""Scores as a table, one line per class, for people at the command line and in a report."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tomoray.scoring import ClassScore, Score


def score_rows(scores: Mapping[str, Score]) -> list[dict[str, str]]:
    """Return the lines of the table of scores as text cells: one per class, the last for the headline.

    Numbers of picks, precision and recall are those of the first score, which also shows its intervals.
    """
    first = next(iter(scores.values()))
    rows = []
    for place, c in enumerate(first.classes):
        row = {"class": c.name, "truth": str(c.truths), "picks": str(c.picks), "precision": _number(c.precision), "recall": _number(c.recall)}
        rows.append(row | {name: _cell(s.classes[place], with_interval=s is first) for name, s in scores.items()})
    total = {"class": "all", "truth": str(sum(c.truths for c in first.classes)), "picks": str(sum(c.picks for c in first.classes))}
    rows.append(total | {"precision": "", "recall": ""} | {name: _cell(s, with_interval=True) for name, s in scores.items()})
    return rows


def score_note(score: Score) -> str:
    """Return one sentence that says what the intervals of a table of scores rest on."""
    if len(score.runs) < 2:
        return "No intervals: one tomogram does not tell how much tomograms differ."
    return f"Intervals: 95 %, bootstrap over {len(score.runs)} tomograms."


def score_table(scores: Mapping[str, Score]) -> str:
    """Return the table of scores as Markdown that also reads as plain text, with a note on what the numbers are."""
    rows = score_rows(scores)
    lines = [list(rows[0]), *([cell.replace("|", "\\|") for cell in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [[cell.ljust(w) if place == 0 else cell.rjust(w) for place, (cell, w) in enumerate(zip(line, widths, strict=True))] for line in lines]
    table = "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])
    return f"{table}\n\n{score_note(next(iter(scores.values())))}\n"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _cell(score: Score | ClassScore, *, with_interval: bool) -> str:
    low_high = f" [{score.interval[0]:.3f}, {score.interval[1]:.3f}]" if with_interval and score.interval else ""
    return _number(score.value) + low_high
