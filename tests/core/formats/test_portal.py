"""CryoET Data Portal: points in voxels of their own spacing, and only the truth."""

import json
from pathlib import Path

import numpy as np
import pytest

from tomoray.formats.portal import list_portal_tomograms, read_ndjson_picks, read_portal_picks, truth_files
from tomoray.tomogram import FormatError


def annotate(
    prefix: Path, spacing: str, number: int, name: str, points: list[tuple[float, float, float]], *, shape: str = "point", **metadata: object
) -> Path:
    """Write one annotation as the portal does; without metadata, only its points."""
    folder = prefix / "TS_1" / "Reconstructions" / f"VoxelSpacing{spacing}" / "Annotations" / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    stem = name.replace("-", "_").replace(" ", "_") + "-2.0"
    lines = [json.dumps({"type": "point" if shape == "point" else "orientedPoint", "location": dict(zip("xyz", at, strict=True))}) for at in points]
    (folder / f"{stem}_{shape}.ndjson").write_text("\n".join(lines))  # no newline at the end, as the portal may
    if metadata:
        (folder / f"{stem}.json").write_text(json.dumps({"annotation_object": {"name": name, "id": "GO:1"}} | metadata))
    return folder.parent


def put_tomogram(prefix: Path, spacing: str, number: int, *names: str) -> None:
    for name in names:
        (prefix / "TS_1" / "Reconstructions" / f"VoxelSpacing{spacing}" / "Tomograms" / str(number) / name).mkdir(parents=True)


def test_positions_are_voxels_times_the_given_spacing(tmp_path: Path) -> None:
    folder = annotate(tmp_path, "4.990", 100, "ribosome", [(1, 2, 3), (4.5, 0, 100)])
    picks = read_ndjson_picks(str(folder / "100" / "ribosome-2.0_point.ndjson"), voxel_angstrom=4.99, particle="ribosome", run="TS_1")
    np.testing.assert_allclose(picks.positions_zyx, np.array([[3, 2, 1], [100, 0, 4.5]]) * 4.99)
    assert picks.run == "TS_1"
    assert picks.names.tolist() == ["ribosome"] * 2


@pytest.mark.parametrize("line", ["{", '{"type": "point"}', '{"type": "point", "location": {"x": 1, "y": 2, "z": "a"}}', '{"type": "sphere"}'])
def test_a_line_that_is_no_point_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a_point.ndjson"
    path.write_text('{"type": "point", "location": {"x": 1, "y": 2, "z": 3}}\n' + line)
    with pytest.raises(FormatError, match="line 2: "):
        read_ndjson_picks(str(path), voxel_angstrom=1.0, particle="a", run="")


def test_only_the_truth_is_read_under_the_challenges_names(tmp_path: Path) -> None:
    # the winners' predictions lie beside the truth under the same object names: reading them too would be training on predictions
    folder = annotate(tmp_path, "4.990", 100, "ferritin complex", [(10, 20, 30)], ground_truth_status=True, deposition_id=10310)
    annotate(tmp_path, "4.990", 101, "cytosolic ribosome", [(1, 1, 1)], ground_truth_status=False, deposition_id="10310")
    annotate(tmp_path, "4.990", 102, "virus-like capsid", [(2, 2, 2)], shape="orientedpoint", ground_truth_status=True, deposition_id=1)
    annotate(tmp_path, "4.990", 200, "ferritin complex", [(9, 9, 9)], ground_truth_status=False, deposition_id=10319)
    annotate(tmp_path, "4.990", 201, "membrane", [(9, 9, 9)], ground_truth_status=None)
    assert set(truth_files(str(folder)).values()) == {"apo-ferritin", "ribosome", "virus-like-particle"}
    picks = read_portal_picks(str(folder), "TS_1")
    assert sorted(picks.names.tolist()) == ["apo-ferritin", "ribosome", "virus-like-particle"]
    np.testing.assert_allclose(picks.of("apo-ferritin").positions_zyx, [[30 * 4.99, 20 * 4.99, 10 * 4.99]])


def test_one_file_without_metadata_is_taken_by_its_name(tmp_path: Path) -> None:
    folder = annotate(tmp_path, "10.012", 7, "beta-galactosidase", [(1, 2, 3)])
    annotate(tmp_path, "10.012", 8, "thyroglobulin", [(1, 2, 3)])
    picks = read_portal_picks(str(folder / "7" / "beta_galactosidase-2.0_point.ndjson"), "TS_1")
    assert picks.names.tolist() == ["beta-galactosidase"]
    np.testing.assert_allclose(picks.positions_zyx, [[30.036, 20.024, 10.012]])


def test_two_truths_of_one_class_are_refused(tmp_path: Path) -> None:
    folder = annotate(tmp_path, "10.012", 7, "ribosome", [(1, 2, 3)], ground_truth_status=True)
    annotate(tmp_path, "10.012", 8, "cytosolic ribosome", [(1, 2, 3)], ground_truth_status=True)
    with pytest.raises(FormatError, match="both hold 'ribosome'"):
        read_portal_picks(str(folder), "TS_1")


def test_a_path_without_a_spacing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ribosome_point.ndjson").write_text("")
    with pytest.raises(FormatError, match="no VoxelSpacing folder"):
        read_portal_picks(str(tmp_path / "ribosome_point.ndjson"), "TS_1")


def test_listing_takes_zarr_before_mrc_and_truth_from_any_spacing(tmp_path: Path) -> None:
    put_tomogram(tmp_path, "10.012", 100, "TS_1.zarr", "TS_1.mrc")
    put_tomogram(tmp_path, "10.012", 101, "TS_1.mrc")
    put_tomogram(tmp_path, "4.990", 102, "TS_1.zarr")
    truth = annotate(tmp_path, "4.990", 5, "ribosome", [(1, 1, 1)], ground_truth_status=True)
    annotate(tmp_path, "10.012", 6, "ribosome", [(1, 1, 1)], ground_truth_status=False)
    found = list_portal_tomograms(str(tmp_path), "TS_1")
    assert [(one.spacing, one.number, one.uri.rpartition("/")[2]) for one in found] == [
        ("VoxelSpacing10.012", "100", "TS_1.zarr"),
        ("VoxelSpacing10.012", "101", "TS_1.mrc"),
        ("VoxelSpacing4.990", "102", "TS_1.zarr"),
    ]
    assert {one.annotations_uri for one in found} == {str(truth)}


def test_broken_metadata_is_named(tmp_path: Path) -> None:
    folder = annotate(tmp_path, "10.012", 6, "ribosome", [(1, 1, 1)], ground_truth_status=True)
    (folder / "6" / "ribosome-2.0.json").write_text("{}")
    with pytest.raises(FormatError, match="not the metadata of a portal annotation"):
        truth_files(str(folder))
