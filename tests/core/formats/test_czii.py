"""The CZII layout and CSV, on tables made here and on the real labels of three tomograms."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tomoray.formats.copick import write_copick_picks
from tomoray.formats.czii import picks_folder, read_czii_csv, read_czii_picks, tomogram_uri, write_czii_csv
from tomoray.tomogram import FormatError, Picks, Tomogram, check_picks_fit

B = Picks("TS_2", np.array([[1.5, 2.25, 3.125], [1 / 3, 2 / 3, 0.1]]), np.array(["ribosome", "virus-like-particle"]))
A = Picks("TS_1", np.array([[10.0, 20.0, 30.0]]), np.array(["thyroglobulin"]))


def text(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_submission_is_exactly_what_the_challenge_takes(tmp_path: Path) -> None:
    write_czii_csv(str(tmp_path / "s.csv"), [A, B])
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "id,experiment,particle_type,x,y,z"
    assert lines[1:3] == ["0,TS_1,thyroglobulin,30.0,20.0,10.0", "1,TS_2,ribosome,3.125,2.25,1.5"]
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "1", "2"]


def test_csv_round_trips_exactly_and_comes_back_by_run(tmp_path: Path) -> None:
    write_czii_csv(str(tmp_path / "s.csv"), [B, A])
    back = read_czii_csv(str(tmp_path / "s.csv"))
    assert [picks.run for picks in back] == ["TS_1", "TS_2"]
    np.testing.assert_array_equal(back[1].positions_zyx, B.positions_zyx)
    assert back[1].names.tolist() == B.names.tolist()
    assert back[1].scores.tolist() == [1, 1]


@pytest.mark.parametrize("column", ["score", "conf"])
def test_scores_are_read_under_both_names(tmp_path: Path, column: str) -> None:
    uri = text(tmp_path / "s.csv", f"experiment,{column},particle_type,z,y,x", "TS_1,0.25,virus,1,2,3", "TS_1,,virus,1,2,3")
    (picks,) = read_czii_csv(uri)
    assert picks.scores.tolist() == [0.25, 1]
    assert picks.positions_zyx[0].tolist() == [1, 2, 3]


def test_a_byte_order_mark_and_a_table_without_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes("\ufeffexperiment,particle_type,x,y,z\r\n".encode())
    assert read_czii_csv(str(path)) == []


def test_all_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no column particle_type, z"):
        read_czii_csv(text(tmp_path / "s.csv", "experiment,x,y", "TS_1,1,2"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").touch()
    with pytest.raises(FormatError, match="an empty file"):
        read_czii_csv(str(tmp_path / "s.csv"))


def test_faulty_lines_are_all_named(tmp_path: Path) -> None:
    uri = text(
        tmp_path / "s.csv",
        "experiment,particle_type,x,y,z",
        "TS_1,virus,1,2,3",
        "TS_1,virus,1,two,3",
        "TS_1,virus,1",
        ",virus,1,2,3",
        "TS_1,virus,nan,2,3",
    )
    with pytest.raises(FormatError) as caught:
        read_czii_csv(uri)
    assert [f"line {n}:" in str(caught.value) for n in range(2, 7)] == [False, True, True, True, True]


def test_picks_without_a_run_cannot_be_submitted(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="without a run"):
        write_czii_csv(str(tmp_path / "s.csv"), [Picks("", A.positions_zyx, A.names)])
    assert not list(tmp_path.iterdir())


def test_layout_paths() -> None:
    assert tomogram_uri("s3://bucket/train", "TS_1") == "s3://bucket/train/static/ExperimentRuns/TS_1/VoxelSpacing10.000/denoised.zarr"
    assert tomogram_uri("/data", "TS_1", "wbp") == "/data/static/ExperimentRuns/TS_1/VoxelSpacing10.000/wbp.zarr"
    assert picks_folder("/data", "TS_1") == "/data/overlay/ExperimentRuns/TS_1/Picks"


def test_a_folder_of_two_users_needs_a_choice(tmp_path: Path) -> None:
    for user, shift in (("curation", 0.0), ("tomoray", 5.0)):
        picks = Picks("TS_1", A.positions_zyx + shift, A.names)
        write_copick_picks(str(tmp_path / f"{user}_0_thyroglobulin.json"), picks, particle="thyroglobulin", user_id=user, session_id="0")
    with pytest.raises(FormatError, match="both hold 'thyroglobulin'"):
        read_czii_picks(str(tmp_path), "TS_1")
    chosen = read_czii_picks(str(tmp_path / "tomoray_0_*.json"), "TS_1")
    np.testing.assert_array_equal(chosen.positions_zyx, A.positions_zyx + 5)


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no picks there"):
        read_czii_picks(str(tmp_path), "TS_1")


def test_the_real_labels_agree_between_json_and_csv(shared_data: Path) -> None:
    table = read_czii_csv(str(shared_data / "czii_picks" / "picks.csv"))
    assert [picks.run for picks in table] == ["TS_5_4", "TS_69_2", "TS_6_4"]
    assert sum(map(len, table)) == 476
    totals = Counter(name for picks in table for name in picks.names.tolist())
    assert totals == {
        "apo-ferritin": 139,
        "beta-amylase": 31,
        "beta-galactosidase": 40,
        "ribosome": 142,
        "thyroglobulin": 94,
        "virus-like-particle": 30,
    }
    volume = np.broadcast_to(np.int8(0), (184, 630, 630))
    for picks in table:
        files = read_czii_picks(picks_folder(str(shared_data / "czii_picks"), picks.run), picks.run)
        assert sorted(zip(files.names, *files.positions_zyx.T, strict=True)) == sorted(zip(picks.names, *picks.positions_zyx.T, strict=True))
        check_picks_fit(files, Tomogram(picks.run, volume, (10.012,) * 3))


def test_the_real_picks_of_another_run_are_refused(shared_data: Path) -> None:
    with pytest.raises(FormatError, match="'TS_5_4', where those of 'TS_6_4'"):
        read_czii_picks(picks_folder(str(shared_data / "czii_picks"), "TS_5_4"), "TS_6_4")
