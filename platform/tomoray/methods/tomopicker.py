"""Positive-unlabelled learning: about a hundred clicks, and roughly how many particles there are.

Paper: Uddin et al. 2024, TomoPicker, bioRxiv 2024.11.04.620735, and its code; GE-binomial from Topaz, Bepler et al. 2019.
Adds: what is not marked may be a particle: risks that reckon with the share of cells that particles must cover.
Needs: some marked particles of each class, crops from anywhere (`layout = "grid"`), the number of particles in a tomogram; `resunet`.
Departs: one risk per class; balls around cells, so that stride 2 will do too.
Tests: the risks' analytic values and the clip, shares by counting, agreement as the least of `consistency`, a falling loss on a toy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tomoray.methods.base import Batch, FromLabels, Metrics
from tomoray.peaks import Finder
from tomoray.risks import Direction, gamma_of, ge_binomial_risk, kl_risk, pn_risk, pu_risk
from tomoray.targets import ball_masks, ball_radii, covered_share
from tomoray.tomogram import Particle

log = logging.getLogger(__name__)

Risk = Literal["kl", "pu", "pn", "ge_binomial"]

MARKED_WEIGHT = {"pn": 10.0, "pu": 1.0, "kl": 100.0, "ge_binomial": 100.0}  # of a marked cell in the authors' code; none there for the last
PAPER_WEIGHT = 10.0  # of all risks in the paper, whose batch size must mean voxels


class TomoPicker(FromLabels):
    """Learn from labelled crops in which only some of the particles are marked.

    Parameters
    ----------
    network
        Maps a volume to logits, one channel per class.
    particles, voxel_angstrom
        The classes, in the order of the network's channels, and the voxel size of the crops.
    expected_particles
        Class -> roughly how many lie in one tomogram, marked or not. Of a class that is missing here, or of which as many are marked,
        what is not marked counts as background.
    risk
        See `tomoray.risks`.
    gamma, pi_mode, kl_direction
        Where code and paper differ. `gamma`: what marked cells weigh, 10 (PN), 1 (PU) and 100 (KL) times others in the code, 10 in the paper,
        or all of them together as much as Kiryo et al. have it (`one`), where PU's clip is active. `pi_mode`: PN's prior is the expected
        share of cells, as in the code, or the observed one, as in the paper. `kl_direction`: see `risks.kl_risk`.
    prior_from
        Share of cells that particles cover: their number times the cells of a ball (`sum`), or what is covered once where balls lie
        independently of each other and overlap (`union`).
    radius_fraction
        Radius of the balls in radii of the particle.
    finder
        How scores become picks. `greedy` is the authors'. Where scores are as high all over a particle, its first pick may lie off the
        middle and leave room for a second on the other side; `peaks`, which compares each cell with a window, has no second there.
    flips_and_turns, intensity_strength
        Augmentation; the authors use none.
    tomogram_vox, labelled_particles
        Voxels of one tomogram, and class -> how many are marked in one; the training loop knows them from the catalogue.

    Raises
    ------
    ValueError
        If particles are expected without the size of a tomogram, or more than it has room for.
    """

    finder: Finder = "greedy"  # unless told otherwise

    def __init__(
        self,
        network: nn.Module,
        particles: Sequence[Particle],
        voxel_angstrom: float,
        *,
        expected_particles: Mapping[str, float] | None = None,
        risk: Risk = "kl",
        gamma: Literal["code", "paper", "one"] = "code",
        pi_mode: Literal["expected", "observed"] = "expected",
        kl_direction: Direction = "code",
        prior_from: Literal["sum", "union"] = "sum",
        radius_fraction: float = 1.0,
        finder: Finder = "greedy",
        flips_and_turns: bool = False,
        intensity_strength: float = 0.0,
        tomogram_vox: float = 0.0,
        labelled_particles: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(network, particles, voxel_angstrom, intensity_strength=intensity_strength)
        self.risk: Risk = risk
        self.gamma = gamma
        self.pi_mode = pi_mode
        self.kl_direction: Direction = kl_direction
        self.finder = finder
        self.flips_and_turns = flips_and_turns
        self.radii = ball_radii(particles, voxel_angstrom, self.stride, radius_fraction=radius_fraction)
        self.expected, self.observed = (
            [self._share(numbers, p.name, radius, tomogram_vox, union=prior_from == "union") for p, radius in zip(particles, self.radii, strict=True)]
            for numbers in (expected_particles or {}, labelled_particles or {})
        )
        for particle, expected, observed in zip(particles, self.expected, self.observed, strict=True):
            if expected <= observed:
                log.warning("%s: no more particles are expected than are marked; what is not marked counts as background", particle.name)

    def _share(self, numbers: Mapping[str, float], name: str, radius: float, tomogram_vox: float, *, union: bool) -> float:
        number = numbers.get(name, 0.0)
        if not number:
            return 0.0
        if not tomogram_vox > 0:
            raise ValueError(f"{name}: {number:g} particles in a tomogram of {tomogram_vox:g} voxels; give tomogram_vox, the voxels of one tomogram")
        share = covered_share(number, radius, tomogram_vox / self.stride**3, union=union)
        if share >= 1:
            raise ValueError(
                f"{name}: {number:g} particles cover {share:.3g} times the {tomogram_vox:g} voxels of a tomogram; they must leave some of it: "
                "expect fewer, correct the radius, or choose a smaller radius_fraction"
            )
        return share

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        """Return the mean of the classes' risks over the labelled crops.

        `clipped` is the share of classes for which PU's clip is active, `unlabelled_share` the mean score where nothing is marked.
        """
        volume, particles = batch["labelled"]["volume"], batch["labelled"]["particles"]
        volume, target = self.augment(volume, self.target(particles, volume.shape[2:]))
        logits = self.network(volume).float()
        loss, clipped = self.risks(logits, target)
        unlabelled = logits.detach().sigmoid()[target == 0].mean()
        return loss, {"supervised_loss": loss.detach(), "clipped": clipped, "unlabelled_share": unlabelled}

    def augment(self, volume: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return crops and targets as they are, unless augmentation is asked for."""
        return super().augment(volume, target) if self.flips_and_turns or self.intensity_strength else (volume, target)

    def target(self, particles: Tensor, shape: Sequence[int]) -> Tensor:
        """Return which cells are marked: `(b, classes, d / stride, ...)`, 1 in the balls of particles `(b, n, 4)` and 0 elsewhere."""
        return ball_masks(particles, self.radii, shape, stride=self.stride)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean of the classes' risks."""
        return self.risks(logits, target)[0]

    def consistency(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Return the cross-entropy of a student's scores and a teacher's, in which every cell weighs the same.

        A risk would take what a teacher is unsure of for unmarked, and raise or lower all of it together.
        """
        return F.binary_cross_entropy_with_logits(logits.float(), scores)

    def risks(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of the classes' risks, and the share of classes whose clip is active."""
        classes = zip(logits.float().unbind(1), target.unbind(1), self.expected, self.observed, strict=True)
        risks, clipped = zip(*(self._risk_of_class(*of_class) for of_class in classes), strict=True)
        return torch.stack(risks).mean(), torch.stack(clipped).float().mean()

    def _risk_of_class(self, logits: Tensor, target: Tensor, expected: float, observed: float) -> tuple[Tensor, Tensor]:
        no_clip = torch.zeros((), dtype=torch.bool, device=logits.device)
        if self.risk == "pn" or expected <= observed:
            use_expected = self.pi_mode == "expected" and expected > observed
            prior = expected if use_expected else observed or target.mean()  # the batch's own where nobody counted
            return pn_risk(logits, target, prior, gamma=self._gamma("pn", target)), no_clip
        gamma = self._gamma(self.risk, target)
        if self.risk == "pu":
            return pu_risk(logits, target, expected, gamma=gamma)
        hidden = expected - observed  # what particles cover of the unmarked cells, all but exactly
        if self.risk == "kl":
            return kl_risk(logits, target, hidden, gamma=gamma, direction=self.kl_direction), no_clip
        return ge_binomial_risk(logits, target, hidden, gamma=gamma), no_clip

    def _gamma(self, risk: Risk, target: Tensor) -> float | Tensor:
        if self.gamma == "one":
            return 1.0
        return gamma_of(target, MARKED_WEIGHT[risk] if self.gamma == "code" else PAPER_WEIGHT)
