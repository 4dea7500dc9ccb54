"""The tables that compare the trials of a study: means and spreads over seeds, differences seed by seed, and the same per class."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from tomoray.jobs import StudyJob
from tomoray.study import Result, Trial, find_arm, settings_hash

HEADLINE = "F1@0.5r"
NOTHING = "-"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of some values; no deviation of fewer than two."""

    values: tuple[float, ...]

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Return the spread of those values that are numbers."""
        return Spread(tuple(v for v in values if not math.isnan(v)))

    @property
    def mean(self) -> float:
        """Their mean; NaN if there is none."""
        return fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Their sample standard deviation; NaN of fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def better(self) -> int:
        """How many are above zero."""
        return sum(v > 0 for v in self.values)

    def text(self, sign: str = "") -> str:
        """Return `mean ± deviation`, or what there is of it."""
        if not self.values:
            return NOTHING
        return f"{self.mean:{sign}.3f}" + ("" if math.isnan(self.deviation) else f" ± {self.deviation:.3f}")


@dataclass(frozen=True)
class Comparison:
    """The results of a study, by arm, number of labels and seed."""

    job: StudyJob
    results: Mapping[tuple[str, int, int], Result]

    @staticmethod
    def of(job: StudyJob, results: Iterable[Result]) -> Comparison:
        """Return the comparison of some results of a study."""
        return Comparison(job, {(r.arm, r.labels, r.seed): r for r in results})

    @property
    def reference(self) -> str:
        """Name of the arm that the others are compared with."""
        return self.job.reference or self.job.arms[0].name

    def of_arm(self, arm: str, labels: int) -> dict[int, Result]:
        """Return seed -> result of an arm where so many runs show their labels; an arm of all labels is the same for any number."""
        shown = 0 if find_arm(self.job, arm).labels == "all" else labels
        return {seed: self.results[arm, shown, seed] for seed in self.job.seeds if (arm, shown, seed) in self.results}

    def spread(self, arm: str, labels: int, measure: str, particle: str = "") -> Spread:
        """Return the spread over seeds of a measure, or of its value for one class."""
        return Spread.of(r.value(measure, particle) for r in self.of_arm(arm, labels).values())

    def difference(self, arm: str, labels: int, measure: str, particle: str = "") -> Spread:
        """Return the spread of the differences to the reference arm, seed by seed."""
        mine, theirs = self.of_arm(arm, labels), self.of_arm(self.reference, labels)
        return Spread.of(mine[s].value(measure, particle) - theirs[s].value(measure, particle) for s in mine if s in theirs)

    def gain(self, arm: str, labels: int, measure: str = HEADLINE) -> float:
        """Return the mean difference as a share of the reference's mean over the same seeds; NaN where that is not above zero."""
        both = self.of_arm(arm, labels)
        base = Spread.of(r.value(measure) for seed, r in self.of_arm(self.reference, labels).items() if seed in both).mean
        return self.difference(arm, labels, measure).mean / base if base > 0 else math.nan

    def gap_closed(self, arm: str, labels: int, measure: str = HEADLINE) -> float:
        """Return (arm - reference) / (full - reference) of the means over the seeds of all three; NaN where full is not above the reference."""
        if not self.job.full:
            return math.nan
        columns = [self.of_arm(name, labels) for name in (arm, self.reference, self.job.full)]
        seeds = set.intersection(*(set(column) for column in columns))
        mine, base, best = (Spread.of(column[seed].value(measure) for seed in seeds).mean for column in columns)
        return (mine - base) / (best - base) if best > base else math.nan

    def wall_s(self, arm: str, labels: int) -> Spread:
        """Return the spread of the seconds of training, with those of the trials that an arm's started from."""
        by_name = {r.name: r for r in self.results.values()}

        def seconds(result: Result) -> float:
            return result.wall_s + (seconds(by_name[result.after]) if result.after in by_name else 0.0)

        return Spread.of(seconds(r) for r in self.of_arm(arm, labels).values())


