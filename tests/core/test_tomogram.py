"""Tomograms, particles and picks: what they refuse, and the facts that everything else relies on."""

import numpy as np
import pytest

from tomoray.tomogram import CZII_PARTICLES, FormatError, Particle, Picks, Tomogram, check_picks_fit

VOLUME = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)


def picks(*positions, run: str = "TS_1") -> Picks:
    return Picks(run, np.array(positions, dtype=float).reshape(-1, 3), np.array([f"p{i}" for i in range(len(positions))], dtype=str))


def test_a_tomogram_reads_boxes_in_the_order_of_this_machine() -> None:
    tomogram = Tomogram("TS_1", VOLUME.astype(">f4"), (10.0, 10.0, 10.0))
    assert tomogram.shape == (2, 3, 4)
    np.testing.assert_array_equal(tomogram.read(), VOLUME)
    assert tomogram.read().dtype == np.dtype("=f4")
    np.testing.assert_array_equal(tomogram.read((slice(0, 1), slice(1, 3), slice(2, 4))), VOLUME[:1, 1:, 2:])


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (2, 3, 4, 1), (2, 0, 4)])
def test_what_has_not_three_axes_is_no_tomogram(shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match=r"^a/b.mrc: a volume of shape \(.*\); a tomogram has three axes .*: give one volume per file"):
        Tomogram("b", np.zeros(shape), (10.0, 10.0, 10.0), uri="a/b.mrc")


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_voxels_have_a_positive_size(size: float) -> None:
    with pytest.raises(FormatError, match=r"^TS_1: voxel size .* angstrom; it must be positive along every axis: write it into the header"):
        Tomogram("TS_1", VOLUME, (10.0, size, 10.0))


def test_nearly_cubic_voxels_have_one_size_and_others_none() -> None:
    assert Tomogram("TS_1", VOLUME, (10.0, 10.003, 10.006)).voxel_size_angstrom == pytest.approx(10.003)
    with pytest.raises(FormatError, match=r"voxels of \(10.0, 10.0, 10.02\) angstrom \(z, y, x\) are not cubes; .*: resample"):
        _ = Tomogram("TS_1", VOLUME, (10.0, 10.0, 10.02)).voxel_size_angstrom


def test_particles_have_a_name_and_a_radius() -> None:
    for name, radius in (("", 60.0), ("x", 0.0), ("x", -1.0), ("x", float("nan"))):
        with pytest.raises(ValueError, match="give a name and a positive radius in angstrom"):
            Particle(name, radius)


def test_czii_particles_are_those_of_the_challenge() -> None:
    assert [(p.radius_angstrom, p.metric_weight) for p in CZII_PARTICLES] == [(60, 1), (65, 0), (90, 2), (150, 1), (130, 2), (135, 1)]
    assert [p.name for p in CZII_PARTICLES] == sorted(p.name for p in CZII_PARTICLES)


def test_picks_are_columns_of_equal_length() -> None:
    two = picks((1, 2, 3), (4, 5, 6))
    assert len(two) == 2
    assert two.scores.tolist() == [1, 1]
    assert two.positions_zyx.dtype == two.scores.dtype == np.float64
    with pytest.raises(ValueError, match=r"picks of TS_1: 2 positions, 1 names and 2 scores must be equally many"):
        Picks("TS_1", np.zeros((2, 3)), np.array(["a"]))
    with pytest.raises(FormatError, match=r"picks of TS_1: a position is not a finite number; correct or remove it"):
        picks((1, 2, float("nan")))


def test_picks_are_chosen_by_index_mask_slice_and_class() -> None:
    three = Picks("TS_1", np.arange(9.0).reshape(3, 3), np.array(["a", "b", "a"]), np.array([0.1, 0.2, 0.3]))
    for keep in (np.array([0, 2]), np.array([True, False, True]), slice(None, None, 2), three.names == "a"):
        assert three[keep].scores.tolist() == [0.1, 0.3]
        assert three[keep].positions_zyx[:, 0].tolist() == [0, 6]
    assert three.of("a").names.tolist() == ["a", "a"]
    assert len(three.of("c")) == len(three[[]]) == 0
    assert three.of("c").run == "TS_1"


def test_picks_are_joined_in_order() -> None:
    joined = Picks.concatenate("all", [picks((1, 2, 3)), picks(), Picks("TS_2", np.zeros((1, 3)), np.array(["longer name"]), np.array([0.5]))])
    assert joined.run == "all"
    assert joined.names.tolist() == ["p0", "longer name"]
    assert joined.scores.tolist() == [1, 0.5]
    assert len(Picks.concatenate("none", [])) == 0


def test_picks_that_fit_are_let_through() -> None:
    tomogram = Tomogram("TS_1", VOLUME, (10.0, 10.0, 10.0))  # 20 x 30 x 40 angstrom
    check_picks_fit(picks((0, 0, 0), (20, 30, 40), (-9.9, 39.9, 49.9)), tomogram)  # a voxel of tolerance all around
    check_picks_fit(picks(), tomogram)
    check_picks_fit(picks((1, 1, 1), run=""), tomogram)


@pytest.mark.parametrize(
    ("position", "told"), [((35.0, 10, 10), "35.0, 10.0, 10.0"), ((0, -10.5, 0), "0.0, -10.5, 0.0"), ((0, 0, 51), "0.0, 0.0, 51.0")]
)
def test_picks_outside_are_refused_and_the_first_is_shown(position, told) -> None:
    tomogram = Tomogram("TS_1", VOLUME, (10.0, 10.0, 10.0), uri="a/TS_1.mrc")
    with pytest.raises(FormatError) as error:
        check_picks_fit(picks((1, 1, 1), position, position), tomogram)
    message = str(error.value)
    assert message.startswith(
        f"a/TS_1.mrc: 2 of 3 picks lie outside the volume, the first at z, y, x = {told} angstrom where the volume ends at 20.0, 30.0, 40.0"
    )
    assert "check the axis order, the unit (angstrom), the voxel size" in message


def test_picks_of_another_tomogram_are_refused() -> None:
    with pytest.raises(FormatError, match=r"these are picks of 'TS_2', the tomogram is 'TS_1'; give the picks file of this tomogram"):
        check_picks_fit(picks((1, 1, 1), run="TS_2"), Tomogram("TS_1", VOLUME, (10.0, 10.0, 10.0)))
