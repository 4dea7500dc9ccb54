"""STAR files: what comes back is what was written, RELION's conventions on positions known by construction, and every doubt refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tomoray.formats.star import has_positions, read_star, read_star_picks, star_runs, write_star
from tomoray.tomogram import FormatError, Picks

TOMOGRAM = {"particle": "ribosome", "shape_zyx": (20, 30, 41), "voxel_angstrom": 10.0}
RELION_4 = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnTomoTiltSeriesPixelSize #3
1 'group 1' {pixel}

data_particles

loop_
_rlnTomoName #1
_rlnCoordinateX #2
_rlnCoordinateY #3
_rlnCoordinateZ #4
_rlnOpticsGroup #5
TS_1 10.5 20 5 1
TS_2 1 2 3 1

tomograms/TS_1.mrc 11 21 6 1 # the same, by its path
"""


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_blocks_loops_pairs_quotes_and_comments(tmp_path: Path) -> None:
    """Planted: rows that end at an empty line; a quoted value cut at its space; a column's number taken for its value."""
    text = RELION_4.format(pixel=10.0) + '\n\ndata_general\n_rlnBinning 4\n_rlnNote "a # b"\n'
    blocks = read_star(write(tmp_path / "p.star", text))
    assert list(blocks) == ["optics", "particles", "general"]
    assert blocks["optics"] == {"rlnOpticsGroup": ["1"], "rlnOpticsGroupName": ["group 1"], "rlnTomoTiltSeriesPixelSize": ["10.0"]}
    assert blocks["particles"]["rlnTomoName"] == ["TS_1", "TS_2", "tomograms/TS_1.mrc"]
    assert blocks["general"] == {"rlnBinning": ["4"], "rlnNote": ["a # b"]}
    assert star_runs(str(tmp_path / "p.star")) == ["TS_1", "TS_2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data_\nloop_\n_a\n_b\n1 2\n3\n", "line 6: '3'; it must be a row of 2 values, not 1: correct the file"),
        ("data_\nloop_\n_a\n_a\n", "line 4: '_a'; it must be the begin of a block or loop, or a new name: correct the file"),
        ("data_x\ndata_x\n", "line 2: 'data_x'; it must be the begin of a block or loop, or a new name"),
        ("loop_\n_a\n1\n", "line 1: 'loop_'; it must be the begin of a block"),
        ("data_\n_a\n", "line 2: '_a'; it must be the begin of a block or loop, or a new name"),
    ],
)
def test_what_is_no_star_file_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FormatError) as error:
        read_star(write(tmp_path / "p.star", text))
    assert message in str(error.value)


def test_pixels_count_from_the_corner_and_centred_angstrom_from_the_middle(tmp_path: Path) -> None:
    """The same place in both. Planted: axes not swapped; half a voxel too much; the middle of an odd axis rounded."""
    uri = write(tmp_path / "p.star", RELION_4.format(pixel=10.0))
    picks = read_star_picks(uri, "TS_1", **TOMOGRAM)
    assert picks.positions_zyx.tolist() == [[50, 200, 105], [60, 210, 110]]
    assert picks.names.tolist() == ["ribosome", "ribosome"]
    assert picks.scores.tolist() == [1, 1]
    centred = "data_particles\nloop_\n_rlnTomoName\n" + "".join(f"_rlnCenteredCoordinate{a}Angst\n" for a in "XYZ") + "TS_1 -100 50 -50\nTS_1 0 0 0\n"
    picks = read_star_picks(write(tmp_path / "c.star", centred), "TS_1", **TOMOGRAM)
    assert picks.positions_zyx.tolist() == [[50, 200, 105], [100, 150, 205]]


def test_pixels_of_which_size_must_be_plain(tmp_path: Path) -> None:
    """RELION 4 counts pixels of the tilt series, older files those of the tomogram. Planted: one of the two taken silently."""
    uri = write(tmp_path / "p.star", RELION_4.format(pixel=2.5))
    with pytest.raises(
        FormatError, match=r"in pixels, of the tilt series' 2.5 angstrom or of the tomogram's 10; which must be plain: give picks_unit"
    ):
        read_star_picks(uri, "TS_1", **TOMOGRAM)
    assert read_star_picks(uri, "TS_1", **TOMOGRAM, pixel_angstrom=2.5).positions_zyx[0].tolist() == [12.5, 50, 26.25]
    assert read_star_picks(uri, "TS_1", **TOMOGRAM, pixel_angstrom=10.0).positions_zyx[0].tolist() == [50, 200, 105]


def test_what_would_move_picks_or_lose_them_is_refused(tmp_path: Path) -> None:
    uri = write(tmp_path / "p.star", RELION_4.format(pixel=10.0))
    with pytest.raises(FormatError, match="no picks of run 'TS_3'; it names TS_1, TS_2: give the file that holds this tomogram"):
        read_star_picks(uri, "TS_3", **TOMOGRAM)
    pixels = "".join(f"_rlnCoordinate{a}\n" for a in "XYZ")
    shifted = write(tmp_path / "s.star", f"data_\nloop_\n{pixels}_rlnOriginXAngst\n1 2 3 0\n1 2 3 4.5\n")
    with pytest.raises(FormatError, match=r"positions are shifted by rlnOriginXAngst; they must be where particles lie"):
        read_star_picks(shifted, "TS_1", **TOMOGRAM)
    with pytest.raises(FormatError, match=r"could not convert string to float: 'two'; rlnCoordinateX, .* must hold numbers"):
        read_star_picks(write(tmp_path / "t.star", f"data_\nloop_\n{pixels}1 two 3\n"), "TS_1", **TOMOGRAM)
    series = write(tmp_path / "series.star", "data_\nloop_\n_rlnMicrographName\n_rlnMicrographMovieName\na.mrc b.mrc\n")
    assert not has_positions(series)
    with pytest.raises(FormatError, match=r"0 blocks with rlnCoordinateX or rlnCenteredCoordinateXAngst; there must be one"):
        read_star_picks(series, "TS_1", **TOMOGRAM)
    with pytest.raises(FormatError, match="a run named 'TS 1'; in a STAR file it must be without spaces"):
        write_star(str(tmp_path / "x.star"), [Picks("TS 1", np.zeros((1, 3)), np.array(["a"]))], {"TS 1": (1.0, 1.0, 1.0)})


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    shape=st.tuples(*[st.integers(2, 1000)] * 3),
    voxel=st.floats(1, 30),
    seed=st.integers(0, 99),
)
def test_what_was_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, counts: list[int], shape: tuple, voxel: float, seed: int) -> None:
    """To the fourth digit of an angstrom. Planted: the extent of the first tomogram for all; a run without picks that ends the loop."""
    rng = np.random.default_rng(seed)
    extents = {f"TS_{i}": tuple((1 + i) * voxel * n for n in shape) for i in range(len(counts))}
    picks = [
        Picks(run, rng.random((count, 3)) * extent, np.array(["a"] * count, dtype=str), rng.random(count))
        for count, (run, extent) in zip(counts, extents.items(), strict=True)
    ]
    uri = str(tmp_path_factory.mktemp("star") / "a.star")
    write_star(uri, picks, extents)
    assert has_positions(uri)
    for i, one in enumerate(picks):
        if len(one):
            back = read_star_picks(uri, one.run, particle="a", shape_zyx=shape, voxel_angstrom=(1 + i) * voxel)
            np.testing.assert_allclose(back.positions_zyx, one.positions_zyx, atol=1e-3)
            np.testing.assert_allclose(back.scores, one.scores, atol=1e-6)
    assert star_runs(uri) == [one.run for one in picks if len(one)]
