"""MRC files: every reference vector, and faults that the tests make themselves so that they are always checked."""

import bz2
import gzip
import hashlib
import json
import pickle
import re
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tomoray import storage
from tomoray.formats import checks, is_tomogram, mrc, open_tomogram
from tomoray.formats.mrc import write_mrc
from tomoray.tomogram import FormatError, Tomogram

SHAPE = (5, 6, 7)
REJECTED = {
    "bad_empty.mrc": "0 bytes; an MRC file starts with a header",
    "bad_mode_99.mrc": "MRC mode 99 ",
    "bad_nsymbt_beyond_file.mrc": "holds 1,864 bytes where its header promises 1,001,864",
    "bad_nsymbt_negative.mrc": "extended header of -80 bytes",
    "bad_nx_huge.mrc": "holds 1,864 bytes where its header promises 864,000,000,001,024",
    "bad_nx_negative.mrc": re.escape("(7, 6, -5)"),
    "bad_nx_zero.mrc": re.escape("(7, 6, 0)"),
    "bad_text.mrc": "may be no MRC file at all",
    "bad_truncated_by_one_byte.mrc": "holds 1,863 bytes where its header promises 1,864",
    "bad_truncated_data.mrc": "holds 1,444 bytes where its header promises 1,864",
    "bad_truncated_header.mrc": "600 bytes; an MRC file starts with a header",
    "mode101_4bit.mrc": "four bits per voxel",
    "mode4_complex64.mrc": "a Fourier transform",
    "single_image.mrc": "each of at least two voxels",
    "volume_stack_ispg401.mrc": "a stack of volumes",
}
WARNED = {
    "image_stack_ispg0.mrc": "stack of images",
    "machine_stamp_zero.mrc": "names no byte order; little-endian",
    "no_MAP_id.mrc": "no MAP identifier",
    "trailing_bytes.mrc": "goes on after the 1,864 bytes",
}
READ = (
    "anisotropic_voxels_origin.mrc",
    "axes_mapc3_mapr2_maps1.mrc",
    "bigendian_mode1.mrc",
    "bigendian_mode2.mrc",
    "constant.mrc",
    "exthdr_CCP4_symmetry_160.mrc",
    "exthdr_FEI1_size_768x7.mrc",
    "exthdr_SERI_7x4.mrc",
    "exthdr_odd_length_13.mrc",
    "gzip_without_gz_in_name.mrc",
    "mode0_imod_unsigned.mrc",
    "mode0_int8.mrc",
    "mode12_float16.mrc",
    "mode1_int16.mrc",
    "mode2_float32.mrc",
    "mode2_float32.mrc.bz2",
    "mode2_float32.mrc.gz",
    "mode2_float32.rec",
    "mode6_uint16.mrc",
    "nan_and_inf.mrc",
)


def numbers(dtype: str = "f4", shape: tuple[int, int, int] = SHAPE) -> NDArray[Any]:
    return np.random.default_rng(1).normal(scale=40, size=shape).astype(dtype)


def write(path: Path, values: NDArray[Any] | None = None, voxel: float = 10.0, **fields: Any) -> Path:
    """Write a file with mrcfile and then set header fields to whatever is asked for."""
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(numbers() if values is None else values)
        mrc.set_volume()
        mrc.voxel_size = voxel
        for name, value in fields.items():
            mrc.header[name] = value
    return path


def digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()).hexdigest()


def check_vector(folder: Path, name: str) -> None:
    """Compare a vector with what `expected.json` says of it, or with the plain file where it says only that it is the same."""
    vectors = json.loads((folder / "expected.json").read_text())["files"]
    expected = vectors[name] if "sha256_little_endian_C" in vectors[name] else vectors["mode2_float32.mrc"]
    tomogram = open_tomogram(folder / name)
    values = tomogram.read()
    assert values.dtype == expected["dtype"]
    assert tomogram.shape == tuple(expected["shape_zyx"])
    assert digest(values) == expected["sha256_little_endian_C"]
    assert tomogram.voxel_angstrom == pytest.approx(expected.get("voxel_A_xyz", [10.012] * 3)[::-1], rel=1e-6)
    assert tomogram.origin_angstrom == tuple(expected.get("origin_xyz", [0.0] * 3)[::-1])


