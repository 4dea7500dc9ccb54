"""What a sweep found: a table, all values as CSV, and a page with pictures."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tomoray.jobs import TuneJob
from tomoray.report import PAGE
from tomoray.search import Trial, winner_of
from tomoray.spaces import TRIALS, ParameterSettings, SpaceSettings, Value
from tomoray.sweep import importances

BEST_SHOWN = 10
NOTHING = "-"
FADED = "0.78"  # a light grey


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials: the finished ones from the best on, then those stopped early, by what they had reached, then the rest."""
    order = {"finished": 0, "pruned": 1, "running": 2, "failed": 3}
    return sorted(trials, key=lambda trial: (order[trial.state], -trial.value if trial.history else math.inf, trial.number))


def sweep_table(job: TuneJob, space: SpaceSettings, trials: Sequence[Trial], *, command: str = "") -> str:
    """Return what a sweep found, as Markdown that also reads as plain text."""
    parts = [f"# Sweep {job.name}", _summary(job, space, trials)]
    if trials:
        parts.append(_markdown([trial_row(job, space, trial) for trial in ranked(trials)]))
    if failed := [trial for trial in trials if trial.state == "failed"]:
        parts += ["## Failed", "\n".join(f"- {trial.name}: {trial.reason}" for trial in failed)]
    how = [f"- Command: `{command}`"] if command else []
    how += [f"- Keys: {'; '.join(f'`{key}` {parameter}' for key, parameter in space.space.items())}"]
    how += [f"- Settings and data: {trials[0].settings} (the same hash, the same but for these keys)"] if trials else []
    return "\n\n".join([*parts, "## How", "\n".join(how)]) + "\n"


def trial_row(job: TuneJob, space: SpaceSettings, trial: Trial) -> dict[str, str]:
    """Return the cells of a trial in a table."""
    row = {"trial": trial.name, "state": trial.state, job.metric: _number(trial.value)}
    row |= {"epochs": str(trial.epochs)} if space.verb == "train" else {}
    return row | {"seconds": f"{trial.wall_s:.0f}"} | {label: _spell(trial.values[key]) for key, label in _labels(space).items()}


def _summary(job: TuneJob, space: SpaceSettings, trials: Sequence[Trial]) -> str:
    counts = Counter[str](trial.state for trial in trials)
    told = ", ".join(f"{counts[state]} {word}" for state, word in (("finished", "finished"), ("pruned", "stopped early"), ("failed", "failed")))
    lines = [f"{len(trials)} trials: {told}."]
    if winner := winner_of(trials):
        lines.append(f"Best: trial {winner.name} with {job.metric} {_number(winner.value)}.")
    if space.verb == "train":
        lines.append(
            "Each trial counts with its best validation, on the tomograms that its thresholds were chosen on: the best of many such is too good."
        )
    else:
        lines.append(
            "Each trial is scored on tomograms that its thresholds were not chosen on, in turn; the best of many is still a little too good."
        )
    return " ".join(lines)


