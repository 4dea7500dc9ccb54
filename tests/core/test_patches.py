"""Crops: inside the volume, around particles of every class, and the particles that go with them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoray.patches import cut, draw_corners, grid_corners, grid_walk, points_near

PATCH = 32


def contains(corner, points, patch_vox=PATCH):
    """Which particles lie in the cube at a corner."""
    return ((points[:, 1:] >= corner) & (points[:, 1:] < corner + patch_vox)).all(axis=1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=st.tuples(*[st.integers(2, 90)] * 3), count=st.integers(0, 5), fraction=st.floats(0, 1))
def test_cubes_lie_inside_wherever_there_is_room(seed, shape, count, fraction):
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.integers(0, 3, count), rng.uniform(0, shape, (count, 3))])
    corners = draw_corners(rng, shape, PATCH, points, 20, centred_fraction=fraction)
    assert corners.shape == (20, 3)
    assert (corners >= 0).all()
    assert (corners <= np.maximum(np.array(shape) - PATCH, 0)).all()


def test_centred_cubes_hold_a_particle_near_their_middle() -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.integers(0, 3, 30), rng.uniform(PATCH, 200 - PATCH, (30, 3))])
    corners = draw_corners(rng, (200, 200, 200), PATCH, points, 200, centred_fraction=1.0)
    off_middle = np.abs(corners[:, None] + PATCH / 2 - points[:, 1:]).max(axis=2).min(axis=1)  # of the particle nearest to it
    assert off_middle.max() <= PATCH / 4 + 1
    assert off_middle.max() > PATCH / 8  # moved about, not always in the middle
    assert len(np.unique(corners, axis=0)) > 190


def test_particles_at_the_border_are_held_too() -> None:
    corners = draw_corners(np.random.default_rng(0), (64, 64, 64), PATCH, np.array([[0, 0.5, 63.5, 30.0]]), 50, centred_fraction=1.0)
    assert all(contains(corner, np.array([[0, 0.5, 63.5, 30.0]])).all() for corner in corners)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.8])
def test_the_share_of_centred_cubes_is_as_asked(fraction: float) -> None:
    """One particle in a large volume: a cube that lies anywhere meets it once in a thousand."""
    point = np.array([[0, 200.0, 200.0, 200.0]])
    corners = draw_corners(np.random.default_rng(0), (400, 400, 400), PATCH, point, 2000, centred_fraction=fraction)
    assert np.mean([contains(corner, point)[0] for corner in corners]) == pytest.approx(fraction, abs=0.035)


def test_rare_classes_are_seen_as_often_as_common_ones() -> None:
    """Planted: a particle drawn before its class."""
    rng = np.random.default_rng(0)
    common = np.column_stack([np.ones(99), rng.uniform(50, 250, (99, 2)), rng.uniform(50, 150, 99)])
    points = np.vstack([common, [[4, 150.0, 150.0, 250.0]]])
    corners = draw_corners(rng, (300, 300, 300), PATCH, points, 1000, centred_fraction=1.0)
    assert np.mean([contains(corner, points)[-1] for corner in corners]) == pytest.approx(0.5, abs=0.05)


def test_without_particles_cubes_lie_anywhere() -> None:
    corners = draw_corners(np.random.default_rng(0), (40, 64, 32), PATCH, np.empty((0, 4)), 500)
    assert corners.min(axis=0).tolist() == [0, 0, 0]
    assert corners.max(axis=0).tolist() == [8, 32, 0]


def test_what_is_cut_is_what_lies_there() -> None:
    volume = np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8) + 1
    np.testing.assert_array_equal(cut(volume, (1, 2, 3), 4), volume[1:5, 2:6, 3:7])
    piece = cut(volume, (3, 4, 6), 4)
    np.testing.assert_array_equal(piece[:3, :3, :2], volume[3:, 4:, 6:])
    assert piece.sum() == volume[3:, 4:, 6:].sum()
    small = cut(volume, (0, 0, 0), 10)
    assert small.shape == (10, 10, 10)
    assert small.dtype == np.float32
    np.testing.assert_array_equal(small[:6, :7, :8], volume)
    assert small.sum() == volume.sum()


def test_particles_are_counted_from_the_corner_and_kept_within_the_halo() -> None:
    points = np.array([[2, 10.5, 20.5, 30.5], [1, 2.0, 12.0, 22.0], [0, 1.9, 20, 30], [3, 37.9, 20, 30], [4, 38.0, 20, 30]])
    near = points_near(points, np.array([10, 20, 30]), 20, halo_vox=8)
    assert near.tolist() == [[2, 0.5, 0.5, 0.5], [1, -8, -8, -8], [3, pytest.approx(27.9), 0, 0]]
    assert points_near(np.empty((0, 4)), np.array([0, 0, 0]), 20, halo_vox=8).shape == (0, 4)


def test_a_marked_voxel_is_found_where_its_particle_is_said_to_be() -> None:
    rng = np.random.default_rng(0)
    volume = np.zeros((40, 50, 60), dtype=np.float32)
    points = np.column_stack([np.zeros(6), rng.uniform(0, volume.shape, (6, 3))])
    volume[tuple(points[:, 1:].astype(int).T)] = 1
    for corner in draw_corners(rng, volume.shape, 16, points, 20, centred_fraction=1.0):
        inside = points_near(points, corner, 16, halo_vox=0)
        crop = cut(volume, corner, 16)
        assert len(inside) == crop.sum() > 0
        assert (crop[tuple(inside[:, 1:].astype(int).T)] == 1).all()


def test_visits_walk_through_the_grid_again_and_again() -> None:
    """Planted: each visit with an order of its own, so that some cubes come twice before others come once; the same order in every pass."""
    shape, patch, seed = (20, 25, 10), 10, (7, 1)
    grid = {tuple(corner) for corner in grid_corners(shape, patch).tolist()}
    count = 5
    assert len(grid) == 6
    walked = [tuple(corner) for visit in range(6) for corner in grid_walk(shape, patch, visit, count, seed).tolist()]
    passes = [walked[i : i + len(grid)] for i in range(0, len(walked), len(grid))]
    assert all(set(one) == grid for one in passes)
    assert len(set(map(tuple, passes))) > 1
    assert [tuple(c) for c in grid_walk(shape, patch, 3, count, seed).tolist()] == walked[15:20], "a visit depends on no other"
    assert len(grid_walk(shape, patch, 0, 15, seed)) == 15, "a visit may see more cubes than there are"
