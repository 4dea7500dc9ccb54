"""Teacher-student co-training of heat maps on labelled and unlabelled crops.

Paper: Lin et al. 2025, SemiETPicker, arXiv 2510.22454. With one view and no DropBlock it is Mean Teacher (Tarvainen & Valpola 2017).
Adds: pseudo-labels averaged over mirrored views, and a DropBlock that hides parts of particles instead of whole ones.
Needs: a few labelled tomograms, many unlabelled ones, and a network that supervised burn-in has brought to a start.
Departs: the paper gives no rates, weights or ramps; ours are stated below. `pseudo_mode` offers two cures for faint pseudo-labels.
Tests: EMA, views, DropBlock and ramp by their formulas; unlabelled data moves the picker; the teacher is no copy and stays in eval mode.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tomoray.augment import drop_blocks, random_flips_and_turns, random_intensity
from tomoray.losses import sigmoid_ramp
from tomoray.methods.base import Batch, FromLabels, Method, Metrics
from tomoray.networks import Picker
from tomoray.peaks import find_peaks, window_widths
from tomoray.targets import pad_particles
from tomoray.tomogram import Particle
from tomoray.views import check_views, mean_of_views

PseudoMode = Literal["auto", "soft", "floor", "peaks"]

DEFAULT_PEAK_THRESHOLD = 0.3  # of pseudo_mode "peaks" for a class without a threshold from burn-in


class SemiETPicker(Method):
    """Learn from labelled crops, and from what a slowly moving teacher says of unlabelled ones.

    Parameters
    ----------
    supervised
        The student: a method for the labelled crops, which can also compare a student with a teacher.
    particles, voxel_angstrom
        The classes, and the voxel size of the crops.
    views
        Mirrored views (1, 4 or 8) that the teacher's pseudo-label is averaged over; 4 is the paper's.
    drop_probability
        Seed probability of `augment.drop_blocks` on the student's unlabelled crops; 0.0131 drops 30 %. 0 turns it off.
    consistency_weight, ramp_fraction
        Weight of the unlabelled term, and the share of training over which it rises to that along a sigmoid.
    ema_rate
        Share of the student that enters the teacher at every step (alpha). The paper writes Mean Teacher's formula with the roles swapped;
        read literally with the usual 0.999 the teacher would be a copy of the student, so it is 0.001.
    pseudo_mode
        `soft` takes the teacher's map as it is (the paper). Since a map is also the weight of its own loss, faint haze can outweigh all
        particles: `floor` sets values under `pseudo_floor` to 0, and `peaks` keeps peaks above each class's threshold and draws targets there.
        `auto` is `soft` for heat maps, and `floor` where classes share one unit with the background, which then takes what was haze.
    peak_thresholds
        Class -> threshold for `peaks`; those of burn-in's card.
    """

    streams: ClassVar[tuple[str, ...]] = ("labelled", "unlabelled")

    def __init__(
        self,
        supervised: FromLabels,
        particles: Sequence[Particle],
        voxel_angstrom: float,
        *,
        views: int = 4,
        drop_probability: float = 0.0131,
        consistency_weight: float = 1.0,
        ramp_fraction: float = 0.2,
        ema_rate: float = 0.001,
        pseudo_mode: PseudoMode = "auto",
        pseudo_floor: float = 0.1,
        peak_thresholds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_views(views)
        self.supervised = supervised
        self.finder = supervised.finder
        self.teacher = copy.deepcopy(supervised.network).requires_grad_(False).eval()
        self.views = views
        self.drop_probability = drop_probability
        self.consistency_weight = consistency_weight
        self.ramp_fraction = ramp_fraction
        self.ema_rate = ema_rate
        default: PseudoMode = "floor" if supervised.activation == "softmax" else "soft"
        self.pseudo_mode = default if pseudo_mode == "auto" else pseudo_mode
        self.pseudo_floor = pseudo_floor
        self.peak_widths = window_widths(particles, voxel_angstrom, supervised.stride)
        known = peak_thresholds or {}
        self.peak_thresholds = [known.get(p.name, DEFAULT_PEAK_THRESHOLD) for p in particles]

    def train(self, mode: bool = True) -> SemiETPicker:
        """Set the mode of everything but the teacher, which always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, Metrics]:
        """Return the supervised loss plus the ramped consistency loss."""
        supervised, metrics = self.supervised(batch, progress)
        volume = batch["unlabelled"]["volume"]
        pseudo = self.pseudo_label(volume)
        seen, wanted = random_flips_and_turns(volume, pseudo)
        seen = drop_blocks(random_intensity(seen, strength=self.supervised.intensity_strength), self.drop_probability)
        consistency = self.supervised.consistency(self.supervised.network(seen), wanted)
        weight = self.consistency_weight * sigmoid_ramp(progress, self.ramp_fraction)
        metrics |= {
            "consistency_loss": consistency.detach(),
            "consistency_weight": consistency.new_tensor(weight),
            "pseudo_mass": pseudo.mean(),
            "pseudo_top": pseudo.amax(),
        }
        return supervised + weight * consistency, metrics

    @torch.no_grad()
    def pseudo_label(self, volume: Tensor) -> Tensor:
        """Return what the teacher says of unlabelled crops: maps like a target's, from the mean over mirrored views."""
        scores = mean_of_views(self.picker(), volume, self.views)
        if self.pseudo_mode == "soft":
            return scores
        if self.pseudo_mode == "floor":
            return torch.where(scores < self.pseudo_floor, 0.0, scores)
        thresholds = torch.tensor(self.peak_thresholds)
        points = []
        for maps in scores:
            peaks = find_peaks(maps, self.peak_widths, floor=min(self.peak_thresholds))
            sure = peaks.scores >= thresholds[peaks.labels]
            points.append(torch.cat([peaks.labels[sure, None], peaks.positions_vox(self.supervised.stride)[sure]], dim=1))
        return self.supervised.target(pad_particles(points).to(volume), volume.shape[2:])

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student: weights and batch statistics alike, counters copied."""
        student = self.supervised.network.state_dict()
        for name, value in self.teacher.state_dict().items():
            if value.is_floating_point():
                value.lerp_(student[name], self.ema_rate)
            else:
                value.copy_(student[name])

    def picker(self) -> Picker:
        """Return the teacher, as a picker."""
        return Picker(self.teacher, self.supervised.activation)
