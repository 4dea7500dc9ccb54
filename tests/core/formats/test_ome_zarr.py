"""OME-Zarr: every reference vector, and faults that the tests make themselves so that they are always checked."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tomoray import storage
from tomoray.formats import checks, open_tomogram
from tomoray.formats.ome_zarr import open_ome_zarr, write_ome_zarr
from tomoray.tomogram import FormatError, Tomogram

SHAPE = (9, 10, 11)
READ = (
    "czii_scales_xyz_differ.zarr",
    "dot_separator_zlib.zarr",
    "float16_zstd.zarr",
    "ome05_zarr_v3.zarr",
    "portal_style_blosc_lz4.zarr",
    "uncompressed_big_endian.zarr",
)


def numbers(dtype: str = "f4", shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    return np.random.default_rng(1).normal(scale=40, size=shape).astype(dtype)


def check_vector(folder: Path, name: str, tomogram: Tomogram) -> None:
    expected = json.loads((folder / "expected.json").read_text())[name]
    values = tomogram.read()
    assert tomogram.shape == tuple(expected["shape_zyx"])
    assert values.dtype == np.dtype(expected["dtype"]).newbyteorder("=")
    assert values[5, 50, 40] == expected["value_z5_y50_x40"]
    assert values.sum(dtype=np.float64) == pytest.approx(expected["sum"], rel=1e-9)
    assert values.std(dtype=np.float64) == pytest.approx(expected["std"], rel=1e-6)


def make_image(path: Path, axes: str, transformations: list[dict[str, Any]], unit: str | None = "angstrom", **image: Any) -> Path:
    """Write an image of random numbers by hand, one voxel along axes other than z, y and x."""
    lengths = dict(zip("zyx", SHAPE, strict=True))
    group = zarr.create_group(path, zarr_format=2)
    array = group.create_array("0", shape=[lengths.get(axis, 1) for axis in axes], chunks=[4] * len(axes), dtype="f4")
    array[:] = numbers().transpose(["zyx".index(axis) for axis in axes if axis in "zyx"]).reshape(array.shape)
    named = [{"name": axis, "type": "space"} | ({"unit": unit} if unit else {}) for axis in axes]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": named, "datasets": [{"path": "0", "coordinateTransformations": transformations}], **image}
    ]
    return path


def scale(*sizes: float) -> dict[str, Any]:
    return {"type": "scale", "scale": list(sizes)}


def test_every_vector_is_looked_at(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "zarr" / "expected.json").read_text())
    assert {*READ, "missing_chunk.zarr", "bad_corrupt_chunk.zarr", "bad_no_multiscales.zarr"} == set(vectors)


@pytest.mark.parametrize("name", READ)
def test_vectors_that_must_be_read(shared_data: Path, name: str) -> None:
    tomogram = open_tomogram(shared_data / "zarr" / name)
    check_vector(shared_data / "zarr", name, tomogram)
    expected = json.loads((shared_data / "zarr" / "expected.json").read_text())[name]
    assert tomogram.voxel_angstrom == pytest.approx(tuple(expected["scale_zyx"] if expected["unit"] == "angstrom" else (10.52,) * 3), rel=1e-12)


def test_vector_with_a_missing_chunk(shared_data: Path) -> None:
    tomogram = open_tomogram(shared_data / "zarr" / "missing_chunk.zarr")
    with pytest.warns(UserWarning, match="1 of 12 chunks of array '0' are absent and read as 0"):
        check_vector(shared_data / "zarr", "missing_chunk.zarr", tomogram)
    assert tomogram.voxel_size_angstrom == 10.52


def test_vector_with_a_corrupt_chunk(shared_data: Path) -> None:
    tomogram = open_tomogram(shared_data / "zarr" / "bad_corrupt_chunk.zarr")
    with pytest.raises(FormatError, match=r"bad_corrupt_chunk\.zarr: chunk 0/0\.0\.0 cannot be decoded"):
        tomogram.read()


def test_vector_without_metadata(shared_data: Path) -> None:
    path = shared_data / "zarr" / "bad_no_multiscales.zarr"
    with pytest.raises(FormatError, match=r"no OME multiscales metadata.*: give voxel_angstrom"):
        open_tomogram(path)
    tomogram = open_tomogram(path, voxel_angstrom=10.52)
    with pytest.warns(UserWarning, match="1 of 12 chunks"):
        check_vector(shared_data / "zarr", "bad_no_multiscales.zarr", tomogram)
    assert tomogram.voxel_size_angstrom == 10.52


def test_portal_sample_with_axes_in_the_order_x_y_z_and_no_unit(shared_data: Path) -> None:
    folder = shared_data / "portal" / "sample_tomos"
    with pytest.warns(UserWarning, match="without a known unit"):
        tomogram = open_tomogram(folder / "input_omezarr.zarr")
    assert tomogram.voxel_size_angstrom == 14.08
    stored = zarr.open_array(folder / "input_omezarr.zarr" / "0", mode="r")[:]
    assert np.array_equal(tomogram.read(), stored.transpose(2, 1, 0))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "f2", "f4", ">f4", "f8"])
def test_written_files_read_back_the_same(tmp_path: Path, dtype: str, zarr_format: Any) -> None:
    values = np.abs(numbers()).astype(dtype)
    path = tmp_path / "deep" / "TS_5_4.zarr"
    for _ in range(2):  # the second replaces the first
        write_ome_zarr(path, Tomogram("run", values, (10.0, 11.0, 12.5), (1.0, -2.0, 3.0)), zarr_format=zarr_format, chunk_vox=4)
    tomogram = open_tomogram(path)
    assert tomogram.name == "TS_5_4"
    assert tomogram.uri == str(path)
    assert tomogram.read().dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(tomogram.read(), values)
    assert tomogram.voxel_angstrom == (10.0, 11.0, 12.5)
    assert tomogram.origin_angstrom == (1.0, -2.0, 3.0)
    assert [entry.name for entry in path.parent.iterdir()] == ["TS_5_4.zarr"]


def test_layout_is_the_one_that_others_read(tmp_path: Path) -> None:
    """As the CryoET Data Portal writes: zarr v2, Blosc-LZ4, chunks under z/y/x, unit angstrom."""
    write_ome_zarr(tmp_path / "a.zarr", Tomogram("run", numbers(), (10.0, 10.0, 10.0)), chunk_vox=8, levels=2)
    array = json.loads((tmp_path / "a.zarr" / "0" / ".zarray").read_text())
    assert (array["zarr_format"], array["dtype"], array["chunks"], array["dimension_separator"]) == (2, "<f4", [8, 8, 8], "/")
    assert (array["compressor"]["id"], array["compressor"]["cname"]) == ("blosc", "lz4")
    assert (tmp_path / "a.zarr" / "0" / "1" / "1" / "1").is_file()
    (image,) = json.loads((tmp_path / "a.zarr" / ".zattrs").read_text())["multiscales"]
    assert image["version"] == "0.4"
    assert image["axes"] == [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    assert [(level["path"], level["coordinateTransformations"]) for level in image["datasets"]] == [
        ("0", [scale(10, 10, 10)]),
        ("1", [scale(20, 20, 20)]),
    ]
    write_ome_zarr(tmp_path / "b.zarr", Tomogram("run", numbers(), (10.0, 10.0, 10.0)), zarr_format=3)
    attributes = json.loads((tmp_path / "b.zarr" / "zarr.json").read_text())["attributes"]
    assert attributes["ome"]["version"] == "0.5"


def test_levels_are_means(tmp_path: Path) -> None:
    values = numbers(shape=(8, 8, 9))
    write_ome_zarr(tmp_path / "a.zarr", Tomogram("a", values, (10.0, 10.0, 10.0)), levels=2)
    half = open_ome_zarr(tmp_path / "a.zarr", name="a", level=1)
    assert half.shape == (4, 4, 5)
    assert half.voxel_size_angstrom == 20.0
    assert half.read()[1, 2, 3] == pytest.approx(values[2:4, 4:6, 6:8].mean(), rel=1e-6)
    assert half.read()[1, 2, 4] == pytest.approx(values[2:4, 4:6, 8:9].mean(), rel=1e-6)  # the last plane counts twice
    with pytest.raises(FormatError, match="level 2 was asked for; the image has 2, counted from 0"):
        open_ome_zarr(tmp_path / "a.zarr", name="a", level=2)
    with pytest.raises(ValueError, match=r"4 levels of a volume .*ask for fewer"):
        write_ome_zarr(tmp_path / "a.zarr", Tomogram("a", values, (10.0, 10.0, 10.0)), levels=4)


def test_levels_of_integers_are_rounded(tmp_path: Path) -> None:
    values = np.zeros((2, 2, 4), np.int8) + np.array([-3, -4, 126, 127], np.int8)
    write_ome_zarr(tmp_path / "a.zarr", Tomogram("a", values.repeat(2, axis=0).repeat(2, axis=1), (1.0, 1.0, 1.0)), levels=2)
    assert open_ome_zarr(tmp_path / "a.zarr", name="a", level=1).read()[0, 0].tolist() == [-4, 126]  # halves to the even number


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Tomogram]:
    """The same volume written in both zarr formats."""
    folder = tmp_path_factory.mktemp("pair")
    for zarr_format in (2, 3):
        write_ome_zarr(folder / f"{zarr_format}.zarr", Tomogram("a", numbers(), (10.0, 10.0, 10.0)), zarr_format=zarr_format, chunk_vox=4)  # type: ignore[arg-type]
    return [open_tomogram(folder / f"{zarr_format}.zarr") for zarr_format in (2, 3)]


@given(box=st.tuples(*[st.slices(length).filter(lambda s: (s.step or 1) == 1) for length in SHAPE]))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_boxes_are_slices_of_the_whole(pair: list[Tomogram], box: tuple[slice, slice, slice]) -> None:
    for tomogram in pair:
        assert np.array_equal(tomogram.read(box), numbers()[box])


@pytest.mark.parametrize("axes", ["zyx", "xyz", "yxz", "czyx", "tczyx", "zcyx"])
def test_axes_are_brought_into_order(tmp_path: Path, axes: str) -> None:
    sizes = {"z": 3.0, "y": 2.0, "x": 1.0}
    path = make_image(tmp_path / "a.zarr", axes, [scale(*(sizes.get(axis, 1.0) for axis in axes))])
    tomogram = open_tomogram(path)
    assert tomogram.voxel_angstrom == (3.0, 2.0, 1.0)
    assert np.array_equal(tomogram.read(), numbers())
    assert np.array_equal(tomogram.read(np.s_[2:5, 0:3, 7:11]), numbers()[2:5, 0:3, 7:11])


@pytest.mark.parametrize("axes", ["zy", "zyxx", "zyq"])
def test_axes_that_make_no_tomogram(tmp_path: Path, axes: str) -> None:
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    group.create_array("0", shape=[4] * len(axes), dtype="f4")
    group.attrs["multiscales"] = [{"axes": [{"name": axis} for axis in axes], "datasets": [{"path": "0"}]}]
    with pytest.raises(FormatError, match=r"axes z, y.* a tomogram has z, y and x, .*: give one volume"):
        open_tomogram(tmp_path / "a.zarr")


def test_several_channels_are_refused(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
    group.create_array("0", shape=(2, 4, 4, 4), dtype="f4")
    group.attrs["ome"] = {"multiscales": [{"axes": [{"name": axis} for axis in "czyx"], "datasets": [{"path": "0"}]}]}
    with pytest.raises(FormatError, match=r"axes c, z, y, x of an array of shape \(2, 4, 4, 4\)"):
        open_tomogram(tmp_path / "a.zarr")


def test_transformations_multiply_and_units_become_angstrom(tmp_path: Path) -> None:
    shift = {"type": "translation", "translation": [1.0, 2.0, 3.0]}
    path = make_image(tmp_path / "a.zarr", "zyx", [scale(0.5, 0.5, 0.5), shift], "nanometer", coordinateTransformations=[scale(2, 3, 4)])
    tomogram = open_tomogram(path)
    assert tomogram.voxel_angstrom == (10.0, 15.0, 20.0)
    assert tomogram.origin_angstrom == (20.0, 60.0, 120.0)
    assert open_tomogram(make_image(tmp_path / "b.zarr", "zyx", [scale(0.001, 0.001, 0.001)], "micrometer")).voxel_size_angstrom == pytest.approx(
        10.0
    )


def test_units(tmp_path: Path) -> None:
    path = make_image(tmp_path / "a.zarr", "zyx", [scale(10, 10, 10)], unit=None)
    with pytest.warns(UserWarning, match="axes without a known unit.*taken as angstrom"):
        assert open_tomogram(path).voxel_size_angstrom == 10.0
    path = make_image(tmp_path / "b.zarr", "zyx", [scale(10, 10, 10)], unit="parsec")
    with pytest.raises(FormatError, match=r"parsec.*known units are angstrom, .*permissive=True"):
        open_tomogram(path)
    with pytest.warns(UserWarning, match="parsec"):
        assert open_tomogram(path, permissive=True).voxel_size_angstrom == 10.0


@pytest.mark.parametrize("transformations", [[], [scale(0, 0, 0)], [scale(1, -1, 1)]])
def test_images_without_a_usable_voxel_size(tmp_path: Path, transformations: list[dict[str, Any]]) -> None:
    path = make_image(tmp_path / "a.zarr", "zyx", transformations)
    with pytest.raises(FormatError, match="no usable voxel size"):
        open_tomogram(path)
    assert open_tomogram(path, voxel_angstrom=8.0).voxel_size_angstrom == 8.0


def test_a_wrong_voxel_size_is_refused_and_a_rounded_one_passes(tmp_path: Path) -> None:
    path = make_image(tmp_path / "a.zarr", "zyx", [scale(10.012, 10.012, 10.012)])
    assert open_tomogram(path, voxel_angstrom=10.0).voxel_size_angstrom == 10.012
    with pytest.raises(FormatError, match=r"voxels of 10\.01, .* 4\.99 angstrom was given; they must agree"):
        open_tomogram(path, voxel_angstrom=4.99)


def test_metadata_that_break_the_specification(tmp_path: Path) -> None:
    path = make_image(tmp_path / "a.zarr", "zyx", [scale(10, 10)])
    with pytest.raises(FormatError, match="a scale of another length than the 3 axes"):
        open_tomogram(path)
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0]["axes"] = ["z", "y", "x"]  # as OME-Zarr 0.3 had them
    (path / ".zattrs").write_text(json.dumps(attributes))
    with pytest.raises(FormatError, match=r"multiscales metadata, axes\.0: .*; it must follow OME-Zarr 0\.4 or 0\.5"):
        open_tomogram(path)
    (path / ".zattrs").write_text("{ not json")
    with pytest.raises(FormatError, match=r"a\.zarr: not a zarr group"):
        open_tomogram(path)


def test_folders_that_are_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(FormatError, match=r"empty\.zarr: not a zarr group .* holds \.zgroup and \.zattrs, or zarr\.json: copy it whole"):
        open_tomogram(tmp_path / "empty.zarr")
    path = make_image(tmp_path / "a.zarr", "zyx", [scale(1, 1, 1)])
    shutil.rmtree(path / "0")
    with pytest.raises(FormatError, match=r"a\.zarr/0: the array cannot be opened"):
        open_tomogram(path)
    zarr.create_array(tmp_path / "array.zarr", shape=SHAPE, dtype="f4", zarr_format=3)
    with pytest.raises(FormatError, match=r"array\.zarr: not a zarr group"):
        open_tomogram(tmp_path / "array.zarr")
    group = zarr.create_group(tmp_path / "complex.zarr")
    group.create_array("0", shape=SHAPE, dtype="c8")
    with pytest.raises(FormatError, match="values of type complex64; a tomogram holds real numbers"):
        open_tomogram(tmp_path / "complex.zarr", voxel_angstrom=1.0)


def test_folder_is_known_by_what_it_holds(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "volume", Tomogram("a", numbers(), (10.0, 10.0, 10.0)))
    assert np.array_equal(open_tomogram(tmp_path / "volume").read(), numbers())


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_missing_chunks_are_counted_once(tmp_path: Path, zarr_format: Any) -> None:
    path = tmp_path / "a.zarr"
    write_ome_zarr(path, Tomogram("a", np.where(numbers() > 0, 0, 0).astype("f4"), (10.0, 10.0, 10.0)), zarr_format=zarr_format, chunk_vox=4)
    assert open_tomogram(path).read().max() == 0  # chunks of nothing but zeros are written, so that there is no warning
    values = numbers()
    write_ome_zarr(path, Tomogram("a", values, (10.0, 10.0, 10.0)), zarr_format=zarr_format, chunk_vox=4)
    chunks = path / "0" / ("" if zarr_format == 2 else "c")
    (chunks / "0" / "1" / "2").unlink()
    (chunks / "2" / "2" / "2").unlink()
    tomogram = open_tomogram(path)
    with pytest.warns(UserWarning, match=r"a\.zarr: 2 of 27 chunks of array '0' are absent and read as 0") as caught:
        first = tomogram.read()
    assert len(caught) == 1
    values[0:4, 4:8, 8:11] = values[8:9, 8:10, 8:11] = 0
    assert np.array_equal(first, values)
    assert np.array_equal(tomogram.read(), values)  # without a second warning, which would be an error here


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("damage", [b"", b"hello world", None])
def test_corrupt_chunks_are_named(tmp_path: Path, zarr_format: Any, damage: bytes | None) -> None:
    path = tmp_path / "a.zarr"
    write_ome_zarr(path, Tomogram("a", numbers(), (10.0, 10.0, 10.0)), zarr_format=zarr_format, chunk_vox=4)
    chunk = path / "0" / ("" if zarr_format == 2 else "c") / "1" / "2" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20] if damage is None else damage)
    tomogram = open_tomogram(path)
    assert np.array_equal(tomogram.read(np.s_[0:4, :, :]), numbers()[0:4])  # the rest can be read
    with pytest.raises(FormatError, match=r"chunk 0/(c/)?1/2/0 cannot be decoded \(.*\); the file is damaged: fetch or write it again"):
        tomogram.read()


def test_more_than_memory_is_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("0", shape=(10**5, 10**5, 10**5), chunks=(10**3, 10**3, 10**3), dtype="f4")
    tomogram = open_tomogram(tmp_path / "a.zarr", voxel_angstrom=10.0)
    with pytest.raises(FormatError, match="4,000,000,000,000,000 bytes of values are asked for"):
        tomogram.read()
    monkeypatch.setattr(checks, "memory_bytes", lambda: 100)
    write_ome_zarr(tmp_path / "b.zarr", Tomogram("b", numbers(), (1.0, 1.0, 1.0)))
    with pytest.raises(FormatError, match="this machine has 100 bytes"):
        open_tomogram(tmp_path / "b.zarr").read()


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ((8, 8, 8), r"2,147,483,648 chunks by its metadata; a tomogram has 4,000,000 at most: write it with larger chunks"),
        ((2**14, 2**13, 2**13), r"in one chunk: 4,398,046,511,104 bytes of values are asked for"),
    ],
)
def test_shapes_that_nothing_stands_behind_are_refused(tmp_path: Path, chunks: tuple[int, ...], told: str) -> None:
    """A few bytes of metadata that claim 2**40 voxels. Planted: chunks looked for one by one when the first box is read, for hours."""
    zarr.create_group(tmp_path / "a.zarr", zarr_format=2).create_array("0", shape=(2**14, 2**13, 2**13), chunks=chunks, dtype="f4")
    with pytest.raises(FormatError, match=told):
        open_tomogram(tmp_path / "a.zarr", voxel_angstrom=10.0)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_s3_reads_the_same_boxes(s3_bucket: str, zarr_format: Any) -> None:
    uri = f"{s3_bucket}/runs/TS_1.zarr"
    write_ome_zarr(uri, Tomogram("TS_1", numbers(), (10.0, 10.0, 10.0)), zarr_format=zarr_format, chunk_vox=8)
    tomogram = open_tomogram(uri)
    assert (tomogram.name, tomogram.voxel_size_angstrom) == ("TS_1", 10.0)
    for box in (np.s_[:, :, :], np.s_[2:5, 1:4, 3:9], np.s_[0:1, :, 2:3]):
        assert np.array_equal(tomogram.read(box), numbers()[box])
    assert np.array_equal(pickle.loads(pickle.dumps(tomogram)).read(), numbers())
    storage.remove(storage.join(uri, "0", *(() if zarr_format == 2 else ("c",)), "1", "0", "1"))
    with pytest.warns(UserWarning, match="1 of 8 chunks"):
        open_tomogram(uri).read(np.s_[0:1, 0:1, 0:1])
    with pytest.raises(FileNotFoundError, match=r"runs/none\.zarr: there is no such file or folder; check .* the bucket and the endpoint"):
        open_tomogram(f"{s3_bucket}/runs/none.zarr")


@pytest.mark.parametrize(("zarr_format", "most"), [(3, 2), (2, 6)])
def test_opening_asks_a_server_for_little(s3_bucket: str, zarr_format: Any, most: int, caplog: pytest.LogCaptureFixture) -> None:
    """Planted: a group and an array opened without their format, which is fourteen requests; the size asked for before each object."""
    write_ome_zarr(f"{s3_bucket}/a.zarr", Tomogram("a", numbers(), (10.0, 10.0, 10.0)), zarr_format=zarr_format, chunk_vox=8)
    caplog.set_level("INFO", "werkzeug")  # the server's log: a line for each request
    caplog.clear()
    open_tomogram(f"{s3_bucket}/a.zarr")
    assert 0 < sum("a.zarr" in record.getMessage() for record in caplog.records) <= most


def write_sharded(path: Path | str, values: NDArray[Any], **options: Any) -> None:
    write_ome_zarr(path, Tomogram("a", values, (10.0, 10.0, 10.0)), **({"zarr_format": 3, "chunk_vox": 4, "shard_vox": 8} | options))


@pytest.mark.parametrize("dtype", ["f2", "f4", "i1"])
def test_sharded_files_read_back_the_same(tmp_path: Path, dtype: str) -> None:
    """Nine voxels along z are two layers of shards, which are written one after the other."""
    values = numbers(dtype)
    write_sharded(tmp_path / "a.zarr", values, about={"rounding": 0.5})
    assert sorted(path.name for path in (tmp_path / "a.zarr" / "0" / "c").iterdir()) == ["0", "1"]
    tomogram = open_tomogram(tmp_path / "a.zarr")
    assert np.array_equal(tomogram.read(), values)
    assert np.array_equal(tomogram.read(np.s_[3:9, 2:3, 5:11]), values[3:9, 2:3, 5:11])
    assert json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]["tomoray"] == {"rounding": 0.5}
    with pytest.raises(ValueError, match=r"shards of 6 and chunks of 4 voxels; .* hold whole chunks: give a multiple"):
        write_sharded(tmp_path / "b.zarr", values, shard_vox=6)
    with pytest.raises(ValueError, match="shards are zarr v3"):
        write_sharded(tmp_path / "b.zarr", values, zarr_format=2)


def test_a_flipped_bit_in_a_shard_is_found(tmp_path: Path) -> None:
    """Planted: checksums of the index only, which is what sharding has by itself."""
    write_sharded(tmp_path / "a.zarr", numbers())
    shard = tmp_path / "a.zarr" / "0" / "c" / "0" / "0" / "1"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(FormatError, match=r"chunk 0/c/0/0/1 cannot be decoded \(.*checksum.*\); the file is damaged"):
        open_tomogram(tmp_path / "a.zarr").read()


def test_missing_shards_are_counted(tmp_path: Path) -> None:
    """Planted: chunks that exist compared with those that the volume needs, of which a shard at its edge has fewer."""
    write_sharded(tmp_path / "a.zarr", numbers())
    open_tomogram(tmp_path / "a.zarr").read()  # without a warning
    (tmp_path / "a.zarr" / "0" / "c" / "1" / "1" / "0").unlink()
    with pytest.warns(UserWarning, match="1 of 8 shards of array '0' are absent"):
        open_tomogram(tmp_path / "a.zarr").read()


def test_s3_reads_boxes_of_shards(s3_bucket: str) -> None:
    write_sharded(f"{s3_bucket}/a.zarr", numbers())
    tomogram = open_tomogram(f"{s3_bucket}/a.zarr")
    for box in (np.s_[1:6, 3:10, 6:9], np.s_[2:3, 2:3, 2:3], np.s_[5:5, :, :]):
        assert np.array_equal(tomogram.read(box), numbers()[box])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_box_reads_the_bytes_of_its_chunks(tmp_path: Path, zarr_format: Any) -> None:
    values = numbers()
    write_ome_zarr(tmp_path / "a.zarr", Tomogram("a", values, (10.0, 10.0, 10.0)), zarr_format=zarr_format, chunk_vox=4)
    tomogram = open_tomogram(tmp_path / "a.zarr")
    before = tomogram.bytes_read
    box = np.s_[3:5, 0:4, 8:11]
    tomogram.read(box)
    parts = ("0", *(() if zarr_format == 2 else ("c",)))
    assert tomogram.bytes_read - before == sum((tmp_path / "a.zarr").joinpath(*parts, z, "0", "2").stat().st_size for z in "01")
    assert tomogram.bytes_of(box) == 2 * 4**3 * 4
    assert tomogram.bytes_of(np.s_[3:3, 0:4, 8:11]) == 0


@pytest.mark.parametrize(("chunk", "shard"), [(32, 0), (48, 240), (64, 256), (96, 0)])
def test_a_crop_reads_at_most_twice_the_bytes_of_its_chunks(tmp_path: Path, chunk: int, shard: int) -> None:
    """96^3 of a tomogram as large as those of CZII, of which only the chunks around the crop exist. Planted: the index of a shard fetched again."""
    group = zarr.create_group(tmp_path / "a.zarr")
    shards = (shard,) * 3 if shard else None
    codecs = [zarr.codecs.Crc32cCodec()]  # uncompressed, so that chunks are as large as they say
    array = group.create_array("0", shape=(184, 630, 630), chunks=(chunk,) * 3, shards=shards, dtype="f2", compressors=codecs)
    box = np.s_[50:146, 200:296, 330:426]
    crop = np.random.default_rng(0).normal(size=(96, 96, 96)).astype("f2")
    array[box] = crop
    tomogram = open_tomogram(tmp_path / "a.zarr", voxel_angstrom=10.0)
    with pytest.warns(UserWarning, match="are absent"):
        assert np.array_equal(tomogram.read(box), crop)
    chunks = np.prod([-(-part.stop // chunk) - part.start // chunk for part in box])
    assert tomogram.bytes_of(box) == chunks * chunk**3 * 2
    assert chunks * chunk**3 * 2 <= tomogram.bytes_read <= 1.1 * chunks * chunk**3 * 2  # with metadata, checksums and indexes of shards
    before = tomogram.bytes_read
    tomogram.read(box)
    assert tomogram.bytes_read - before == chunks * (chunk**3 * 2 + 4)  # each with its checksum, and nothing else