def study_table(job: StudyJob, trials: Sequence[Trial], results: Sequence[Result], failures: Mapping[str, str], *, command: str = "") -> str:
    """Return what a study found, as Markdown that also reads as plain text."""
    comparison = Comparison.of(job, results)
    parts = [f"# Study {job.name}", _summary(job, trials, results)]
    if results:
        for labels in dict.fromkeys(job.labelled_runs):
            parts += _sections(comparison, labels, {trial.arm: trial.steps for trial in trials})
    parts += ["## How", _how(trials, results, command)]
    if missing := [trial for trial in trials if trial.name not in {r.name for r in results}]:
        parts += ["## Missing", "\n".join(f"- {t.name}: {failures.get(t.name, 'not trained yet')}" for t in missing)]
    return "\n\n".join(parts) + "\n"


def _summary(job: StudyJob, trials: Sequence[Trial], results: Sequence[Result]) -> str:
    seeds = f"seeds {', '.join(map(str, job.seeds))}: mean ± sample standard deviation over them"
    if len(set(job.seeds)) == 1:
        seeds = f"One seed ({job.seeds[0]}), so no spread can be given, and a difference may be chance"
    lines = [f"{len(results)} of {len(trials)} trials. {seeds[0].upper()}{seeds[1:]}."]
    if results:
        scored = next(iter(results[0].scores.values()))["runs"]
        lines.append(
            f"Scored on {_count(len(scored), 'tomogram')} of split {', '.join(job.splits)}; each picker's thresholds are those of its validation."
        )
    if "validation" in job.splits:
        lines.append("Scores on validation tomograms are too good: thresholds were chosen on them.")
    clicks = sorted({trial.job.clicks for trial in trials} - {0})
    if clicks:
        shown = " or ".join([*map(str, clicks), *(["all"] if any(trial.job.clicks == 0 for trial in trials) else [])])
        lines.append(f"Of each class {shown} particles show in a tomogram to train or to validate on, drawn by seed.")
    drawn = f"weights, {'clicks, ' if clicks else ''}crops and augmentation"
    lines.append(f"The same tomograms show their labels for every seed: the spread is of {drawn}, not of that choice.")
    if len(steps := sorted({trial.steps for trial in trials})) > 1:
        lines.append(f"Arms differ in optimiser steps (from {steps[0]:,} to {steps[-1]:,}): compare those with as many.")
    return " ".join(lines)


def _sections(comparison: Comparison, labels: int, steps: Mapping[str, int]) -> list[str]:
    """Return the tables for one number of labels: measures, differences to the reference, and both per class."""
    job, reference = comparison.job, comparison.reference
    arms = [arm for arm in job.arms if comparison.of_arm(arm.name, labels)]
    if not arms:
        return []
    some = [next(iter(comparison.of_arm(arm.name, labels).values())) for arm in arms]
    measures = list(some[0].scores)
    particles = [c["name"] for c in some[0].scores[HEADLINE]["classes"]]
    title = {arm.name: arm.name + (" (all labels)" if arm.labels == "all" and labels else "") for arm in arms}
    runs = next((r.labelled_runs for r in some if r.labels == labels), ())
    others = [arm for arm in title if arm != reference]
    parts = [
        f"## {_count(labels, 'labelled tomogram') if labels else 'All labelled tomograms'}" + (f" ({', '.join(runs)})" if 0 < len(runs) <= 10 else "")
    ]
    parts.append(_markdown(_measure_row(comparison, arm, title[arm], labels, measures, steps[arm]) for arm in title))
    if comparison.of_arm(reference, labels) and others:
        parts.append(f"Differences to `{reference}`, seed by seed: mean ± deviation (seeds where it is better of those compared).")
        parts.append(_markdown(_difference_row(comparison, arm, title[arm], labels, measures) for arm in others))
    parts.append(f"{HEADLINE} per class, and the differences to `{reference}`.")
    parts.append(_markdown({"arm": title[a]} | {p: comparison.spread(a, labels, HEADLINE, p).text() for p in particles} for a in title))
    if comparison.of_arm(reference, labels) and others:
        parts.append(_markdown({"arm": title[a]} | {p: _better(comparison.difference(a, labels, HEADLINE, p)) for p in particles} for a in others))
    return parts