def test_every_vector_is_looked_at(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "mrc_vectors" / "expected.json").read_text())["files"]
    assert {*READ, *REJECTED, *WARNED, "voxel_size_zero.mrc"} == set(vectors)
    assert not {name for name in REJECTED if vectors[name]["should"].startswith("read") and vectors[name]["should"] != "read_or_reject"}
    assert not {name for name in (*READ, *WARNED) if vectors[name]["should"] == "reject"}


@pytest.mark.parametrize("name", READ)
def test_vectors_that_must_be_read(shared_data: Path, name: str) -> None:
    check_vector(shared_data / "mrc_vectors", name)


@pytest.mark.parametrize("name", WARNED)
def test_vectors_that_are_read_with_a_warning(shared_data: Path, name: str) -> None:
    with pytest.warns(UserWarning, match=f"{name}: .*{WARNED[name]}"):
        check_vector(shared_data / "mrc_vectors", name)


@pytest.mark.parametrize("name", REJECTED)
def test_vectors_that_must_be_rejected(shared_data: Path, name: str) -> None:
    for permissive in (False, True):
        with pytest.raises(FormatError, match=rf"{name}: .*{REJECTED[name]}.*: [a-z ,]+$"):  # what it was; what it must be: what to do
            open_tomogram(shared_data / "mrc_vectors" / name, permissive=permissive)


def test_voxel_size_is_asked_for_where_the_header_has_none(shared_data: Path) -> None:
    path = shared_data / "mrc_vectors" / "voxel_size_zero.mrc"
    with pytest.raises(FormatError, match=r"voxel_size_zero\.mrc: the file states no usable voxel size; .*: give voxel_angstrom"):
        open_tomogram(path)
    assert open_tomogram(path, voxel_angstrom=7.84).voxel_angstrom == (7.84, 7.84, 7.84)


def test_emdb_maps(shared_data: Path) -> None:
    """EMD-3001: columns along z, rows along x, sections along y; a monoclinic cell of 40 x 12 x 72 intervals."""
    for name in ("EMD-3001.map", "EMD-3001.map.bz2", "emd_3001.map.gz"):
        with pytest.raises(FormatError, match=r"90, 94\.33, 90 degrees; .*permissive=True"):
            open_tomogram(shared_data / "emdb" / name)
        with pytest.warns(UserWarning, match=r"94\.33.*read as if they were 90"):
            tomogram = open_tomogram(shared_data / "emdb" / name, permissive=True)
        assert tomogram.shape == (73, 25, 43)
        assert tomogram.voxel_angstrom == pytest.approx((33.03 / 72, 4.71 / 12, 17.93 / 40))
        assert np.array_equal(tomogram.read(), mrcfile.read(shared_data / "emdb" / "EMD-3001.map").transpose(2, 0, 1))
    for name in ("EMD-3197.map", "EMD-3197.map.bz2", "emd_3197.map.gz"):
        tomogram = open_tomogram(shared_data / "emdb" / name)
        assert tomogram.voxel_size_angstrom == pytest.approx(11.4)
        assert np.array_equal(tomogram.read(), mrcfile.read(shared_data / "emdb" / "EMD-3197.map"))


def test_file_from_before_the_standard(shared_data: Path) -> None:
    with pytest.warns(UserWarning, match="machine stamp|MAP identifier") as caught:
        tomogram = open_tomogram(shared_data / "tomograms" / "tardis_rec3D.rec")
    assert sorted("MAP identifier" in str(warning.message) for warning in caught) == [False, True]
    assert tomogram.shape == (78, 64, 32)
    assert tomogram.voxel_size_angstrom == pytest.approx(23.2, rel=1e-5)
    assert (tomogram.read().min(), tomogram.read().max()) == (-115, -93)