def sweep_csv(space: SpaceSettings, trials: Iterable[Trial]) -> str:
    """Return a line per trial and validation, with the values of the trial."""
    text = io.StringIO()
    columns = ["trial", "state", *space.space, "epoch", "value", "wall_s", "checkpoint", "run", "reason"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for trial in trials:
        about = {"trial": trial.name, **{name: getattr(trial, name) for name in ("state", "wall_s", "checkpoint", "run", "reason")}, **trial.values}
        writer.writerows(about | {"epoch": epoch, "value": value} for epoch, value in trial.history or [("", "")])
    return text.getvalue()


def sweep_page(job: TuneJob, space: SpaceSettings, trials: Sequence[Trial], files: Mapping[str, str]) -> str:
    """Return one HTML page, complete in itself: the best trials, which keys matter, what was stopped and when."""
    over = [trial for trial in trials if trial.is_over]
    best = [trial_row(job, space, trial) for trial in ranked(over)[:BEST_SHOWN]]
    stopped = sorted((trial for trial in trials if trial.state == "pruned"), key=lambda trial: (trial.epochs, trial.number))
    shares = importances(space, trials)
    weights = "Shares in what sets the best trials apart from all (PED-ANOVA); with few trials hardly more than a hint."
    sections = [
        f"<p>{escape(_summary(job, space, trials))}</p>",
        _section("Settings", _table([{"what": key, "value": str(parameter)} for key, parameter in space.space.items()], "text")),
        _section("Best trials", _table(best)),
        _section("Which keys matter", f"<p>{weights}</p>{_picture('importance', draw_importances, shares)}" if shares else ""),
        _section("All trials", _picture("parallel coordinates", draw_coordinates, job, space, over) if over else ""),
        _section("Stopped early, and when", _table([_stop_row(job, trial, trials) for trial in stopped])),
        _section("", _picture("validations", draw_histories, job, over) if any(len(trial.history) > 1 for trial in over) else ""),
        _section("Failed", _table([{"trial": t.name, "reason": t.reason} for t in trials if t.state == "failed"], "text")),
        _section("Files", _table([{"what": what, "where": where} for what, where in files.items()], "text")),
    ]
    title = f"tomoray tune: {job.name}, a trial {TRIALS[space.verb]}"
    return PAGE.format(title=escape(title), body="\n".join(section for section in sections if section))


def _stop_row(job: TuneJob, trial: Trial, trials: Iterable[Trial]) -> dict[str, str]:
    reached = [value for other in trials for epoch, value in other.history if epoch == trial.epochs]
    better = sum(value > trial.history[-1][1] for value in reached)
    return {
        "trial": trial.name,
        "after epoch": str(trial.epochs),
        f"{job.metric} then": _number(trial.history[-1][1]),
        "best of others then": _number(max(reached)),
        "others better": f"{better} of {len(reached) - 1}",
    }


def draw_importances(axes: Any, shares: Mapping[str, float]) -> None:
    """Draw a bar per key."""
    keys = sorted(shares, key=lambda key: shares[key])
    axes.barh(keys, [shares[key] for key in keys], color="#3b6ea5")
    axes.set(xlim=(0, 1), xlabel="share")


def draw_coordinates(axes: Any, job: TuneJob, space: SpaceSettings, trials: Sequence[Trial]) -> None:
    """Draw a line per trial across one axis per key and one for the metric; the brighter the better, and grey where it was stopped."""
    from matplotlib import colormaps

    low, high = min(trial.value for trial in trials), max(trial.value for trial in trials)
    width = (high - low) or 1.0
    columns = list(range(len(space.space) + 1))
    for trial in reversed(ranked(trials)):
        share = (trial.value - low) / width
        places = [*(_place(parameter, trial.values[key]) for key, parameter in space.space.items()), share]
        finished = trial.state == "finished"
        colour = colormaps["viridis"](share) if finished else FADED
        axes.plot(columns, places, color=colour, linewidth=1.8 if finished else 1.0, alpha=0.9, zorder=2 if finished else 1)
    for column, parameter in enumerate(space.space.values()):
        _draw_axis(axes, column, {_place(parameter, value): _spell(value) for value in parameter.ends})
    _draw_axis(axes, columns[-1], {0.0: _number(low), 1.0: _number(high)})
    axes.set(xlim=(-0.3, len(columns) - 0.5), ylim=(-0.08, 1.08), yticks=[])
    axes.set_xticks(columns, [*_labels(space).values(), job.metric])
    axes.spines[:].set_visible(False)


def _draw_axis(axes: Any, column: int, ticks: Mapping[float, str]) -> None:
    axes.axvline(column, color="0.3", linewidth=0.8, zorder=3)
    for height, text in ticks.items():
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
        axes.text(column + 0.03, height, text, fontsize=8, va="center", bbox=box, zorder=4, parse_math=False)


def draw_histories(axes: Any, job: TuneJob, trials: Sequence[Trial]) -> None:
    """Draw the validations of every training, with a cross where one was stopped."""
    for trial in trials:
        epochs, values = zip(*trial.history, strict=True)
        pruned = trial.state == "pruned"
        axes.plot(epochs, values, color="0.6" if pruned else "#3b6ea5", linewidth=1.0 if pruned else 1.6, marker=".", zorder=1 if pruned else 2)
        if pruned:
            axes.plot(epochs[-1], values[-1], "x", color="#b3261e", markersize=7, zorder=3)
        axes.annotate(trial.name, (epochs[-1], values[-1]), xytext=(4, 0), textcoords="offset points", fontsize=7, va="center")
    axes.set(xlabel="epoch", ylabel=job.metric)


def _place(parameter: ParameterSettings, value: Value) -> float:
    """Return where a value lies on an axis from 0 to 1."""
    if parameter.choices:
        return parameter.choices.index(value) / (len(parameter.choices) - 1)
    low, high, mine = (math.log(float(v)) if parameter.log else float(v) for v in (*parameter.ends, value))
    return (mine - low) / (high - low)


def _picture(caption: str, draw: Callable[..., None], *told: Any) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure.add_subplot(), *told)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=130)
    data = base64.b64encode(png.getvalue()).decode("ascii")
    return f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}"></figure>'


def _labels(space: SpaceSettings) -> dict[str, str]:
    """Return key -> its last part, or all of it where two keys end alike or as another column is called."""
    lasts = Counter(key.rpartition(".")[2] for key in space.space)
    taken = {"trial", "state", "f1", "czii", "epochs", "seconds"}
    return {key: last if lasts[last := key.rpartition(".")[2]] == 1 and last not in taken else key for key in space.space}


def _section(heading: str, content: str) -> str:
    return (f"<h2>{heading}</h2>\n" if heading else "") + content if content else ""


def _table(rows: Sequence[Mapping[str, str]], kind: str = "") -> str:
    if not rows:
        return ""
    lines = [(list(rows[0]), "th"), *((list(row.values()), "td") for row in rows)]
    cells = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line) for line, tag in lines)
    return f'<table class="{kind}">\n' + "\n".join(f"<tr>{line}</tr>" for line in cells) + "\n</table>"


def _markdown(rows: Sequence[Mapping[str, str]]) -> str:
    lines = [list(rows[0]), *([cell.replace("|", "\\|") for cell in row.values()] for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(lines[0]))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [[f"{cell:<{w}}" if place == 0 else f"{cell:>{w}}" for place, (cell, w) in enumerate(zip(line, widths, strict=True))] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def _number(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.3f}"


def _spell(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
