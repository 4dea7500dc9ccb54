"""Thresholds judged where they were not chosen, and `tomoray threshold` that chooses them."""

from pathlib import Path

import numpy as np
import pytest

from tomoray import commands
from tomoray.catalogue import CatalogueRow, read_row_picks, write_catalogue
from tomoray.checkpoint import Card, save_checkpoint
from tomoray.config import ConfigError
from tomoray.formats.candidates import encode_candidates
from tomoray.formats.czii import read_czii_csv, write_czii_csv
from tomoray.held_out import held_out_score, thresholds_for, truth_and_candidates
from tomoray.jobs import ThresholdJob
from tomoray.scoring import czii_score, f1_score
from tomoray.thresholds import Threshold, apply_thresholds, choose_thresholds
from tomoray.tomogram import Particle, Picks

PARTICLES = (Particle("a", 50.0), Particle("b", 80.0))
RUNS = ("TS_1", "TS_2", "TS_3", "TS_4")


def noisy(run: str, seed: int, shift: float = 0.0) -> tuple[Picks, Picks]:
    """Truth far apart, and candidates of which those near a truth score higher on the whole; `shift` moves all scores."""
    rng = np.random.default_rng(seed)
    positions, names = 200.0 * np.argwhere(np.ones((3, 3, 4))), np.array(["a", "b"])[np.arange(36) % 2]
    truth = Picks(run, positions + 500.0, names)
    wrong = Picks(run, positions + 600.0, names, np.clip(rng.normal(0.35, 0.15, 36) + shift, 0, 1))
    right = Picks(run, truth.positions_zyx, names, np.clip(rng.normal(0.55, 0.15, 36) + shift, 0, 1))
    return truth, Picks.concatenate(run, [right, wrong])


def data(shifts: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)) -> tuple[list[Picks], list[Picks]]:
    pairs = [noisy(run, seed, shift) for seed, (run, shift) in enumerate(zip(RUNS, shifts, strict=False))]
    return [truth for truth, _ in pairs], [candidates for _, candidates in pairs]


@pytest.mark.parametrize("metric", ["f1", "czii"])
def test_each_tomogram_is_picked_with_the_thresholds_of_the_others(metric: str) -> None:
    truth, candidates = data()
    picks = []
    for k, mine in enumerate(candidates):
        others = [true for place, true in enumerate(truth) if place != k]
        chosen = choose_thresholds(others, [c for place, c in enumerate(candidates) if place != k], PARTICLES, objective=metric)
        picks.append(apply_thresholds(mine, {name: choice.threshold for name, choice in chosen.items()}))
    wanted = (f1_score if metric == "f1" else czii_score)(truth, picks, PARTICLES)
    found = held_out_score(truth, candidates, PARTICLES, metric=metric, objective=metric)
    assert found.value == pytest.approx(wanted.value, abs=1e-12)


def test_held_out_tomograms_score_no_better_than_those_that_thresholds_fit() -> None:
    """Scores of one tomogram are shifted, so that the others' threshold does not suit it. Planted: its own threshold used for it."""
    truth, candidates = data((0.0, 0.0, 0.0, 0.3))
    chosen = choose_thresholds(truth, candidates, PARTICLES)
    fitted = f1_score(truth, [apply_thresholds(c, {name: t.threshold for name, t in chosen.items()}) for c in candidates], PARTICLES)
    assert held_out_score(truth, candidates, PARTICLES).value < fitted.value - 0.01


def test_many_tomograms_are_held_out_in_ten_turns() -> None:
    """Planted: tomograms of the last turn forgotten."""
    pairs = [noisy(f"TS_{seed}", seed) for seed in range(23)]
    score = held_out_score([truth for truth, _ in pairs], [candidates for _, candidates in pairs], PARTICLES)
    assert score.runs == tuple(f"TS_{seed}" for seed in range(23))
    assert sum(c.truths for c in score.classes) == 23 * 36
    assert all(c.recall > 0.5 for c in score.classes)


def test_a_single_tomogram_counts_with_its_own_thresholds() -> None:
    truth, candidates = data()
    chosen = choose_thresholds(truth[:1], candidates[:1], PARTICLES)
    wanted = f1_score(truth[:1], [apply_thresholds(candidates[0], {name: t.threshold for name, t in chosen.items()})], PARTICLES)
    assert held_out_score(truth[:1], candidates[:1], PARTICLES).value == wanted.value


