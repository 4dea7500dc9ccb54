"""The tables of a study, on results whose means, spreads and differences are known by construction."""

import csv
import io
import math
from typing import Any

import pytest

from tomoray.comparison import Comparison, Spread, study_csv, study_metrics, study_table
from tomoray.jobs import StudyJob
from tomoray.study import Result, Trial, expand

MEASURES = ("F1@0.5r", "F1@0.75r", "F4 (CZII)")
ARMS = [{"name": "base"}, {"name": "burn_in"}, {"name": "better", "start_from": "burn_in"}, {"name": "full", "labels": "all"}]
VALUES = {  # arm -> F1@0.5r of seeds 0, 1, 2
    "base": (0.40, 0.50, 0.60),
    "burn_in": (0.30, 0.30, 0.30),
    "better": (0.50, 0.55, 0.57),
    "full": (0.60, 0.60, 0.60),
}
SECONDS = {"base": 40.0, "burn_in": 10.0, "better": 25.0, "full": 100.0}


def study(**given: Any) -> StudyJob:
    return StudyJob.model_validate({"name": "toy", "arms": ARMS, "full": "full", "train": {"epochs": 2, "steps_per_epoch": 10}, **given})


def score(value: float, small: float | None = None) -> dict[str, Any]:
    """A score whose class "large" is as its headline, and "small" half of it."""
    classes = [
        {"name": "large", "tp": 6, "fp": 2, "fn": 4, "value": value},
        {"name": "small", "tp": 1, "fp": 1, "fn": 3, "value": value / 2 if small is None else small},
    ]
    return {"value": value, "low": None, "high": None, "runs": ["TS_8", "TS_9"], "classes": classes}


def result(trial: Trial) -> Result:
    value = VALUES[trial.arm][trial.seed] + 0.2 * (trial.labels == 5)
    scores = {measure: score(value + 0.01 * place) for place, measure in enumerate(MEASURES)}
    machine = {"processor": "A | B", "cores": "2"}
    runs = ("TS_1", "TS_2") if trial.labels == 2 else ("TS_1", "TS_2", "TS_3", "TS_4", "TS_5")
    return Result(trial.arm, trial.labels, trial.seed, trial.steps, trial.settings, trial.after, SECONDS[trial.arm], scores, runs, machine)


def results_of(job: StudyJob) -> list[Result]:
    return [result(trial) for trial in expand(job)]


