"""What is said of a sweep: its table, its CSV and its page, from results that were made up."""

import base64
import csv
import io
import re
from typing import Any

import pytest
from matplotlib.figure import Figure

from tomoray.jobs import TuneJob
from tomoray.search import State, Trial
from tomoray.spaces import SpaceSettings
from tomoray.sweep_report import draw_coordinates, draw_histories, ranked, sweep_csv, sweep_page, sweep_table

KEYS = {
    "method.ema_rate": {"low": 0.001, "high": 0.1, "log": True},
    "method.pseudo_mode": {"choices": ["soft", "peaks"]},
    "method.state": {"choices": ["<on>", "off|"]},
}


def sweep(verb: str = "train", keys: dict[str, Any] | None = None) -> tuple[TuneJob, SpaceSettings]:
    job = TuneJob.model_validate({"space": {"base": f"jobs/{verb}_x.toml", "space": keys or KEYS}, "name": "s", "train": {"epochs": 4}})
    return job, job.read_space()


def trial(number: int, state: State, *values: float, rate: float = 0.01, mode: str = "soft", reason: str = "") -> Trial:
    history = tuple((2 * k, value) for k, value in enumerate(values, start=1))
    return Trial(number, {"method.ema_rate": rate, "method.pseudo_mode": mode, "method.state": "<on>"}, "abc", state, history, 12.3, reason=reason)


TRIALS = [
    trial(0, "finished", 0.3, 0.4, rate=0.001),
    trial(1, "pruned", 0.2, rate=0.1, mode="peaks"),
    trial(2, "finished", 0.6, 0.5),
    trial(3, "failed", reason="OSError: <gone>"),
    trial(4, "finished", 0.1, 0.45, rate=0.03),
]


def test_finished_trials_come_first_and_the_best_of_them_at_the_top() -> None:
    assert [one.number for one in ranked(TRIALS)] == [2, 4, 0, 1, 3]


def test_the_table_says_what_was_found() -> None:
    """Planted: the last validation instead of the best; columns whose names collide with the table's own."""
    text = sweep_table(*sweep(), TRIALS, command="tomoray tune x")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "trial",
        "state",
        "f1",
        "epochs",
        "seconds",
        "ema_rate",
        "pseudo_mode",
        "method.state",
    ]
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["002", "finished", "0.600", "4", "12", "0.01", "soft", "<on>"]
    assert len(lines) == 2 + 5
    assert len({len(line) for line in lines}) == 1, "it reads as plain text too"
    assert "5 trials: 3 finished, 1 stopped early, 1 failed. Best: trial 002 with f1 0.600." in text
    assert "- 003: OSError: <gone>" in text
    assert "`tomoray tune x`" in text
    assert "`method.ema_rate` 0.001 to 0.1 (log)" in text


def test_the_table_of_nothing_finished_names_no_best() -> None:
    text = sweep_table(*sweep(), TRIALS[1:2])
    assert "Best" not in text
    assert sweep_table(*sweep(), []).startswith("# Sweep s")


def test_every_validation_is_in_the_csv() -> None:
    _, space = sweep()
    rows = list(csv.DictReader(io.StringIO(sweep_csv(space, TRIALS))))
    assert [(row["trial"], row["epoch"], row["value"]) for row in rows[:3]] == [("000", "2", "0.3"), ("000", "4", "0.4"), ("001", "2", "0.2")]
    assert len(rows) == 2 + 1 + 2 + 1 + 2
    assert {row["reason"] for row in rows if row["trial"] == "003"} == {"OSError: <gone>"}


def pictures(page: str) -> list[str]:
    found = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)">', page)
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in found)
    return [name for name, _ in found]


def test_the_page_shows_what_matters_and_what_was_stopped_when() -> None:
    """Planted: text that is not escaped; a picture that needs a file beside the page."""
    job, space = sweep()
    page = sweep_page(job, space, TRIALS, {"picker": "sweeps/s/picker"})
    assert pictures(page) == ["importance", "parallel coordinates", "validations"]
    assert "<gone>" not in page
    assert "<on>" not in page
    assert "&lt;gone&gt;" in page
    assert "<td>001</td><td>2</td><td>0.200</td><td>0.600</td><td>2 of 3</td>" in page, "stopped after epoch 2, when 2 of 3 others were better"
    assert page.index("<td>002</td>") < page.index("<td>004</td>") < page.index("<td>000</td>")
    assert "sweeps/s/picker" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "complete in itself"


def test_the_page_of_trials_without_training_has_no_curves() -> None:
    job, space = sweep("pick", {"views": {"choices": [1, 8]}})
    page = sweep_page(job, space, [Trial(0, {"views": 1}, "s", "finished", ((1, 0.5),)), Trial(1, {"views": 8}, "s", "finished", ((1, 0.6),))], {})
    assert pictures(page) == ["parallel coordinates"], "two trials tell nothing of importance"
    assert "Stopped early" not in page
    assert pictures(sweep_page(job, space, [], {})) == []


def test_a_line_passes_each_axis_where_its_value_lies() -> None:
    """Planted: a logarithmic range drawn as a linear one."""
    axes = Figure().add_subplot()
    draw_coordinates(axes, *sweep(), [one for one in TRIALS if one.is_over])
    first, *_, last = ([float(y) for y in line.get_ydata()] for line in axes.lines if len(line.get_xdata()) == 4)
    assert first == pytest.approx([1.0, 1.0, 0.0, 0.0])
    assert last == pytest.approx([0.5, 0.0, 0.0, 1.0]), "the best trial is drawn last"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["ema_rate", "pseudo_mode", "method.state", "f1"]


def test_a_stopped_training_ends_in_a_cross() -> None:
    axes = Figure().add_subplot()
    draw_histories(axes, sweep()[0], [one for one in TRIALS if one.is_over])
    assert [list(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "x"] == [[2.0, 0.2]]