def test_where_tomograms_do_not_decide_the_cards_threshold_stays() -> None:
    card = Card(PARTICLES, 10.0, "dark", {}, thresholds={"a": 0.3})
    undecided = Threshold(0.5, float("nan"), 0, 3, "no truth")
    assert thresholds_for(card, {"a": undecided, "b": undecided}) == {"a": 0.3, "b": 0.5}
    assert thresholds_for(card, {"a": Threshold(0.7, 0.9, 3, 3)}) == {"a": 0.7}


@pytest.fixture
def picked(tmp_path: Path) -> tuple[Path, str]:
    """A folder with tables of four tomograms, and a catalogue that knows the truth of all."""
    truth, candidates = data()
    network = {"name": "asymmetric_unet", "width": 2, "blocks": [1]}
    card = Card(PARTICLES, 10.0, "dark", network, thresholds={"a": 0.9, "b": 0.9})
    (tmp_path / "picker").mkdir()
    save_checkpoint(tmp_path / "picker", card, card.build())
    folder = tmp_path / "candidates" / "abc"
    folder.mkdir(parents=True)
    rows = []
    for true, found in zip(truth, candidates, strict=True):
        (folder / f"{true.run}.parquet").write_bytes(encode_candidates(found, {"checkpoint": str(tmp_path / "picker"), "floor": 0.02}))
        uri = tmp_path / f"{true.run}.csv"
        write_czii_csv(uri, [true])
        rows.append(row(true.run, str(uri)))
    write_catalogue(tmp_path / "catalogue.parquet", rows)
    return tmp_path, str(tmp_path / "catalogue.parquet")


def row(run: str, picks: str) -> CatalogueRow:
    split = "test" if run == "TS_4" else "validation"
    return CatalogueRow(
        run, run, "x.mrc", (160,) * 3, "float32", 10.0, 0.0, 1.0, -4.0, 4.0, "dark", split=split, picks_uri=picks, particles={"a": 18}
    )


def test_truth_is_that_of_the_rows_and_of_the_classes(picked: tuple[Path, str]) -> None:
    folder, _ = picked
    rows = [row(run, str(folder / f"{run}.csv")) for run in RUNS]
    truth, candidates = truth_and_candidates(str(folder / "candidates" / "abc"), rows, PARTICLES[:1])
    assert [set(picks.names.tolist()) for picks in truth] == [{"a"}] * 4
    assert [picks.run for picks in candidates] == list(RUNS)
    assert len(read_row_picks(rows[0])) == 36
    with pytest.raises(ConfigError, match=r"no candidates of TS_9, to choose thresholds on; pick these tomograms too, or give other splits"):
        truth_and_candidates(str(folder / "candidates" / "abc"), [row("TS_9", "x")], PARTICLES)


def test_threshold_chooses_on_the_labelled_tomograms_of_a_catalogue(picked: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Planted: thresholds of the card used all the same; tomograms of other splits used to choose."""
    folder, catalogue = picked
    job = ThresholdJob(candidates=str(folder / "candidates"), output=str(folder / "out"), copick=False)
    assert commands.threshold(job) == 0
    before = sum(map(len, read_czii_csv(folder / "out" / "picks.csv")))
    chosen = job.model_copy(update={"catalogue": catalogue, "regularise": "leave_one_out"})
    assert commands.threshold(chosen) == 0
    said = capsys.readouterr().out
    assert "thresholds chosen on 3 tomograms; to expect on others: a 0." in said
    after = read_czii_csv(folder / "out" / "picks.csv")
    truth, candidates = data()
    wanted = choose_thresholds(truth[:3], candidates[:3], PARTICLES, regularise="leave_one_out")
    values = {name: choice.threshold for name, choice in wanted.items()}
    assert sum(map(len, after)) == sum(len(apply_thresholds(c, values)) for c in candidates) > before
    assert commands.threshold(chosen.model_copy(update={"thresholds": {"a": 1.0, "b": 1.0}})) == 0, "given ones count all the same"
    assert sum(map(len, read_czii_csv(folder / "out" / "picks.csv"))) < before
