"""How near to each other picks may be: suppression after the fact, and its radius chosen together with the threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from tomoray.threshold_curves import OBJECTIVES, Objective
from tomoray.thresholds import Regularise, Threshold, choose_thresholds
from tomoray.tomogram import CZII_PARTICLES, Particle, Picks

RADIUS_FACTORS = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5)


@dataclass(frozen=True)
class Suppression:
    """The best way found to keep the picks of one class apart.

    Attributes
    ----------
    table
        Name of the candidates to take, of those given.
    radius_angstrom
        Of `suppress`.
    threshold
        What then is the best threshold.
    """

    table: str
    radius_angstrom: float
    threshold: Threshold

    @property
    def worth(self) -> float:
        """The objective to compare by: what is expected of other tomograms, where that was estimated."""
        return self.threshold.value if self.threshold.expected is None else self.threshold.expected


def suppress(candidates: Picks, radius_angstrom: Mapping[str, float]) -> Picks:
    """Return the candidates that have none of their class with a higher score within its radius, inclusive, in their order.

    Greedy: the highest is kept and removes those around it, then the next that is left; of equal scores the first counts as higher. Classes
    without a radius, or with 0, stay as they are. It does not matter whether thresholds are applied before or after.
    """
    keep = np.ones(len(candidates), dtype=np.bool_)
    for name, radius in radius_angstrom.items():
        mine = np.flatnonzero(candidates.names == name)
        if len(mine) < 2 or radius <= 0:
            continue
        mine = mine[np.argsort(-candidates.scores[mine], kind="stable")]
        pairs = KDTree(candidates.positions_zyx[mine]).query_pairs(radius, output_type="ndarray")  # the higher of each pair first
        stays = [True] * len(mine)
        for higher, lower in pairs[np.argsort(pairs[:, 0], kind="stable")].tolist():
            if stays[higher]:  # what could have removed it came before
                stays[lower] = False
        keep[mine] = stays
    return candidates[keep]


def choose_suppression(
    truth: Sequence[Picks],
    tables: Mapping[str, Sequence[Picks]],
    particles: Sequence[Particle] = CZII_PARTICLES,
    *,
    factors: Sequence[float] = RADIUS_FACTORS,
    objective: Objective = OBJECTIVES["f1"],
    regularise: Regularise = "none",
) -> dict[str, Suppression]:
    """Return for every class the table of candidates and the radius that with their exact threshold do best; the first of equals.

    `tables` are candidates of the same tomograms found in other ways, such as with and without sub-voxel positions. Radii are `factors` times
    that of the particle. Suppression can only remove: give candidates found in windows no wider than the least radius to try. With
    regularisation, what is expected of other tomograms decides; of the best of many even that is a little too good.

    Raises
    ------
    ValueError
        As `choose_thresholds`; or if there is nothing to choose from.
    """
    if not tables or not factors:
        raise ValueError(f"choose_suppression: {len(tables)} tables and {len(factors)} factors; there must be at least one of each: give them")
    best: dict[str, Suppression] = {}
    for table, candidates in tables.items():
        for factor in factors:
            radii = {p.name: factor * p.radius_angstrom for p in particles}
            apart = [suppress(picks, radii) for picks in candidates]
            for name, threshold in choose_thresholds(truth, apart, particles, objective=objective, regularise=regularise).items():
                option = Suppression(table, radii[name], threshold)
                if name not in best or option.worth > best[name].worth:
                    best[name] = option
    return best
