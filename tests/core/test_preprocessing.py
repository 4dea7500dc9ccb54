"""Preprocessing: mean 0 and deviation 1 at any scale, particles that stay where they are, and volumes that cannot be used."""

import logging

import numpy as np
import pytest

from tomoray.preprocessing import as_half, prepare, resample, z_score
from tomoray.tomogram import FormatError, Tomogram

NOISE = np.random.default_rng(0).normal(size=(12, 14, 16))


def tomogram(values, voxel: float = 10.0) -> Tomogram:
    return Tomogram("TS_1", values, (voxel,) * 3, uri="folder/TS_1.mrc")


@pytest.mark.parametrize(
    "values",
    [
        (NOISE * 1e-5 + 3e-6).astype(np.float32),  # CZII
        (NOISE * 1e-5).astype(np.float16),
        (NOISE * 20 + 128).clip(0, 255).astype(np.uint8),
        (NOISE * 3000).astype(np.int16),
        NOISE * 1e-5 + 1.0,
        (NOISE * 5e6).astype(np.int32),
    ],
    ids=["float32", "float16", "uint8", "int16", "float64", "int32"],
)
def test_any_scale_becomes_mean_0_and_deviation_1(values) -> None:
    before = values.copy()
    scored = z_score(values)
    assert scored.dtype == np.float32
    assert scored.mean(dtype=np.float64) == pytest.approx(0, abs=1e-4)
    assert scored.std(dtype=np.float64) == pytest.approx(1, abs=1e-4)
    expected = (values.astype(np.float64) - values.mean(dtype=np.float64)) / values.std(dtype=np.float64)
    np.testing.assert_allclose(scored, expected, atol=1e-3)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf], [np.nan, np.inf, 1.0]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_values_that_are_not_finite_are_counted_and_refused(bad, dtype) -> None:
    values = NOISE.astype(dtype)
    values.flat[: len(bad)] = bad
    count = int((~np.isfinite(values)).sum())
    with pytest.raises(FormatError, match=rf"^folder/TS_1.mrc: {count} of 2688 values are NaN or infinite; all must be finite: reconstruct it again"):
        prepare(tomogram(values), contrast="dark", to_voxel_angstrom=10.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [0, 0.1, 117])
@pytest.mark.parametrize("shape", [(10, 10, 10), (7, 9, 11)])
def test_constant_volumes_are_refused(dtype, value, shape) -> None:
    """The mean of many equal numbers is not quite that number, and a deviation of 1e-17 is none."""
    with pytest.raises(FormatError, match=r"^folder/TS_1.mrc: all values are .*; a tomogram must vary: check the file"):
        prepare(tomogram(np.full(shape, value, dtype=dtype)), contrast="dark", to_voxel_angstrom=10.0)


def test_voxels_that_are_no_cubes_are_refused() -> None:
    flat = Tomogram("TS_1", NOISE, (10.0, 10.0, 12.0))
    with pytest.raises(FormatError, match="not cubes; pickers need cubic voxels: resample"):
        prepare(flat, contrast="dark", to_voxel_angstrom=10.0)


def test_equal_voxels_are_left_alone_and_keep_their_own_size() -> None:
    source = Tomogram("TS_1", NOISE, (10.0, 10.001, 10.002))
    volume, voxel = prepare(source, contrast="dark", to_voxel_angstrom=10.09)
    np.testing.assert_allclose(volume, z_score(NOISE))
    assert voxel == (10.0, 10.001, 10.002)


def test_contrast_is_inverted_where_it_differs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tomoray")
    dark, _ = prepare(tomogram(NOISE), contrast="dark", to_voxel_angstrom=10.0)
    assert caplog.messages == []
    bright, _ = prepare(tomogram(NOISE), contrast="bright", to_voxel_angstrom=10.0)
    np.testing.assert_array_equal(bright, -dark)
    assert caplog.messages == ["TS_1: particles are bright, the picker expects dark: inverted"]
    same, _ = prepare(tomogram(NOISE), contrast="bright", to_voxel_angstrom=10.0, to_contrast="bright")
    np.testing.assert_array_equal(same, dark)


@pytest.mark.parametrize("voxel", [4.99, 13.48, 10.012, 7.84])
@pytest.mark.parametrize("place", [(0.3, 0.5, 0.62), (0.7, 0.35, 0.41)])
def test_a_particle_stays_where_it_is_when_voxels_change(voxel: float, place: tuple[float, float, float]) -> None:
    """Planted: positions counted from voxel centres (`align_corners=True`), or the wanted voxel size instead of the reached one."""
    shape = tuple(round(n / voxel) for n in (480, 520, 451))
    position = np.multiply(place, shape) * voxel
    centres = [(np.arange(n) + 0.5) * voxel for n in shape]
    z, y, x = (np.exp(-((axis - p) ** 2) / (2 * 30.0**2)) for axis, p in zip(centres, position, strict=True))
    blob = -(z[:, None, None] * y[:, None] * x)
    volume, reached = prepare(tomogram(blob, voxel), contrast="dark", to_voxel_angstrom=10.012)

    np.testing.assert_allclose(np.multiply(volume.shape, reached), np.multiply(shape, voxel), rtol=1e-6)  # the far corner stays
    np.testing.assert_allclose(reached, 10.012, rtol=0.02)
    assert volume.mean() == pytest.approx(0, abs=1e-4)
    assert volume.std() == pytest.approx(1, abs=1e-3)
    mass = np.clip(volume[0, 0, 0] - volume, 0, None)
    found = [
        (mass.sum(axis=others) * (np.arange(n) + 0.5)).sum() / mass.sum() for others, n in zip([(1, 2), (0, 2), (0, 1)], volume.shape, strict=True)
    ]
    np.testing.assert_allclose(np.multiply(found, reached), position, atol=0.1 * 10.012)


def test_shrinking_takes_away_what_the_coarser_grid_cannot_hold() -> None:
    """Without the blur, a third of the voxels of noise would be kept as they are, and the others lost."""
    noise = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)
    assert resample(noise, 0.5).shape == (16, 16, 16)
    assert resample(noise, 1 / 3).std() < 0.2
    assert resample(noise, 2.0).shape == (64, 64, 64)


def test_resampling_a_constant_keeps_it() -> None:
    for factor in (0.37, 0.5, 1.4):
        np.testing.assert_allclose(resample(np.full((9, 10, 11), 2.5, dtype=np.float32), factor), 2.5, rtol=1e-5)


def test_gold_loses_its_weight_where_values_are_clipped() -> None:
    """Planted: clipping by the file's own units; no second z-score."""
    values = (NOISE * 1e-5 + 3e-6).astype(np.float32)
    values[0, 0, :4] = 1e-2
    plain, _ = prepare(tomogram(values), contrast="dark", to_voxel_angstrom=10.0)
    clipped, _ = prepare(tomogram(values), contrast="dark", to_voxel_angstrom=10.0, clip_sd=3.0)
    assert plain.max() > 20
    assert 3 < clipped.max() < 30
    assert clipped[1:].std() > 5 * plain[1:].std()
    assert clipped.mean(dtype=np.float64) == pytest.approx(0, abs=1e-5)
    assert clipped.std(dtype=np.float64) == pytest.approx(1, abs=1e-5)


def test_halves_are_those_of_numpy_also_of_values_that_may_not_be_written() -> None:
    """As of a memory map. Planted: torch given values that it may not write, of which it warns."""
    values = np.linspace(-70000, 70000, 1001, dtype=np.float32)
    values.flags.writeable = False
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(as_half(values), values.astype(np.float16))
