"""The failures table: every reason comes back, and no failure is a table too."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tomoray.formats.failures import Failure, read_failures, write_failures

FAILURES = [
    Failure("abc/TS_1", "s3://bucket/TS_1.zarr", "3 of 99 values are NaN; all must be finite: reconstruct it again"),
    Failure("TS_2", "", 'quotes " and\nlines and ü'),
]


def test_failures_round_trip(tmp_path: Path) -> None:
    write_failures(tmp_path / "new" / "failures.parquet", FAILURES)
    assert read_failures(str(tmp_path / "new" / "failures.parquet")) == FAILURES


def test_no_failures_are_an_empty_table_with_its_columns(tmp_path: Path) -> None:
    uri = tmp_path / "failures.parquet"
    write_failures(uri, FAILURES)
    write_failures(uri, [])  # the rerun replaces what the run before could not do
    assert read_failures(uri) == []
    assert pq.read_schema(uri).names == ["tomogram_id", "uri", "reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["failures.parquet"]


def test_a_missing_table_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"failures\.parquet: there is no such file"):
        read_failures(tmp_path / "failures.parquet")
