"""Thresholds for candidates that were found before: chosen on labelled tomograms, and judged on those that they were not chosen on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tomoray.catalogue import CatalogueRow, read_row_picks
from tomoray.checkpoint import Card
from tomoray.config import ConfigError
from tomoray.ensemble import ensemble_card
from tomoray.formats.candidates import read_candidates
from tomoray.jobs import ThresholdJob
from tomoray.results import committed, table_uri
from tomoray.scoring import Score, czii_score, f1_score
from tomoray.thresholds import Regularise, Threshold, apply_thresholds, choose_thresholds
from tomoray.tomogram import Particle, Picks

METRICS: Mapping[str, Callable[[Sequence[Picks], Sequence[Picks], Sequence[Particle]], Score]] = {"f1": f1_score, "czii": czii_score}
FOLDS = 10  # thresholds are chosen at most so often; with fewer tomograms once without each


def card_of(job: ThresholdJob, folder: str) -> Card:
    """Return how to use the checkpoints that a job names, or else those that the tables of a folder do."""
    if job.checkpoint:
        return ensemble_card(job.checkpoints)
    named = read_candidates(table_uri(folder, min(committed(folder))))[1]["checkpoint"]
    return ensemble_card((named,) if isinstance(named, str) else tuple(named))


def thresholds_for(card: Card, chosen: Mapping[str, Threshold]) -> dict[str, float]:
    """Return class -> threshold: the chosen one, or where the tomograms did not decide the card's, if it has one."""
    return {name: card.thresholds.get(name, choice.threshold) if choice.is_default else choice.threshold for name, choice in chosen.items()}


def choose_on(job: ThresholdJob, card: Card, folder: str, rows: Sequence[CatalogueRow]) -> tuple[Card, dict[str, float]]:
    """Return a card with the thresholds that a job chooses on some labelled tomograms, and class -> F to expect on others, where estimated."""
    truth, candidates = truth_and_candidates(folder, rows, card.particles)
    chosen = choose_thresholds(truth, candidates, card.particles, objective=job.objective, regularise=job.regularise)
    expected = {name: choice.expected for name, choice in chosen.items() if choice.expected is not None}
    return replace(card, thresholds=thresholds_for(card, chosen)), expected


def truth_and_candidates(folder: str, rows: Sequence[CatalogueRow], particles: Sequence[Particle]) -> tuple[list[Picks], list[Picks]]:
    """Return what is known of some labelled tomograms, of these classes, and what tables of a folder hold of them.

    Raises
    ------
    ConfigError
        If a tomogram has no table.
    """
    done = committed(folder)
    if missing := [row.tomogram_id for row in rows if row.tomogram_id not in done]:
        named = ", ".join(missing[:5])
        raise ConfigError(f"{folder}: no candidates of {named}, to choose thresholds on; pick these tomograms too, or give other splits")
    truth = [read_row_picks(row) for row in rows]
    names = [p.name for p in particles]
    return [picks[np.isin(picks.names, names)] for picks in truth], [read_candidates(table_uri(folder, row.tomogram_id))[0] for row in rows]


def held_out_score(
    truth: Sequence[Picks],
    candidates: Sequence[Picks],
    particles: Sequence[Particle],
    *,
    metric: str = "f1",
    objective: str = "f1",
    regularise: Regularise = "none",
) -> Score:
    """Return the score of tomograms whose picks follow from thresholds that were chosen on the others.

    What thresholds reach on the tomograms they were chosen on always speaks for the way to choose that fits these best; this does not. Of a
    single tomogram there are no others: its own thresholds count.

    Raises
    ------
    ValueError
        As `choose_thresholds`.
    """
    by_run = {picks.run: picks for picks in candidates}
    folds = min(FOLDS, len(truth))
    picks: list[Picks] = []
    for fold in range(folds):
        held_out, others = truth[fold::folds], [true for place, true in enumerate(truth) if place % folds != fold or folds == 1]
        chosen = choose_thresholds(others, candidates, particles, objective=objective, regularise=regularise)
        values = {name: choice.threshold for name, choice in chosen.items()}
        picks += [apply_thresholds(by_run[true.run], values) for true in held_out if true.run in by_run]
    return METRICS[metric](truth, picks, particles)
