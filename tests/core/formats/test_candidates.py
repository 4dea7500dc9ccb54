"""Candidates tables: every peak comes back where it was, with how it was made."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tomoray.formats import checks
from tomoray.formats.candidates import ABOUT, SCHEMA, encode_candidates, read_candidates
from tomoray.tomogram import FormatError, Picks

RNG = np.random.default_rng(0)
PICKS = Picks(
    "TS_5_4", RNG.uniform(0, 6000, (50, 3)), RNG.choice(["ribosome", "virus-like-particle", "bêta"], 50), RNG.uniform(0.02, 1, 50).astype(np.float32)
)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_candidates_round_trip_exactly(tmp_path: Path) -> None:
    about = {"model": "abc123", "window": {"tile_vox": 96, "views": 4}, "floor": 0.02}
    picks, read_about = read_candidates(write(tmp_path / "t.parquet", encode_candidates(PICKS, about)))
    assert picks.run == "TS_5_4"
    np.testing.assert_array_equal(picks.positions_zyx, PICKS.positions_zyx)
    np.testing.assert_array_equal(picks.scores, PICKS.scores)
    assert picks.names.tolist() == PICKS.names.tolist()
    assert read_about == {"run": "TS_5_4", **about}


def test_columns_are_named_by_axis_so_that_others_can_read_them(tmp_path: Path) -> None:
    one = Picks("r", np.array([[1.0, 2.0, 3.0]]), np.array(["x"]), np.array([0.5]))
    table = pq.read_table(io.BytesIO(encode_candidates(one, {})))
    assert table.to_pylist() == [{"run": "r", "particle": "x", "z": 1.0, "y": 2.0, "x": 3.0, "score": 0.5}]
    assert table.schema.names == SCHEMA.names


def test_a_tomogram_without_candidates_has_a_table_that_knows_its_run(tmp_path: Path) -> None:
    picks, about = read_candidates(write(tmp_path / "t.parquet", encode_candidates(Picks.concatenate("TS_9", []), {"floor": 0.5})))
    assert (picks.run, len(picks)) == ("TS_9", 0)
    assert about["floor"] == 0.5


def test_equal_candidates_give_equal_bytes() -> None:
    assert encode_candidates(PICKS, {"a": 1}) == encode_candidates(PICKS, {"a": 1})


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"rubbish", encode_candidates(PICKS, {})[:-20], encode_candidates(PICKS, {})[20:]])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(FormatError, match=r"t.parquet: not a Parquet file \(.*\); give a table that `tomoray pick` wrote"):
        read_candidates(write(tmp_path / "t.parquet", content))


def test_other_tables_are_refused(tmp_path: Path) -> None:
    table = pq.read_table(io.BytesIO(encode_candidates(PICKS, {})))
    with pytest.raises(FormatError, match=r"not a candidates table, it lacks score, z; give one that `tomoray pick` wrote"):
        read_candidates(write(tmp_path / "t.parquet", parquet(table.drop_columns(["z", "score"]))))
    with pytest.raises(FormatError, match="it lacks its metadata"):
        read_candidates(write(tmp_path / "t.parquet", parquet(table.replace_schema_metadata({}))))
    assert ABOUT in table.schema.metadata


def test_tables_that_memory_cannot_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row, one value ten million times: kilobytes in the file. Planted: only rows counted, or the size of the file."""
    monkeypatch.setattr(checks, "memory_bytes", lambda: 10**8)
    table = pq.read_table(io.BytesIO(encode_candidates(PICKS, {}))).slice(0, 1)
    many = pa.ListArray.from_arrays(pa.array([0, 10**7], pa.int32()), pa.array(np.zeros(10**7, np.int8)))
    content = parquet(table.append_column("more", many))
    assert len(content) < 10**5
    with pytest.raises(FormatError, match=r"640,[\d,]+ bytes of values are asked for and this machine has 100,000,000"):
        read_candidates(write(tmp_path / "t.parquet", content))
    assert len(read_candidates(write(tmp_path / "t.parquet", encode_candidates(PICKS, {})))[0]) == len(PICKS)


def test_a_missing_table_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.parquet: there is no such file"):
        read_candidates(tmp_path / "nowhere.parquet")