def _measure_row(comparison: Comparison, arm: str, title: str, labels: int, measures: Sequence[str], steps: int) -> dict[str, str]:
    row = {"arm": title, "seeds": str(len(comparison.of_arm(arm, labels))), "steps": f"{steps:,}"}
    row |= {"seconds": f"{comparison.wall_s(arm, labels).mean:,.0f}"}
    return row | {measure: comparison.spread(arm, labels, measure).text() for measure in measures}


def _difference_row(comparison: Comparison, arm: str, title: str, labels: int, measures: Sequence[str]) -> dict[str, str]:
    row = {"arm": title} | {measure: _better(comparison.difference(arm, labels, measure)) for measure in measures}
    row[f"gain in {HEADLINE}"] = _percent(comparison.gain(arm, labels), "+")
    if comparison.job.full:
        row[f"gap to {comparison.job.full} closed"] = _percent(comparison.gap_closed(arm, labels))
    return row


def _better(difference: Spread) -> str:
    return f"{difference.text('+')} ({difference.better}/{len(difference.values)})" if difference.values else NOTHING


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _percent(share: float, sign: str = "") -> str:
    return NOTHING if math.isnan(share) else f"{100 * share:{sign}.1f} %"


def _how(trials: Sequence[Trial], results: Sequence[Result], command: str) -> str:
    machines = dict.fromkeys(", ".join(f"{what} {which}" for what, which in (r.machine or {}).items()) for r in results)
    lines = [f"- Command: `{command}`"] if command else []
    lines += [f"- Settings and data: {settings_hash(trials)} (the same hash, the same study)"]
    lines += [f"- Machine: {machine}" for machine in machines if machine]
    lines += ["- Steps and seconds count the trials that an arm started from; seconds are of training since its last start, other trials beside it."]
    return "\n".join(lines)


def _markdown(rows: Iterable[Mapping[str, str]]) -> str:
    table = list(rows)
    lines = [list(table[0]), *([cell.replace("|", "\\|") for cell in row.values()] for row in table)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [[f"{cell:<{w}}" if place == 0 else f"{cell:>{w}}" for place, (cell, w) in enumerate(zip(line, widths, strict=True))] for line in lines]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def study_csv(results: Sequence[Result]) -> str:
    """Return all results as CSV, one line per trial and class and one for each trial's headline (class `all`)."""
    lines = [line for result in results for line in _csv_lines(result)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else ["arm"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_lines(result: Result) -> Iterator[dict[str, Any]]:
    about = {"arm": result.arm, "labels": result.labels or "all", "seed": result.seed, "steps": result.steps, "wall_s": round(result.wall_s, 1)}
    first = result.scores[HEADLINE]["classes"]
    counts = {c["name"]: {"truth": c["tp"] + c["fn"], "picks": c["tp"] + c["fp"]} for c in first}
    totals = {key: sum(c[key] for c in counts.values()) for key in ("truth", "picks")}
    yield about | {"class": "all"} | totals | {measure: score["value"] for measure, score in result.scores.items()}
    for place, (name, count) in enumerate(counts.items()):
        yield about | {"class": name} | count | {measure: score["classes"][place]["value"] for measure, score in result.scores.items()}


def study_metrics(job: StudyJob, results: Sequence[Result]) -> dict[str, float]:
    """Return the means and the mean differences as metrics: `F1@0.5r/arm-l2`, `F1@0.5r difference/arm-l2`."""
    comparison, metrics = Comparison.of(job, results), dict[str, float]()
    for arm in job.arms:
        for labels in dict.fromkeys(job.labelled_runs if arm.labels == "some" else (0,)):
            for measure in results[0].scores if results else ():
                where = f"{arm.name}-l{labels or 'all'}"
                metrics[f"{measure}/{where}"] = comparison.spread(arm.name, labels, measure).mean
                metrics[f"{measure} difference/{where}"] = comparison.difference(arm.name, labels, measure).mean
    return {key: value for key, value in metrics.items() if not math.isnan(value)}
