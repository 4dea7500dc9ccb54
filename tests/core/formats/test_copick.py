"""copick picks: what comes back is what was written, and what copick may leave out is understood."""

import json
from pathlib import Path

import numpy as np
import pytest

from tomoray.formats.copick import join_classes, picks_file_name, read_copick_picks, read_copick_project, write_copick_picks
from tomoray.tomogram import FormatError, Picks

PICKS = Picks(
    "TS_1", np.array([[1.1, 2.2, 3.3], [4.0, 5.0, 6.5], [7.0, 8.0, 9.0]]), np.array(["ribosome", "virus", "ribosome"]), np.array([0.25, 0.5, 1 / 3])
)


def write(path: Path, **changes: object) -> str:
    path.write_text(json.dumps({"pickable_object_name": "ribosome", "user_id": "a", "session_id": "0", "points": []} | changes))
    return str(path)


def test_one_class_round_trips_exactly(tmp_path: Path) -> None:
    uri = str(tmp_path / "Picks" / picks_file_name("ribosome"))
    write_copick_picks(uri, PICKS, particle="ribosome", voxel_angstrom=10.0)
    back = read_copick_picks(uri)
    np.testing.assert_array_equal(back.positions_zyx, PICKS.of("ribosome").positions_zyx)
    np.testing.assert_array_equal(back.scores, [0.25, 1 / 3])
    assert back.run == "TS_1"
    assert set(back.names.tolist()) == {"ribosome"}


def test_the_file_is_what_copick_reads(tmp_path: Path) -> None:
    uri = tmp_path / "tomoray_1_virus.json"
    write_copick_picks(str(uri), PICKS, particle="virus", voxel_angstrom=10.012)
    assert json.loads(uri.read_text()) == {
        "pickable_object_name": "virus",
        "user_id": "tomoray",
        "session_id": "1",
        "run_name": "TS_1",
        "voxel_spacing": 10.012,
        "unit": "angstrom",
        "points": [
            {
                "location": {"x": 6.5, "y": 5.0, "z": 4.0},
                "transformation_": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
                "instance_id": 0,
                "score": 0.5,
            }
        ],
        "trust_orientation": False,
    }


@pytest.mark.parametrize("points", [None, []])
def test_no_points_is_an_empty_set_of_picks(tmp_path: Path, points: object) -> None:
    picks = read_copick_picks(write(tmp_path / "p.json", points=points))
    assert len(picks) == 0
    assert picks.run == ""


def test_a_missing_or_null_score_is_one(tmp_path: Path) -> None:
    location = {"x": 1, "y": 2, "z": 3}
    picks = read_copick_picks(write(tmp_path / "p.json", points=[{"location": location}, {"location": location, "score": None}]))
    np.testing.assert_array_equal(picks.scores, [1, 1])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"unit": "voxel"}, "'voxel'.*must be in angstrom"),
        ({"points": [{"location": {"x": 1, "y": 2}}]}, r"points\.0\.location\.z"),
        ({"points": [{"location": {"x": 1, "y": 2, "z": float("nan")}}]}, r"points\.0\.location\.z"),
        ({"pickable_object_name": None}, "pickable_object_name"),
    ],
)
def test_other_contents_are_refused_with_the_place(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(FormatError, match=says):
        read_copick_picks(write(tmp_path / "p.json", **changes))


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(b"\x00\x01 not json")
    with pytest.raises(FormatError, match="not a copick picks file"):
        read_copick_picks(str(tmp_path / "p.json"))


@pytest.mark.parametrize(("particle", "user", "session"), [("apo_ferritin", "a", "1"), ("virus", "a_b", "1"), ("virus", "a", ""), ("a/b", "a", "1")])
def test_names_that_copick_cannot_hold_are_refused(tmp_path: Path, particle: str, user: str, session: str) -> None:
    with pytest.raises(FormatError, match="without underscores"):
        write_copick_picks(str(tmp_path / "p.json"), PICKS, particle=particle, user_id=user, session_id=session)
    assert not list(tmp_path.iterdir())


def test_a_class_in_two_files_is_refused() -> None:
    # concatenating the picks of two people would count every particle twice
    with pytest.raises(FormatError, match="both hold 'ribosome'"):
        join_classes("TS_1", {"a.json": PICKS.of("ribosome"), "b.json": PICKS.of("ribosome")})


def test_a_file_of_another_run_is_refused() -> None:
    with pytest.raises(FormatError, match="'TS_1', where those of 'TS_2'"):
        join_classes("TS_2", {"a.json": PICKS})


def test_configuration_names_the_roots(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"config_type": "filesystem", "static_root": "local:///data/static", "overlay_root": "overlay/", "pickable_objects": []})
    )
    assert read_copick_project(str(config)) == ("/data/static", str(tmp_path / "overlay"))
    config.write_text(json.dumps({"overlay_root": "s3://bucket/project"}))
    assert read_copick_project(str(config)) == ("s3://bucket/project", "s3://bucket/project")
    config.write_text(json.dumps({"config_type": "cryoet_data_portal", "overlay_root": "local:///x", "dataset_ids": [10440]}))
    with pytest.raises(FormatError, match=r"'cryoet_data_portal'.*filesystem"):
        read_copick_project(str(config))


@pytest.mark.parametrize(("name", "run", "particle"), [("copick.json", "", "ribosome"), ("copick_instance.json", "Position_94_Vol", "testobject")])
def test_the_portals_own_files_are_read(shared_data: Path, name: str, run: str, particle: str) -> None:
    path = shared_data / "portal" / name
    picks = read_copick_picks(str(path))
    first = json.loads(path.read_text())["points"][0]["location"]
    assert (picks.run, picks.names[0]) == (run, particle)
    np.testing.assert_array_equal(picks.positions_zyx[0], [first["z"], first["y"], first["x"]])