@pytest.mark.parametrize("ending", [".mrc", ".mrc.gz", ".rec.bz2"])
@pytest.mark.parametrize("dtype", ["i1", "i2", "u2", "f2", "f4", ">f4"])
def test_written_files_read_back_the_same(tmp_path: Path, dtype: str, ending: str) -> None:
    values = np.abs(numbers()).astype(dtype)
    path = tmp_path / "deep" / f"TS_5_4{ending}"
    write_mrc(path, Tomogram("any", values, (10.0, 11.0, 12.5), (1.0, -2.0, 3.0)))
    tomogram = open_tomogram(path)
    assert tomogram.name == "TS_5_4"
    assert tomogram.uri == str(path)
    assert tomogram.read().dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(tomogram.read(), values)
    assert tomogram.voxel_angstrom == pytest.approx((10.0, 11.0, 12.5), rel=1e-6)
    assert tomogram.origin_angstrom == (1.0, -2.0, 3.0)
    with mrcfile.open(path) as mrc:
        assert mrc.is_volume()
        assert np.array_equal(mrc.data, values)
        assert mrc.header.mx == 7
        assert mrc.header.dmax == pytest.approx(values.max(), rel=1e-3)
        assert mrc.header.machst.tolist() == [0x44, 0x44, 0, 0]


