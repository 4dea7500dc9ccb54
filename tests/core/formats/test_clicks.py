"""Tables of clicks: the same place said in every way that is plain, and every way that is not refused."""

from pathlib import Path

import pytest

from tomoray.formats.clicks import Told, is_clicks, read_clicks, runs_in, what_was_told
from tomoray.tomogram import FormatError, Picks

PLACE = [50.0, 200.0, 105.0]  # z, y, x in angstrom: voxels 5, 20, 10.5 of 10 angstrom


def table(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "TS_1.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def read(uri: str, unit=None, particle: str = "", run: str = "TS_1") -> Picks:
    return read_clicks(uri, run, Told(unit, particle), shape_zyx=(20, 30, 41), voxel_angstrom=10.0)


@pytest.mark.parametrize(
    ("lines", "unit", "particle"),
    [
        (["x,y,z", "10.5,20,5"], "voxel", "ribosome"),
        (["X, Y, Z", "105, 200, 50"], "angstrom", "ribosome"),
        (["x,y,z", "42,80,20"], 2.5, "ribosome"),
        (["10.5,20,5"], "voxel", "ribosome"),
        (["10.5,20,5,ribosome"], "voxel", ""),
        (["x_voxel,y_voxel,z_voxel,class", "10.5,20,5,ribosome"], None, ""),
        (["particle,z_angstrom,y_angstrom,x_angstrom", "ribosome,50,200,105"], None, "other"),
        (["index,axis-0,axis-1,axis-2", "0.0,5.0,20.0,10.5"], None, "ribosome"),
        (["index,axis-0,axis-1,axis-2", "0.0,20.0,80.0,42"], 2.5, "ribosome"),
        (["run,x,y,z", "TS_1,10.5,20,5", "TS_2,1,1,1"], "voxel", "ribosome"),
    ],
)
def test_one_place_in_many_words(tmp_path: Path, lines: list[str], unit, particle: str) -> None:
    """Planted: napari's axis-0 taken for x; picks of another run; a header counted as a click; a class that overrules the file's."""
    uri = table(tmp_path, *lines)
    assert is_clicks(uri)
    picks = read(uri, unit, particle)
    assert picks.positions_zyx.tolist() == [PLACE]
    assert picks.names.tolist() == ["ribosome"]
    assert picks.scores.tolist() == [1.0]


@pytest.mark.parametrize(
    ("lines", "unit", "particle", "message"),
    [
        (["x,y,z", "1,2,3"], None, "a", "positions without a unit; it must be plain whether they are in voxels or in angstrom: give picks_unit"),
        (["1,2,3"], None, "a", "positions without a unit"),
        (["x,y,z", "1,2,3"], "voxel", "", "no column names the class; each pick must have one: add a column `particle`, or give picks_particle"),
        (["1,2,3,0.9"], "voxel", "", "a fourth column of numbers, and no header; what it means must be plain: name the columns"),
        (["x,y", "1,2"], "voxel", "a", "no column z in x, y; name the columns x, y, z, or write none in this order"),
        (["x_voxel,y_voxel,z_angstrom", "1,2,3"], None, "a", "are of different units or kinds; all three must be alike: rename them"),
        (["x_voxel,y_voxel,z_voxel", "1,2,3"], "angstrom", "a", "are in voxel, picks_unit is angstrom; they must agree: correct one of them"),
        (["x,y,z", "1,2,3", "1,2", "1,nan,3"], "voxel", "a", "line 3: 1,2; line 4: 1,nan,3; each line needs finite numbers and a class"),
        (["run,x,y,z", "TS_2,1,2,3"], "voxel", "a", "no picks of run 'TS_1'; it names TS_2: give the table that holds this tomogram"),
    ],
)
def test_what_is_not_plain_is_refused(tmp_path: Path, lines: list[str], unit, particle: str, message: str) -> None:
    with pytest.raises(FormatError) as error:
        read(table(tmp_path, *lines), unit, particle)
    assert message in str(error.value)


def test_tables_that_are_no_clicks(tmp_path: Path) -> None:
    """Planted: tables of the challenge, whose unit is known, taken for clicks without one."""
    assert not is_clicks(table(tmp_path, "id,experiment,particle_type,x,y,z", "0,TS_1,ribosome,1,2,3"))
    assert not is_clicks(table(tmp_path, "tilt,defocus", "3,2.5"))
    assert not is_clicks(table(tmp_path, ""))
    assert not is_clicks(str(tmp_path / "TS_1.json"))
    assert runs_in(table(tmp_path, "tomogram,x,y,z", "b,1,2,3", "a,1,2,3", "b,4,5,6")) == ["a", "b"]
    assert runs_in(table(tmp_path, "1,2,3")) == []


@pytest.mark.parametrize("told", [Told(), Told("voxel"), Told(13.48, "80S ribosome & more"), Told("angstrom", "a=b#c")])
def test_what_was_told_travels_with_the_uri(told: Told) -> None:
    """Planted: a `#` in a folder's name taken for what was said."""
    for uri in ("s3://bucket/a b.csv", "/data/run #3/TS_1.star"):
        assert what_was_told(told.beside(uri)) == (uri, told)
