"""Which pick belongs to which particle: tomograms by their run, positions by their class, and pairs within a distance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree

from tomoray.tomogram import Particle, Picks

Positions = NDArray[np.float64]


def pair_runs(truth: Sequence[Picks], picks: Sequence[Picks], particles: Sequence[Particle]) -> list[tuple[Picks, Picks]]:
    """Return (truth, picks) of every run of the truth, in its order; a run without picks gets empty ones.

    Picks of other runs are left out. A run whose truth is empty is scored: all its picks are false.

    Raises
    ------
    ValueError
        If the truth has no run or a position twice in one run, or a class occurs that is not among the particles.
    """
    if not truth:
        raise ValueError("scoring: the truth has no run; it must have at least one: give the curated picks of the tomograms to score")
    true_parts, picked_parts = _by_run(truth), _by_run(picks)
    pairs = []
    for run, parts in true_parts.items():
        true, picked = Picks.concatenate(run, parts), Picks.concatenate(run, picked_parts.get(run, []))
        for what, those in (("truth", true), ("picks", picked)):
            _check_names(what, those, particles)
        if len(np.unique(true.positions_zyx, axis=0)) < len(true):
            raise ValueError(f"truth of {run!r}: a position is listed twice; it must be there once: remove duplicates, and give each file once")
        pairs.append((true, picked))
    return pairs


def positions_by_class(pairs: Sequence[tuple[Picks, Picks]], particles: Sequence[Particle]) -> Iterator[tuple[int, int, Positions, Positions]]:
    """Yield row, column and the positions of truth and picks for each run and class."""
    for row, (true, picked) in enumerate(pairs):
        for column, p in enumerate(particles):
            yield row, column, true.of(p.name).positions_zyx, picked.of(p.name).positions_zyx


def match_one_to_one(truth_zyx: Positions, picks_zyx: Positions, limit_angstrom: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return indices `(m,)` into truth and picks of the most pairs within the limit (inclusive), nearest where there is a choice."""
    nothing = np.empty(0, dtype=np.intp)
    if not len(truth_zyx) or not len(picks_zyx):
        return nothing, nothing
    near = KDTree(truth_zyx).sparse_distance_matrix(KDTree(picks_zyx), limit_angstrom, output_type="ndarray")
    truths, i = np.unique(near["i"], return_inverse=True)  # only what has a partner in reach: the matrix stays small
    picks, j = np.unique(near["j"], return_inverse=True)
    gain = np.zeros((len(truths), len(picks)))
    gain[i, j] = (1 + limit_angstrom) * (1 + len(truths)) - near["v"]  # one more pair outweighs all distances together
    i, j = linear_sum_assignment(gain, maximize=True)
    paired = gain[i, j] > 0
    return truths[i[paired]], picks[j[paired]]


def found_within(truth_zyx: Positions, picks_zyx: Positions, limit_angstrom: float) -> int:
    """Return the number of particles with any pick within the limit (inclusive), as the CZII metric counts them."""
    if not len(truth_zyx) or not len(picks_zyx):
        return 0
    # columns reversed, so that squares are summed in the official order and a distance at the limit rounds alike
    hits = KDTree(picks_zyx[:, ::-1]).query_ball_tree(KDTree(truth_zyx[:, ::-1]), r=limit_angstrom)
    return len({particle for found in hits for particle in found})


def _by_run(parts: Sequence[Picks]) -> dict[str, list[Picks]]:
    runs: dict[str, list[Picks]] = defaultdict(list)
    for part in parts:
        runs[part.run].append(part)
    return runs


def _check_names(what: str, picks: Picks, particles: Sequence[Particle]) -> None:
    known = [p.name for p in particles]
    unknown = sorted(set(picks.names.tolist()) - set(known))
    if unknown:
        raise ValueError(f"{what} of {picks.run!r}: unknown class {', '.join(map(repr, unknown))}; known are {', '.join(known)}: rename or remove it")
