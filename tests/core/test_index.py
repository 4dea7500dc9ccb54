"""Indexing: every layout is found, every fault is named in one go, and contrast is guessed on real tomograms."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tomoray import storage
from tomoray.catalogue import read_catalogue, read_row_picks, write_catalogue
from tomoray.formats.clicks import Told
from tomoray.formats.copick import picks_file_name, write_copick_picks
from tomoray.formats.czii import picks_folder, tomogram_uri, write_czii_csv
from tomoray.formats.layouts import Problem, find_tomograms
from tomoray.formats.mrc import write_mrc
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.formats.star import write_star
from tomoray.index import Intensities, guess_contrast, index
from tomoray.tomogram import FormatError, Picks, Tomogram

VOXEL = 10.0
PICKS_ZYX = np.array([[85.0, 105.0, 125.0], [155.0, 255.0, 75.0]])  # voxels 8, 10, 12 and 15, 25, 7
SHAPE = (20, 32, 24)


def tomogram(run: str = "TS_1", *, seed: int = 0, particle: float = -4.0) -> Tomogram:
    """Noise with two balls at PICKS_ZYX, dark ones by default."""
    values = np.random.default_rng(seed).normal(100, 1, SHAPE).astype(np.float32)
    centres = (np.indices(SHAPE) + 0.5) * VOXEL
    for position in PICKS_ZYX:
        values[np.linalg.norm(centres - position[:, None, None, None], axis=0) < 35] += particle
    return Tomogram(run, values, (VOXEL,) * 3)


def picks(run: str = "TS_1", name: str = "ribosome") -> Picks:
    return Picks(run, PICKS_ZYX, np.array([name] * 2))


def put_czii(root: str, run: str, *, kinds: tuple[str, ...] = ("denoised",), labelled: bool = True) -> None:
    for kind in kinds:
        write_ome_zarr(tomogram_uri(root, run, kind), tomogram(run), chunk_vox=32)
    if labelled:
        write_copick_picks(
            storage.join(picks_folder(root, run), "ribosome.json"), picks(run), particle="ribosome", user_id="curation", session_id="0"
        )


def texts(problems: list[Problem], level: str) -> list[str]:
    return [problem.message for problem in problems if problem.level == level]


def errors(problems: list[Problem]) -> list[str]:
    return texts(problems, "error")


def test_czii_folders_end_to_end(tmp_path: Path) -> None:
    root = str(tmp_path / "train")
    put_czii(root, "TS_1", kinds=("denoised", "wbp"))
    put_czii(root, "TS_2", labelled=False)
    seen: list[tuple[int, int]] = []
    rows, problems = index(tmp_path, particles=["ribosome"], progress=lambda done, total: seen.append((done, total)))
    assert errors(problems) == []
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [(row.tomogram_id, row.run, row.split) for row in rows] == [
        ("TS_1-10.000-denoised", "TS_1", "train"),
        ("TS_1-10.000-wbp", "TS_1", "train"),
        ("TS_2-10.000-denoised", "TS_2", "unlabelled"),
    ]
    first, values = rows[0], tomogram("TS_1").read()
    assert (first.shape_zyx, first.dtype, first.voxel_angstrom, first.particles) == (SHAPE, "float32", VOXEL, {"ribosome": 2})
    np.testing.assert_allclose([first.mean, first.std], [values.mean(), values.std()], rtol=1e-6)
    assert (first.minimum, first.maximum) == (values.min(), values.max())
    np.testing.assert_array_equal(read_row_picks(first).positions_zyx, PICKS_ZYX)
    write_catalogue(tmp_path / "catalogue.parquet", rows)
    assert read_catalogue(tmp_path / "catalogue.parquet") == rows
    assert {row.tomogram_id for row in index(tmp_path, kinds=["wbp"])[0]} == {"TS_1-10.000-wbp"}
    assert errors(index(tmp_path, kinds=["ctf"])[1]) == [f"{tmp_path}: no tomogram of kind ctf; there are denoised, wbp"]


def test_czii_folders_in_a_bucket(s3_bucket: str) -> None:
    put_czii(f"{s3_bucket}/data", "TS_1")
    rows, problems = index(f"{s3_bucket}/data")
    assert errors(problems) == []
    assert [(row.uri, row.picks_uri) for row in rows] == [
        (tomogram_uri(f"{s3_bucket}/data", "TS_1"), picks_folder(f"{s3_bucket}/data", "TS_1")),
    ]
    assert len(read_row_picks(rows[0])) == 2


def test_a_plain_folder_in_a_bucket(s3_bucket: str) -> None:
    write_mrc(f"{s3_bucket}/day/one/a.mrc", tomogram("a"))
    write_ome_zarr(f"{s3_bucket}/day/b.zarr", tomogram("b"), chunk_vox=32)
    rows, problems = index(f"{s3_bucket}/day")
    assert errors(problems) == []
    assert [(row.run, row.uri) for row in rows] == [("a", f"{s3_bucket}/day/one/a.mrc"), ("b", f"{s3_bucket}/day/b.zarr")]


def test_the_zips_test_folder_repeats_training_runs(tmp_path: Path) -> None:
    # the published zip holds three training tomograms a second time, without labels
    put_czii(str(tmp_path / "train"), "TS_1")
    put_czii(str(tmp_path / "test"), "TS_1", labelled=False)
    rows, problems = index(tmp_path, contrast="dark")
    assert [(row.uri, row.split) for row in rows] == [(tomogram_uri(str(tmp_path / "train"), "TS_1"), "train")]
    assert [problem.level for problem in problems] == ["warning"]
    assert "second tomogram named 'TS_1-10.000-denoised'" in problems[0].message


def test_mrc_beside_zarr_counts_once(tmp_path: Path) -> None:
    put_czii(str(tmp_path), "TS_1")
    write_mrc(tomogram_uri(str(tmp_path), "TS_1").replace(".zarr", ".mrc"), tomogram("TS_1"))
    write_mrc(tomogram_uri(str(tmp_path), "TS_2").replace(".zarr", ".mrc"), tomogram("TS_2"))
    shutil.copytree(tomogram_uri(str(tmp_path), "TS_1"), tomogram_uri(str(tmp_path), "TS_1", "denoised_unet_features"))
    found, _ = find_tomograms(tmp_path)
    assert [(one.run, one.uri.rpartition("/")[2]) for one in found] == [("TS_1", "denoised.zarr"), ("TS_2", "denoised.mrc")]


def test_copick_project_by_its_configuration(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "static/ExperimentRuns/TS_1/VoxelSpacing10.000/wbp.zarr", tomogram(), chunk_vox=32)
    for user, session in (("curation", "0"), ("tomoray", "1")):
        folder = tmp_path / "overlay/ExperimentRuns/TS_1/Picks"
        write_copick_picks(str(folder / picks_file_name("ribosome", user, session)), picks(), particle="ribosome", user_id=user, session_id=session)
    config = tmp_path / "copick.json"
    config.write_text(json.dumps({"static_root": f"local://{tmp_path}/static", "overlay_root": f"local://{tmp_path}/overlay"}))
    rows, problems = index(config)
    assert rows == []
    assert "both hold 'ribosome'" in errors(problems)[0]
    rows, problems = index(config, picks="curation_0", contrast="dark")
    assert problems == []
    assert rows[0].particles == {"ribosome": 2}
    assert index(tmp_path / "static")[0][0].split == "unlabelled"
    assert "neither a file, a folder, nor" in errors(index(config, picks="nobody_0")[1])[0]


def test_portal_prefix(tmp_path: Path) -> None:
    spacing = tmp_path / "10440/TS_1/Reconstructions/VoxelSpacing10.000"
    write_ome_zarr(spacing / "Tomograms/100/TS_1.zarr", tomogram(), chunk_vox=32)
    write_mrc(spacing / "Tomograms/100/TS_1.mrc", tomogram())
    truth = tmp_path / "10440/TS_1/Reconstructions/VoxelSpacing5.000/Annotations/101"
    truth.mkdir(parents=True)
    points = [{"type": "point", "location": dict(zip("zyx", (at / 5).tolist(), strict=True))} for at in PICKS_ZYX]
    (truth / "cytosolic_ribosome-2.0_point.ndjson").write_text("\n".join(map(json.dumps, points)))
    (truth / "cytosolic_ribosome-2.0.json").write_text(json.dumps({"annotation_object": {"name": "cytosolic ribosome"}, "ground_truth_status": True}))
    rows, problems = index(tmp_path / "10440", contrast="dark")
    assert problems == []
    assert [(row.tomogram_id, row.uri[-5:], row.particles) for row in rows] == [("TS_1-10.000-100", ".zarr", {"ribosome": 2})]
    np.testing.assert_allclose(read_row_picks(rows[0]).positions_zyx, PICKS_ZYX)
    (truth / "cytosolic_ribosome-2.0.json").write_text("{}")
    assert "not the metadata of a portal annotation" in errors(index(tmp_path / "10440")[1])[0]


def test_a_plain_folder_with_a_table_of_picks(tmp_path: Path) -> None:
    write_mrc(tmp_path / "data/day1/a.mrc", tomogram("a"))
    write_mrc(tmp_path / "data/day2/b.rec", tomogram("b"))
    write_ome_zarr(tmp_path / "data/c.ome.zarr", tomogram("c"), chunk_vox=8)
    (tmp_path / "data/day2/old.tif").touch()
    (tmp_path / "data/day2/notes.txt").touch()
    write_czii_csv(str(tmp_path / "picks.csv"), [picks("a"), picks("missing")])
    rows, problems = index(tmp_path / "data", picks=str(tmp_path / "picks.csv"), contrast="dark")
    assert [(row.run, row.split) for row in rows] == [("a", "train"), ("b", "unlabelled"), ("c", "unlabelled")]
    assert errors(problems) == []
    warned = " ".join(texts(problems, "warning"))
    assert "old.tif: not a format that tomoray reads" in warned
    assert "picks of run 'missing', for which there is no tomogram" in warned
    assert "notes" not in warned


@pytest.mark.parametrize("place", ["{run}.json", "{run}/ribosome.json", "{run}/Picks/ribosome.json", "ExperimentRuns/{run}/Picks/a_0_ribosome.json"])
def test_a_plain_folder_with_a_folder_of_picks(tmp_path: Path, place: str) -> None:
    for run in ("a", "b"):
        write_mrc(tmp_path / f"data/{run}.mrc", tomogram(run))
        write_copick_picks(str(tmp_path / "labels" / place.format(run=run)), picks(run), particle="ribosome")
    rows, problems = index(tmp_path / "data", picks=str(tmp_path / "labels"), contrast="dark")
    assert problems == []
    assert [row.particles for row in rows] == [{"ribosome": 2}] * 2


def test_one_tomogram_with_one_picks_file(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", tomogram("a"))
    write_copick_picks(str(tmp_path / "p.json"), picks(""), particle="ribosome")
    rows, problems = index(tmp_path / "a.mrc", picks=str(tmp_path / "p.json"), contrast="dark")
    assert problems == []
    assert rows[0].particles == {"ribosome": 2}


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    good = tomogram("good")
    changed: dict[str, Callable[[], Tomogram]] = {
        "anisotropic": lambda: Tomogram("", good.voxels, (10.0, 10.0, 12.0)),
        "constant": lambda: Tomogram("", np.full(SHAPE, 3, np.float32), good.voxel_angstrom),
        "good": lambda: good,
        "holes": lambda: Tomogram("", np.where(good.read() > 102, np.nan, good.read()).astype(np.float32), good.voxel_angstrom),
        "misplaced": lambda: good,
        "misnamed": lambda: good,
    }
    for name, make in changed.items():
        write_mrc(data / f"{name}.mrc", make())
    for day in ("one", "two"):
        write_mrc(data / day / "twice.mrc", good)
    (data / "broken.mrc").write_bytes(b"this is no MRC file" * 100)
    (data / "no_metadata.zarr").mkdir()
    write_ome_zarr(data / "incomplete.zarr", good, chunk_vox=16)
    (data / "incomplete.zarr/0/0/0/0").unlink()
    outside = Picks("misplaced", PICKS_ZYX[:, ::-1] * 2, np.array(["ribosome"] * 2))
    write_czii_csv(str(tmp_path / "picks.csv"), [picks("good"), outside, picks("misnamed", "ribsome"), picks("absent")])
    rows, problems = index(data, picks=str(tmp_path / "picks.csv"), particles=["ribosome"], contrast="dark")
    assert [row.run for row in rows] == ["good", "incomplete"]
    expected = {
        "anisotropic.mrc": "are not cubes",
        "broken.mrc": "broken.mrc",
        "constant.mrc": "all values are 3",
        "holes.mrc": "values are NaN or infinite",
        "misnamed.mrc": "picks named ribsome; the particles asked for are ribosome",
        "misplaced.mrc": "picks lie outside the volume",
        "no_metadata.zarr": "no_metadata.zarr",
        "one/twice.mrc": "2 tomograms named 'twice'",
    }
    found = {problem.uri.removeprefix(f"{data}/"): problem.message for problem in problems if problem.level == "error"}
    assert found.keys() == expected.keys()
    assert [name for name, text in expected.items() if text not in found[name]] == []
    warned = sorted(problem.uri.rpartition("/")[2] for problem in problems if problem.level == "warning")
    assert warned == ["incomplete.zarr", "picks.csv"]  # chunks that are absent, and a run that is


@pytest.mark.parametrize("inside", [[], ["notes.txt"], ["deep/er/notes.txt"]])
def test_nothing_found_says_what_was_looked_for(tmp_path: Path, inside: list[str]) -> None:
    for name in inside:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rows, problems = index(tmp_path)
    assert rows == []
    assert errors(problems) == [
        f"{tmp_path}: no tomogram found; it must hold MRC or OME-Zarr files, the CZII or copick folders, or a portal data set: check the path"
    ]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert errors(index(tmp_path / "nowhere")[1]) == [
        f"{tmp_path}/nowhere: there is no such file or folder; give the folder or bucket prefix that holds the tomograms"
    ]


def test_picks_without_their_tomogram_are_named(shared_data: Path) -> None:
    rows, problems = index(shared_data / "czii_picks")
    assert rows == []
    assert len([text for text in texts(problems, "warning") if "for which there is no tomogram" in text]) == 3
    assert len(errors(problems)) == 1


def test_the_real_labels_fit_a_volume_of_the_real_size(shared_data: Path, tmp_path: Path) -> None:
    import zarr

    shutil.copytree(shared_data / "czii_picks" / "overlay", tmp_path / "overlay")
    for run in ("TS_5_4", "TS_6_4", "TS_69_2"):
        group = zarr.create_group(tomogram_uri(str(tmp_path), run), zarr_format=2)
        array = group.create_array("0", shape=(184, 630, 630), chunks=(256, 256, 256), dtype="int8", fill_value=0)
        array[:, :2, :2] = 1  # one of nine chunks; the others are absent and read as zero
        scale = {"type": "scale", "scale": [10.012444196428572, 10.012444196428572, 10.012444537618887]}
        axes = [{"name": name, "type": "space", "unit": "angstrom"} for name in "zyx"]
        group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}]
    rows, problems = index(tmp_path, contrast="dark")
    assert errors(problems) == []
    assert [problem.uri for problem in problems] == sorted(row.uri for row in rows)
    assert all("8 of 9 chunks" in problem.message for problem in problems)
    with (shared_data / "czii_picks" / "picks.csv").open() as table:
        truth = [(line["experiment"], line["particle_type"]) for line in csv.DictReader(table)]
    assert sum(sum(row.particles.values()) for row in rows) == 476
    for row in rows:
        assert row.particles == {name: truth.count((row.run, name)) for name in row.particles}
        assert round(row.voxel_angstrom, 5) == 10.01244
        assert len(read_row_picks(row)) == sum(row.particles.values())


@pytest.mark.parametrize(("particle", "expected"), [(-4.0, "dark"), (4.0, "bright")])
@pytest.mark.parametrize("labelled", [True, False])
def test_contrast_is_guessed_with_and_without_picks(tmp_path: Path, particle: float, expected: str, labelled: bool) -> None:
    write_mrc(tmp_path / "TS_1.mrc", tomogram(particle=particle))
    write_copick_picks(str(tmp_path / "p.json"), picks(), particle="ribosome")
    rows, problems = index(tmp_path / "TS_1.mrc", picks=str(tmp_path / "p.json") if labelled else "")
    assert (rows[0].contrast, rows[0].contrast_guessed) == (expected, True)
    assert [problem.level for problem in problems] == ["warning"]
    assert f"particles are taken to be {expected}, a guess" in problems[0].message


def test_picks_decide_the_contrast_where_something_else_is_the_heavy_tail(tmp_path: Path) -> None:
    values = tomogram(particle=-2.0).read().copy()
    values[2:6, 24:28, 16:22] += 30  # a bright contamination
    write_mrc(tmp_path / "TS_1.mrc", Tomogram("TS_1", values, (VOXEL,) * 3))
    write_copick_picks(str(tmp_path / "p.json"), picks(), particle="ribosome")
    assert index(tmp_path / "TS_1.mrc")[0][0].contrast == "bright"
    assert index(tmp_path / "TS_1.mrc", picks=str(tmp_path / "p.json"))[0][0].contrast == "dark"


def test_a_stated_contrast_is_kept_without_a_warning(tmp_path: Path) -> None:
    write_mrc(tmp_path / "TS_1.mrc", tomogram())
    rows, problems = index(tmp_path, contrast="bright")
    assert (rows[0].contrast, rows[0].contrast_guessed, problems) == ("bright", False, [])


def test_contrast_of_real_tomograms(shared_data: Path) -> None:
    from tomoray.formats import open_tomogram

    # README of the data: the tardis piece is dark (with an unfilled edge), the microtubule of the vectors is bright, the zarr copy of it inverted
    with pytest.warns(UserWarning, match="tardis"):
        tardis = open_tomogram(shared_data / "tomograms" / "tardis_mrc3D.mrc", permissive=True)
    assert guess_contrast(tardis)[0] == "dark"
    microtubule = open_tomogram(shared_data / "zarr" / "portal_style_blosc_lz4.zarr")
    assert guess_contrast(microtubule)[0] == "dark"
    assert guess_contrast(Tomogram("inverted", -microtubule.read(), microtubule.voxel_angstrom))[0] == "bright"


def test_intensities_of_parts_are_those_of_the_whole() -> None:
    # the mean is a million times the spread: sums of squares in one pass lose every digit of it
    values = 1e3 + 1e-3 * np.random.default_rng(0).normal(size=(7, 50, 60))
    seen = Intensities()
    for part in (values[:1], values[1:2], values[2:]):
        seen.add(part)
    np.testing.assert_allclose([seen.mean, seen.std], [values.mean(), values.std()], rtol=1e-9)
    seen.add(np.array([np.nan, np.inf]))
    assert (seen.count, seen.not_finite, seen.maximum) == (values.size, 2, values.max())


def test_a_wrong_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("[]")
    with pytest.raises(FormatError, match="not a copick configuration"):
        index(tmp_path / "c.json")


def test_clicks_beside_tomograms_are_found_and_read_from_the_catalogue(tmp_path: Path) -> None:
    """One in voxels, one as RELION 5 writes it, one without; tables that are no positions lie there too.

    Planted: the unit forgotten on the way to the catalogue; a tomogram left out for a table of its tilts.
    """
    for name in ("a", "b", "c"):
        write_mrc(str(tmp_path / f"{name}.mrc"), tomogram(name))
    (tmp_path / "a.csv").write_text("x,y,z\n" + "".join(f"{x / VOXEL},{y / VOXEL},{z / VOXEL}\n" for z, y, x in PICKS_ZYX.tolist()))
    write_star(str(tmp_path / "b.star"), [picks("b")], {"b": (200.0, 320.0, 240.0)})
    (tmp_path / "a.star").write_text("data_\nloop_\n_rlnMicrographName\na.mrc\n")
    (tmp_path / "c.csv").write_text("tilt,defocus\n3,2.5\n")
    rows, problems = index(tmp_path, contrast="dark", told=Told("voxel", "ribosome"))
    assert problems == []
    assert [(row.run, row.split, dict(row.particles)) for row in rows] == [
        ("a", "train", {"ribosome": 2}),
        ("b", "train", {"ribosome": 2}),
        ("c", "unlabelled", {}),
    ]
    write_catalogue(tmp_path / "catalogue.parquet", rows)
    for row in read_catalogue(tmp_path / "catalogue.parquet")[:2]:
        np.testing.assert_allclose(read_row_picks(row).positions_zyx, PICKS_ZYX, atol=1e-3)


def test_clicks_that_are_not_plain_are_told_and_what_was_said_for_nothing_too(tmp_path: Path) -> None:
    write_mrc(str(tmp_path / "a.mrc"), tomogram("a"))
    write_mrc(str(tmp_path / "b.mrc"), tomogram("b"))
    _, problems = index(tmp_path, contrast="dark", told=Told("voxel"))
    assert [problem.level for problem in problems] == ["warning"]
    assert "no tomogram has a CSV or STAR file of positions, which alone may need it; leave it out" in problems[0].message
    write_czii_csv(str(tmp_path / "czii.csv"), [picks("a")])
    _, problems = index(tmp_path, picks=str(tmp_path / "czii.csv"), contrast="dark", told=Told("voxel"))
    assert "no plain table of clicks, but one that says class and angstrom; leave picks_unit and picks_particle out" in errors(problems)[0]
    (tmp_path / "a.csv").write_text("x,y,z\n12.5,10.5,8.5\n")
    rows, problems = index(tmp_path, contrast="dark", told=Told(particle="ribosome"))
    assert [row.run for row in rows] == ["b"]
    assert "positions without a unit; it must be plain whether they are in voxels or in angstrom: give picks_unit" in errors(problems)[0]
    write_star(str(tmp_path / "a.star"), [picks("a")], {"a": (200.0, 320.0, 240.0)})
    assert "positions of 'a' in 2 files; there must be one" in errors(index(tmp_path, contrast="dark")[1])[0]
    assert "no column names the run, and there are 2 tomograms" in errors(index(tmp_path, picks=str(tmp_path / "a.csv"), contrast="dark")[1])[0]
    both = tmp_path / "both.star"
    write_star(str(both), [picks("a"), picks("b"), picks("z")], dict.fromkeys("abz", (200.0, 320.0, 240.0)))
    rows, problems = index(tmp_path, picks=str(both), contrast="dark", told=Told(particle="ribosome"))
    assert [(row.run, row.particles["ribosome"]) for row in rows] == [("a", 2), ("b", 2)]
    assert "picks of run 'z', for which there is no tomogram" in texts(problems, "warning")[-1]
