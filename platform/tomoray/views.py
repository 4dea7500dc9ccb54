"""Mirrored views of a volume: what a network says of each, mirrored back and averaged."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from torch import Tensor

FLIPS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((),),
    4: ((), (2,), (3,), (4,)),  # SemiETPicker's: as it is, and mirrored along one axis each
    8: tuple(tuple(axis for axis, on in zip((2, 3, 4), bits, strict=True) if on) for bits in product((False, True), repeat=3)),
}
"""Axes of `(b, c, d, h, w)` to mirror, for each number of views. Only the eight form a group, so only their mean is equivariant."""


def mean_of_views(network: Callable[[Tensor], Tensor], volume: Tensor, views: int) -> Tensor:
    """Return the mean over mirrored views of `unmirror(network(mirror(volume)))`, float32. Sizes must be multiples of the stride."""
    total: Tensor | None = None
    for axes in FLIPS[views]:
        scores = network(volume.flip(axes)).float().flip(axes)
        total = scores if total is None else total + scores
    assert total is not None
    return total / len(FLIPS[views])


def check_views(views: int) -> None:
    """Raise ValueError unless there are views of that number."""
    if views not in FLIPS:
        raise ValueError(f"views {views}: it must be one of {', '.join(map(str, FLIPS))}")