def test_unsigned_bytes_are_widened_and_other_types_refused(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", Tomogram("a", np.full(SHAPE, 200, np.uint8), (1.0, 1.0, 1.0)))
    assert open_tomogram(tmp_path / "a.mrc").read().max() == 200
    with pytest.raises(FormatError, match=r"no mode for float64; it must be .* astype"):
        write_mrc(tmp_path / "b.mrc", Tomogram("b", np.zeros(SHAPE), (1.0, 1.0, 1.0)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mrc"]


def test_volumes_with_nan_are_written(tmp_path: Path) -> None:
    values = numbers()
    values[1, 2, 3], values[2, 2, 2] = np.nan, np.inf
    write_mrc(tmp_path / "a.mrc", Tomogram("a", values, (1.0, 1.0, 1.0)))
    assert np.array_equal(open_tomogram(tmp_path / "a.mrc").read(), values, equal_nan=True)


@given(box=st.tuples(*[st.slices(length).filter(lambda s: (s.step or 1) == 1) for length in SHAPE]), axes=st.permutations([1, 2, 3]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_boxes_are_slices_of_the_whole(tmp_path: Path, box: tuple[slice, slice, slice], axes: list[int]) -> None:
    """For every order of the axes: the stored volume is made from the true one by hand, x being the last axis of z, y, x."""
    truth = numbers()
    maps, mapr, mapc = axes
    path = write(tmp_path / "a.mrc", truth.transpose([3 - axis for axis in (maps, mapr, mapc)]), mapc=mapc, mapr=mapr, maps=maps)
    with mrcfile.open(path, "r+") as mrc:
        mrc.header.mx, mrc.header.my, mrc.header.mz = 7, 6, 5
        mrc.header.cella = (7 * 1.0, 6 * 2.0, 5 * 3.0)
        mrc.header.origin = (10, 20, 30)
    tomogram = open_tomogram(path)
    assert tomogram.voxel_angstrom == (3.0, 2.0, 1.0)
    assert tomogram.origin_angstrom == (30.0, 20.0, 10.0)
    assert np.array_equal(tomogram.read(), truth)
    assert np.array_equal(tomogram.read(box), truth[box])


def test_a_read_box_is_one_s_own(tmp_path: Path) -> None:
    """Normalising what was read must change neither the file nor the next read."""
    for path in (write(tmp_path / "a.mrc"), tmp_path / "b.mrc.gz"):
        path.write_bytes(gzip.compress((tmp_path / "a.mrc").read_bytes()) if path.suffix == ".gz" else path.read_bytes())
        tomogram = open_tomogram(path)
        values = tomogram.read()
        values[:] = 0
        assert np.array_equal(tomogram.read(), numbers())


def test_tomograms_travel_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mrc", numbers(shape=(40, 40, 40)))
    sent = pickle.dumps(open_tomogram(path))
    assert len(sent) < 2000
    assert np.array_equal(pickle.loads(sent).read(), numbers(shape=(40, 40, 40)))


def test_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="a box with step 2; boxes are read whole"):
        open_tomogram(write(tmp_path / "a.mrc")).read((slice(None), slice(None), slice(0, 4, 2)))


@pytest.mark.parametrize("dtype", ["f4", "i2", "i1"])
def test_big_endian_files_and_files_without_a_stamp(tmp_path: Path, dtype: str) -> None:
    values = numbers(dtype)
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(values.astype(values.dtype.newbyteorder(">")))
        mrc.set_volume()
        mrc.voxel_size = 10.0
    content = bytearray((tmp_path / "a.mrc").read_bytes())
    if dtype != "i1":  # bytes have no order, so that mrcfile writes them as the machine does
        assert content[212] == 0x11
    assert np.array_equal(open_tomogram(tmp_path / "a.mrc").read(), values)
    content[212:216] = bytes(4)
    (tmp_path / "a.mrc").write_bytes(content)
    with pytest.warns(UserWarning, match="machine stamp 00 00 00 00 names no byte order"):
        assert np.array_equal(open_tomogram(tmp_path / "a.mrc").read(), values)


@pytest.mark.parametrize(("flags", "dtype"), [(0, "u1"), (1, "i1"), (2, "u1"), (17, "i1")])
def test_imod_flag_says_whether_bytes_are_signed(tmp_path: Path, flags: int, dtype: str) -> None:
    path = write(tmp_path / "a.mrc", numbers("i1"))
    content = bytearray(path.read_bytes())
    content[152:160] = np.array([1146047817, flags], "<i4").tobytes()
    path.write_bytes(content)
    assert np.array_equal(open_tomogram(path).read(), numbers("i1").view(dtype))
    assert open_tomogram(path).read().dtype == dtype


@pytest.mark.parametrize("missing", [1, 500])
def test_truncated_files_give_both_sizes(tmp_path: Path, missing: int) -> None:
    path = write(tmp_path / "a.mrc")
    whole = path.read_bytes()
    for name, packed in (("a.mrc", whole[:-missing]), ("a.mrc.gz", gzip.compress(whole[:-missing])), ("a.mrc.bz2", bz2.compress(whole[:-missing]))):
        (tmp_path / name).write_bytes(packed)
        with pytest.raises(
            FormatError, match=f"holds {len(whole) - missing:,} bytes where its header promises {len(whole):,}; .*: fetch or write it again"
        ):
            open_tomogram(tmp_path / name)


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    """Touching a memory map beyond the end of its file ends the process with a bus error."""
    path = write(tmp_path / "a.mrc")
    tomogram = open_tomogram(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FormatError, match="where its header promises"):
        tomogram.read()


@pytest.mark.parametrize("damage", [slice(0, -20), slice(0, 200)])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_damaged_packed_files(tmp_path: Path, pack: Any, damage: slice) -> None:
    packed = pack(write(tmp_path / "a.mrc").read_bytes())
    (tmp_path / "a.mrc.gz").write_bytes(packed[damage])
    with pytest.raises(FormatError, match=r"cannot be unpacked .*; it must be a whole gzip or bzip2 file: fetch or pack it again"):
        open_tomogram(tmp_path / "a.mrc.gz")


def test_header_that_promises_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mrc")
    with mrcfile.open(path, "r+", permissive=True) as mrc:
        mrc.header.nx, mrc.header.ny, mrc.header.nz = 500, 500, 500
    with path.open("r+b") as file:
        file.truncate(1024 + 4 * 500**3)  # a file with a hole takes no room on the disk
    monkeypatch.setattr(checks, "memory_bytes", lambda: 1000)
    tomogram = open_tomogram(path)
    assert tomogram.read((slice(0, 2), slice(0, 2), slice(0, 2))).shape == (2, 2, 2)
    with pytest.raises(FormatError, match=r"500,000,000 bytes of values are asked for and this machine has 1,000 bytes of memory; read .* in boxes"):
        tomogram.read()
    (tmp_path / "b.mrc.gz").write_bytes(gzip.compress(write(tmp_path / "b.mrc").read_bytes()))
    with pytest.raises(FormatError, match="1,864 bytes of values are asked for and this machine has 1,000"):
        open_tomogram(tmp_path / "b.mrc.gz")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
def test_a_small_file_that_claims_a_large_volume_takes_no_memory(tmp_path: Path, pack: Any) -> None:
    """Planted: as many bytes asked of the unpacker as the header promises, which it sets aside at once."""
    path = write(tmp_path / "a.mrc")
    with mrcfile.open(path, "r+", permissive=True) as mrc:
        mrc.header.nx = mrc.header.ny = mrc.header.nz = 1000
    path.write_bytes(pack(path.read_bytes()))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"bytes where its header promises 4,000,001,024; it is cut short|this machine has"):
            open_tomogram(path)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_what_follows_a_packed_volume_is_not_unpacked(tmp_path: Path) -> None:
    """A file of kilobytes that would unpack to any size. Planted: everything unpacked."""
    packed = gzip.compress(write(tmp_path / "a.mrc").read_bytes() + bytes(100_000_000), compresslevel=1)
    (tmp_path / "a.mrc.gz").write_bytes(packed)
    assert len(packed) < 1_000_000
    tracemalloc.start()
    try:
        with pytest.warns(UserWarning, match="goes on after the 1,864 bytes"):
            assert np.array_equal(open_tomogram(tmp_path / "a.mrc.gz").read(), numbers())
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_memory_of_a_container_counts(tmp_path: Path) -> None:
    total = checks.memory_bytes(tmp_path / "absent")
    assert total > 2**28
    (tmp_path / "limit").write_text("1048576\n")
    assert checks.memory_bytes(tmp_path / "limit") == 1048576
    (tmp_path / "limit").write_text("max\n")
    assert checks.memory_bytes(tmp_path / "limit") == total


def test_a_wrong_voxel_size_is_refused_and_a_rounded_one_passes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mrc", voxel=10.012)
    assert open_tomogram(path, voxel_angstrom=10.0).voxel_size_angstrom == pytest.approx(10.012, rel=1e-6)
    with pytest.raises(FormatError, match=r"voxels of 10\.01, 10\.01, 10\.01 angstrom \(z, y, x\), 4\.99 angstrom was given; they must agree to 1%"):
        open_tomogram(path, voxel_angstrom=4.99)
    for nonsense in (0.0, -1.0, float("nan")):
        with pytest.raises(FormatError, match="was given; it must be a positive number"):
            open_tomogram(path, voxel_angstrom=nonsense)


@pytest.mark.parametrize("fields", [{"mx": 0}, {"cella": (70, -60, 50)}, {"cella": (70, 60, np.nan)}, {"cella": (0, 0, 0)}])
def test_headers_without_a_usable_voxel_size(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = write(tmp_path / "a.mrc", **fields)
    with pytest.raises(FormatError, match="no usable voxel size"):
        open_tomogram(path)
    assert open_tomogram(path, voxel_angstrom=8.0).voxel_size_angstrom == 8.0


def test_wrong_axis_numbers(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"along axes \[1, 1, 3\]; they must be 1, 2, 3 in some order"):
        open_tomogram(write(tmp_path / "a.mrc", mapr=1))
    with pytest.warns(UserWarning, match="states no axis order"):
        assert np.array_equal(open_tomogram(write(tmp_path / "a.mrc", mapc=0, mapr=0, maps=0)).read(), numbers())


def test_names_and_unknown_kinds(tmp_path: Path) -> None:
    assert [name for name in ("a.MRC", "a.rec", "a.map.gz", "a.zarr/", "s3://b/a.ome.zarr", "a.tif", "a.gz", "mrc") if is_tomogram(name)] == [
        "a.MRC",
        "a.rec",
        "a.map.gz",
        "a.zarr/",
        "s3://b/a.ome.zarr",
    ]
    assert open_tomogram(write(tmp_path / "TS_1_10.00Apx.mrc")).name == "TS_1_10.00Apx"
    assert open_tomogram(tmp_path / "TS_1_10.00Apx.mrc", name="TS_1").name == "TS_1"
    (tmp_path / "a.tif").write_bytes(b"II*")
    with pytest.raises(FormatError, match=r"a\.tif: not a kind of file that is known.*\.zarr.*\.mrc \.rec"):
        open_tomogram(tmp_path / "a.tif")
    for name in ("none.mrc", "none.tif", "none.zarr"):
        with pytest.raises(FileNotFoundError, match=f"{name}: there is no such file or folder"):
            open_tomogram(tmp_path / name)


@pytest.mark.parametrize("ending", [".mrc", ".mrc.gz"])
def test_s3_reads_the_same_boxes(s3_bucket: str, tmp_path: Path, ending: str) -> None:
    truth = numbers(shape=(6, 8, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_mrc(f"{s3_bucket}/runs/TS_1{ending}", Tomogram("TS_1", truth, (10.0, 10.0, 10.0)))
        tomogram = open_tomogram(f"{s3_bucket}/runs/TS_1{ending}")
        assert tomogram.name == "TS_1"
        for box in (np.s_[:, :, :], np.s_[2:5, 1:4, 3:9], np.s_[0:1, :, 2:3], np.s_[5:6, 7:8, 9:10], np.s_[3:3, 0:2, 0:2]):
            assert np.array_equal(tomogram.read(box), truth[box])
        values = pickle.loads(pickle.dumps(tomogram)).read()
        values += 1  # one's own
    with pytest.raises(FileNotFoundError, match=rf"runs/none{ending}: there is no such file or folder; check .* the bucket and the endpoint"):
        open_tomogram(f"{s3_bucket}/runs/none{ending}")


@pytest.mark.parametrize(
    ("gap_bytes", "starts", "length"),
    [
        (4 * 4, [2 * 80 + 10, 2 * 80 + 20, 3 * 80 + 10, 3 * 80 + 20], 5),  # 5 columns lie between two rows: each by itself
        (4 * 5, [2 * 80 + 10, 3 * 80 + 10], 15),  # 65 values lie between two sections
        (4 * 65, [2 * 80 + 10], 95),
    ],
)
def test_s3_boxes_fetch_short_gaps_along(gap_bytes: int, starts: list[int], length: int, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a gap of just the limit not fetched along."""
    truth = numbers(shape=(6, 8, 10))
    write_mrc(f"{s3_bucket}/a.mrc", Tomogram("a", truth, (10.0, 10.0, 10.0)))
    tomogram = open_tomogram(f"{s3_bucket}/a.mrc")
    asked: list[tuple[int, int]] = []
    read_ranges = storage.read_ranges
    monkeypatch.setattr(storage, "read_ranges", lambda uri, ranges: asked.extend(ranges) or read_ranges(uri, ranges))
    monkeypatch.setattr(mrc, "GAP_BYTES", gap_bytes)
    box = np.s_[2:4, 1:3, 0:5]
    assert np.array_equal(tomogram.read(box), truth[box])
    assert asked == [(1024 + 4 * start, 1024 + 4 * (start + length)) for start in starts]
    assert tomogram.bytes_of(box) == 4 * length * len(starts)
    asked.clear()
    monkeypatch.setattr(mrc, "PART_BYTES", 1000)
    assert np.array_equal(tomogram.read(), truth)
    assert asked == [(1024, 2024), (2024, 1024 + 4 * 480)]


def test_a_crop_of_a_large_file_takes_a_request_for_each_section() -> None:
    """What the docstring of `_ranges` says, without the file."""
    shape = (184, 630, 630)
    layout = mrc._Layout(np.dtype("<f4"), shape, (0, 1, 2), 1024, None, (0.0, 0.0, 0.0), ())
    ranges, _ = mrc._ranges(layout, [(40, 136), (100, 196), (200, 296)])
    assert len(ranges) == 96
    assert {stop - start for start, stop in ranges} == {4 * (95 * 630 + 96)}
    assert mrc._ranges(layout, [(0, n) for n in shape])[0] == [(1024, 1024 + 4 * 184 * 630 * 630)]


def test_s3_truncated_after_opening(s3_bucket: str) -> None:
    uri = f"{s3_bucket}/a.mrc"
    write_mrc(uri, Tomogram("a", numbers(), (10.0, 10.0, 10.0)))
    tomogram = open_tomogram(uri)
    storage.write_bytes(uri, storage.read_bytes(uri)[:-5])
    with pytest.raises(FormatError, match="holds 1,859 bytes where its header promises 1,864"):
        tomogram.read()


@pytest.mark.parametrize("ending", [".mrc", ".mrc.gz"])
def test_bytes_that_were_read_are_counted(tmp_path: Path, ending: str) -> None:
    """Planted: nothing counted of a packed file."""
    path = tmp_path / f"a{ending}"
    write_mrc(path, Tomogram("a", numbers(), (10.0, 10.0, 10.0)))
    tomogram = open_tomogram(path)
    tomogram.read(np.s_[1:3, 2:5, 3:7])
    tomogram.read(np.s_[1:1, 2:5, 3:7])
    assert tomogram.bytes_read == (path.stat().st_size if ending.endswith(".gz") else 2 * 3 * 4 * 4)