def lines_of(table: str, heading: str) -> dict[str, list[str]]:
    """Row name -> cells of the first Markdown table behind a line that begins so."""
    after = table.split("\n" + heading, 1)[1].splitlines()[1:]
    start = next(place for place, line in enumerate(after) if line.startswith("|"))
    rows = []
    for line in after[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return {row[0]: row[1:] for row in rows}


def test_a_spread_is_the_sample_standard_deviation_of_what_is_defined() -> None:
    """Planted: the deviation divided by n; NaN counted as a value."""
    spread = Spread.of([0.4, 0.5, math.nan, 0.6])
    assert spread.mean == pytest.approx(0.5)
    assert spread.deviation == pytest.approx(0.1)
    assert spread.text() == "0.500 ± 0.100"
    assert Spread.of([0.25]).text("+") == "+0.250"
    assert math.isnan(Spread.of([0.25]).deviation)
    assert Spread.of([]).text() == "-"
    assert Spread.of([-0.1, 0.0, 0.1]).better == 1, "as good is not better"


def test_differences_are_taken_seed_by_seed() -> None:
    """Planted: the deviation of a difference made from the two deviations, as if seeds were not shared."""
    job = study()
    comparison = Comparison.of(job, results_of(job))
    difference = comparison.difference("better", 2, "F1@0.5r")
    assert difference.values == pytest.approx((0.10, 0.05, -0.03))
    assert difference.mean == pytest.approx(0.04)
    assert difference.deviation == pytest.approx(0.0655744, abs=1e-6)
    assert difference.better == 2
    assert comparison.difference("better", 2, "F1@0.5r", "small").mean == pytest.approx(0.02)
    assert comparison.gain("better", 2) == pytest.approx(0.04 / 0.5)
    assert comparison.gap_closed("better", 2) == pytest.approx(0.04 / 0.1)
    assert comparison.gap_closed("full", 2) == pytest.approx(1)
    assert comparison.difference("base", 2, "F1@0.5r").values == (0, 0, 0)


def test_the_arm_of_all_labels_stands_beside_every_number_of_labels() -> None:
    """With five labels every other arm is 0.2 better, so `full` lies below the reference and there is no gap to close."""
    job = study(labelled_runs=[2, 5])
    comparison = Comparison.of(job, results_of(job))
    assert comparison.spread("full", 2, "F1@0.5r") == comparison.spread("full", 5, "F1@0.5r")
    assert comparison.spread("base", 5, "F1@0.5r").mean == pytest.approx(0.7)
    assert math.isnan(comparison.gap_closed("better", 5))
    table = study_table(job, expand(job), results_of(job), {})
    assert lines_of(table, "## 5 labelled")["full (all labels)"][0] == "3"
    assert "## 2 labelled tomograms (TS_1, TS_2)" in table
    assert study_metrics(job, results_of(job))["F1@0.5r/full-lall"] == pytest.approx(0.6)


def test_seconds_and_steps_count_what_an_arm_started_from() -> None:
    job = study()
    assert Comparison.of(job, results_of(job)).wall_s("better", 2).mean == pytest.approx(35.0)
    rows = lines_of(study_table(job, expand(job), results_of(job), {}), "## 2 labelled")
    assert rows["arm"][:3] == ["seeds", "steps", "seconds"]
    assert rows["better"][:3] == ["3", "40", "35"]
    assert rows["base"][:3] == ["3", "20", "40"]


def test_the_table_says_what_was_found_and_how() -> None:
    job = study()
    table = study_table(job, expand(job), results_of(job), {}, command="tomoray study x/job.toml")
    assert lines_of(table, "## 2 labelled")["better"] == ["3", "40", "35", "0.540 ± 0.036", "0.550 ± 0.036", "0.560 ± 0.036"]
    differences = lines_of(table, "Differences to `base`")
    assert differences["arm"] == [*MEASURES, "gain in F1@0.5r", "gap to full closed"]
    assert differences["better"] == [*["+0.040 ± 0.066 (2/3)"] * 3, "+8.0 %", "40.0 %"]
    assert "base" not in differences
    assert lines_of(table, "F1@0.5r per class")["better"] == ["0.540 ± 0.036", "0.270 ± 0.018"]
    assert "+0.020 ± 0.033 (2/3)" in table
    for said in ("12 of 12 trials", "Seeds 0, 1, 2: mean ± sample", "Scored on 2 tomograms of split test", "Command: `tomoray study x/job.toml`"):
        assert said in table
    assert "Arms differ in optimiser steps (from 20 to 40)" in table
    assert table.count("Machine: processor A | B, cores 2") == 1
    assert "Missing" not in table


def test_the_text_depends_on_the_results_only() -> None:
    job = study()
    assert study_table(job, expand(job), results_of(job), {}) == study_table(job, expand(job), results_of(job)[::-1], {})


def test_missing_trials_are_named_and_left_out_of_means_and_pairs() -> None:
    """Planted: a mean over other seeds than the reference's taken for a difference."""
    job = study()
    results = [r for r in results_of(job) if r.name not in ("base-l2-s2", "better-l2-s0")]
    comparison = Comparison.of(job, results)
    assert comparison.difference("better", 2, "F1@0.5r").values == pytest.approx((0.05,))
    assert comparison.gain("better", 2) == pytest.approx(0.05 / 0.5)
    assert comparison.gap_closed("better", 2) == pytest.approx(0.5)
    table = study_table(job, expand(job), results, {"base-l2-s2": "out of memory"})
    assert "10 of 12 trials" in table
    assert lines_of(table, "## 2 labelled")["better"][0] == "2"
    assert lines_of(table, "Differences to `base`")["better"][0] == "+0.050 (1/1)"
    assert table.endswith("\n## Missing\n\n- better-l2-s0: not trained yet\n- base-l2-s2: out of memory\n")


def test_without_the_reference_there_are_no_differences() -> None:
    job = study()
    table = study_table(job, expand(job), [r for r in results_of(job) if r.arm != "base"], {})
    assert "Differences to" not in table
    assert lines_of(table, "## 2 labelled")["better"][3] == "0.540 ± 0.036"
    assert study_metrics(job, []) == {}
    assert "0 of 12 trials" in study_table(job, expand(job), [], {})
    assert study_csv([]) == "arm\n"


def test_one_seed_gives_no_spread_and_says_so() -> None:
    job = study(seeds=[1])
    table = study_table(job, expand(job), results_of(job), {})
    assert "One seed (1), so no spread can be given" in table
    assert lines_of(table, "## 2 labelled")["better"][3] == "0.550"
    assert lines_of(table, "Differences to `base`")["better"][0] == "+0.050 (1/1)"
    assert "±" not in table.split("##", 1)[1].replace("mean ± deviation", "")


def test_all_values_are_in_the_csv() -> None:
    job = study()
    rows = list(csv.DictReader(io.StringIO(study_csv(results_of(job)))))
    assert len(rows) == 12 * 3
    (row,) = [r for r in rows if (r["arm"], r["seed"], r["class"]) == ("better", "1", "small")]
    assert row | {"F1@0.5r": "", "F1@0.75r": "", "F4 (CZII)": "", "settings": ""} == {
        **{"arm": "better", "labels": "2", "seed": "1", "steps": "40", "wall_s": "25.0", "class": "small", "truth": "4", "picks": "2"},
        **dict.fromkeys((*MEASURES, "settings"), ""),
    }
    assert [float(row[m]) for m in MEASURES] == pytest.approx([0.275, 0.28, 0.285])
    total = [r for r in rows if r["class"] == "all"]
    assert len(total) == 12
    assert (total[0]["truth"], total[0]["picks"], float(total[0]["F1@0.5r"])) == ("14", "10", 0.4)
    assert {r["labels"] for r in rows if r["arm"] == "full"} == {"all"}


def test_the_table_says_what_was_clicked() -> None:
    """Planted: the number of the first arm for all."""
    assert "Of each class" not in study_table(study(), expand(study()), [], {})
    job = study(train={"clicks": 12, "epochs": 2}, arms=[*ARMS[:1], {"name": "known", "changes": {"clicks": 0}}], full="")
    table = study_table(job, expand(job), [], {})
    assert "Of each class 12 or all particles show in a tomogram to train or to validate on, drawn by seed." in table
    assert "the spread is of weights, clicks, crops and augmentation, not of that choice" in table
