"""The catalogue: what is written comes back, broken tables are named, and no run is in two splits."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tomoray.catalogue import (
    CatalogueRow,
    assign_splits,
    catalogue_version,
    draw_clicks,
    read_catalogue,
    read_row_picks,
    with_clicks,
    write_catalogue,
)
from tomoray.config import ConfigError
from tomoray.formats.copick import write_copick_picks
from tomoray.formats.czii import write_czii_csv
from tomoray.tomogram import FormatError, Picks

ROW = CatalogueRow(
    tomogram_id="TS_1-10.000-denoised",
    run="TS_1",
    uri="s3://bucket/TS_1.zarr",
    shape_zyx=(184, 630, 630),
    dtype="float32",
    voxel_angstrom=10.012444,
    mean=-1e-9,
    std=4.5e-6,
    minimum=-7e-5,
    maximum=3e-5,
    contrast="dark",
    contrast_guessed=True,
    split="train",
    picks_uri="s3://bucket/Picks",
    particles={"ribosome": 31, "thyroglobulin": 0},
)


def rows_of(labelled: int, unlabelled: int = 0, per_run: int = 1) -> list[CatalogueRow]:
    runs = [(f"L{i}", "picks.csv") for i in range(labelled)] + [(f"U{i}", "") for i in range(unlabelled)]
    return [replace(ROW, tomogram_id=f"{run}-{kind}", run=run, picks_uri=picks, split="") for run, picks in runs for kind in range(per_run)]


def splits_of(rows: Sequence[CatalogueRow]) -> dict[str, set[str]]:
    return {run: {row.split for row in rows if row.run == run} for run in {row.run for row in rows}}


def test_rows_round_trip(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, tomogram_id="TS_2", run="TS_2", picks_uri="", split="unlabelled", particles={}, contrast="bright")]
    write_catalogue(str(tmp_path / "new" / "catalogue.parquet"), rows)
    assert read_catalogue(str(tmp_path / "new" / "catalogue.parquet")) == rows
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["catalogue.parquet"]


def test_the_version_is_that_of_what_a_catalogue_says(tmp_path: Path) -> None:
    """In any order, after it was written and read, and wherever the files lie; each fact counts. Planted: a hash that differs per process."""
    other = replace(ROW, tomogram_id="TS_2", run="TS_2", particles={"thyroglobulin": 0, "ribosome": 31})
    write_catalogue(tmp_path / "c.parquet", [other, ROW])
    version = catalogue_version([ROW, other])
    assert version == catalogue_version(read_catalogue(tmp_path / "c.parquet")) == "047852afd881175f"
    moved = [replace(row, uri=f"/copy/{row.run}", picks_uri="/copy/Picks") for row in (ROW, other)]
    assert catalogue_version(moved) == version
    changes = ({"mean": 0.0}, {"split": "test"}, {"particles": {"ribosome": 32}}, {"voxel_angstrom": 10.0}, {"contrast": "bright"}, {"run": "x"})
    assert len({version, *(catalogue_version([replace(ROW, **change), other]) for change in changes)}) == len(changes) + 1


def test_rows_round_trip_through_s3(s3_bucket: str) -> None:
    write_catalogue(f"{s3_bucket}/catalogue.parquet", [ROW])
    assert read_catalogue(f"{s3_bucket}/catalogue.parquet") == [ROW]


def test_any_tool_may_write_the_table(tmp_path: Path) -> None:
    # other writers make columns nullable, integers wide, lists of any length, and add columns of their own
    write_catalogue(str(tmp_path / "c.parquet"), [ROW])
    table = pa.Table.from_pylist(pq.read_table(tmp_path / "c.parquet").drop(["particles"]).to_pylist())
    counts = pa.array([list(ROW.particles.items())], pa.map_(pa.string(), pa.int64()))
    pq.write_table(table.append_column("particles", counts).append_column("note", pa.array(["mine"])), tmp_path / "c.parquet")
    assert read_catalogue(str(tmp_path / "c.parquet")) == [ROW]


def test_all_missing_columns_are_named(tmp_path: Path) -> None:
    write_catalogue(str(tmp_path / "c.parquet"), [ROW])
    pq.write_table(pq.read_table(tmp_path / "c.parquet").drop(["std", "voxel_angstrom"]), tmp_path / "c.parquet")
    with pytest.raises(FormatError, match="no column voxel_angstrom, std"):
        read_catalogue(str(tmp_path / "c.parquet"))


def test_missing_values_and_other_types_are_refused(tmp_path: Path) -> None:
    write_catalogue(str(tmp_path / "c.parquet"), [ROW])
    table = pq.read_table(tmp_path / "c.parquet")
    position = table.column_names.index("mean")
    pq.write_table(table.set_column(position, "mean", pa.array([None], pa.float64())), tmp_path / "null.parquet")
    with pytest.raises(FormatError, match="missing values in mean"):
        read_catalogue(str(tmp_path / "null.parquet"))
    pq.write_table(table.set_column(position, "mean", pa.array(["much"])), tmp_path / "text.parquet")
    with pytest.raises(FormatError, match="column of another type"):
        read_catalogue(str(tmp_path / "text.parquet"))


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.parquet").write_text("id,run\n")
    with pytest.raises(FormatError, match="not a Parquet file"):
        read_catalogue(str(tmp_path / "c.parquet"))


def test_an_empty_catalogue_and_repeated_ids_are_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "c.parquet")
    with pytest.raises(FormatError, match="without rows"):
        write_catalogue(uri, [])
    with pytest.raises(FormatError, match=r"TS_1-10\.000-denoised more than once"):
        write_catalogue(uri, [ROW, ROW])
    assert not list(tmp_path.iterdir())
    write_catalogue(uri, [ROW])
    pq.write_table(pq.read_table(uri).slice(0, 0), uri)
    with pytest.raises(FormatError, match="without rows"):
        read_catalogue(uri)


@pytest.mark.parametrize("wrong", [{"split": "training"}, {"contrast": "grey"}])
def test_words_outside_the_vocabulary_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(FormatError, match="must be one of"):
        replace(ROW, **wrong)


def test_picks_are_read_from_csv_json_and_folder_alike(tmp_path: Path) -> None:
    picks = Picks("TS_1", np.array([[100.0, 200.0, 300.0], [50.0, 60.0, 70.0]]), np.array(["ribosome"] * 2))
    other = Picks("TS_2", np.array([[1.0, 2.0, 3.0]]), np.array(["ribosome"]))
    write_czii_csv(str(tmp_path / "many.csv"), [other, picks])
    write_copick_picks(str(tmp_path / "Picks" / "ribosome.json"), picks, particle="ribosome")
    for uri in (tmp_path / "many.csv", tmp_path / "Picks" / "ribosome.json", tmp_path / "Picks"):
        back = read_row_picks(replace(ROW, picks_uri=str(uri)))
        assert back.run == "TS_1"
        np.testing.assert_array_equal(back.positions_zyx, picks.positions_zyx)


def test_picks_of_another_tomogram_are_refused(tmp_path: Path) -> None:
    far = Picks("TS_1", np.array([[100.0, 200.0, 6400.0]]), np.array(["ribosome"]))
    write_czii_csv(str(tmp_path / "p.csv"), [far])
    with pytest.raises(FormatError, match="1 of 1 picks lie outside"):
        read_row_picks(replace(ROW, picks_uri=str(tmp_path / "p.csv")))
    with pytest.raises(FormatError, match="no picks of run 'TS_9'"):
        read_row_picks(replace(ROW, run="TS_9", picks_uri=str(tmp_path / "p.csv")))
    with pytest.raises(FormatError, match="no picks are known"):
        read_row_picks(replace(ROW, picks_uri=""))


def test_fractions_split_by_run() -> None:
    # split by tomogram instead, and two reconstructions of one run would lie on both sides
    rows = assign_splits(rows_of(10, 3, per_run=4), validation=0.2, test=0.1, seed=1)
    splits = splits_of(rows)
    assert all(len(found) == 1 for found in splits.values())
    counts = [next(iter(found)) for found in splits.values()]
    assert [counts.count(name) for name in ("train", "validation", "test", "unlabelled")] == [7, 2, 1, 3]
    assert splits_of(assign_splits(rows[::-1], validation=0.2, test=0.1, seed=1)) == splits
    assert any(splits_of(assign_splits(rows, validation=0.2, test=0.1, seed=seed)) != splits for seed in range(2, 5))


def test_names_split_as_told_and_fractions_take_from_the_rest() -> None:
    rows = assign_splits(rows_of(4), validation=["L2"], test=0.25)
    splits = splits_of(rows)
    assert splits["L2"] == {"validation"}
    assert sorted(next(iter(found)) for found in splits.values()) == ["test", "train", "train", "validation"]


def test_an_unlabelled_tomogram_of_a_held_out_run_is_left_out() -> None:
    bare = replace(ROW, tomogram_id="again", run="L0", picks_uri="")
    assert assign_splits([*rows_of(2), bare], validation=["L0"])[-1].split == ""
    assert assign_splits([*rows_of(2), bare], validation=["L1"])[-1].split == "unlabelled"


def test_a_fraction_takes_one_run_but_never_the_last() -> None:
    assert [row.split for row in assign_splits(rows_of(1), validation=0.2)] == ["train"]
    assert sorted(row.split for row in assign_splits(rows_of(2), validation=0.01, test=0.9)) == ["test", "train"]
    assert sorted(row.split for row in assign_splits(rows_of(3), validation=0.01)) == ["train", "train", "validation"]


def test_without_labels_all_are_unlabelled() -> None:
    assert {row.split for row in assign_splits(rows_of(0, 3), validation=0.2)} == {"unlabelled"}


@pytest.mark.parametrize(
    ("validation", "test", "says"),
    [
        (["L9", "U0"], 0.0, "no picks of run L9, U0"),
        (["L0"], ["L0"], "both in validation and in test"),
        (["L0", "L1"], 0.0, "at least one must be left"),
        (1.5, 0.0, "fraction from 0 to below 1"),
        ("L0", 0.0, r"write \['L0'\]"),
    ],
)
def test_splits_that_cannot_be_are_refused(validation: float | list[str], test: float | list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        assign_splits(rows_of(2, 1), validation=validation, test=test)


def crowd(run: str = "TS_1") -> Picks:
    """Thirty ribosomes and two proteasomes in turn, told apart by their z."""
    names = ["proteasome" if place in (3, 20) else "ribosome" for place in range(32)]
    return Picks(run, np.arange(32.0)[:, None] * [1, 0, 0], np.array(names))


def test_clicks_are_some_of_each_class_drawn_by_seed_and_run() -> None:
    """Planted: the first ones, who lie together in many files; one seed for all tomograms; a draw that takes a class's share of another."""
    drawn = {(run, seed): draw_clicks(crowd(run), 5, seed) for run in ("TS_1", "TS_2") for seed in (0, 1)}
    places = {key: tuple(picks.of("ribosome").positions_zyx[:, 0].astype(int).tolist()) for key, picks in drawn.items()}
    assert len(set(places.values())) == 4
    assert all(len(set(found)) == 5 and max(found) > 5 and found == tuple(sorted(found)) for found in places.values())
    assert {len(picks.of("proteasome")) for picks in drawn.values()} == {2}, "all where there are fewer"
    ribosomes = draw_clicks(crowd().of("ribosome"), 5, 0)
    np.testing.assert_array_equal(ribosomes.positions_zyx[:, 0], places["TS_1", 0])
    more = draw_clicks(crowd(), 12, 0).of("ribosome").positions_zyx[:, 0]
    assert set(places["TS_1", 0]) < set(more), "who clicks on keeps what was clicked"


def test_a_row_shows_what_was_clicked(tmp_path: Path) -> None:
    """Planted: counts of all picks, from which a method takes how many are marked; a wish written into the catalogue."""
    write_czii_csv(str(tmp_path / "p.csv"), [crowd()])
    row = replace(ROW, picks_uri=str(tmp_path / "p.csv"), particles={"ribosome": 30, "proteasome": 2})
    shown = with_clicks(row, 4, seed=0)
    assert shown.particles == {"ribosome": 4, "proteasome": 2}
    assert len(read_row_picks(shown)) == 6
    assert len(read_row_picks(row)) == 32
    assert with_clicks(row, 0, seed=3) is row
    with pytest.raises(AssertionError):
        write_catalogue(str(tmp_path / "c.parquet"), [shown])
