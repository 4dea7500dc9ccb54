"""Storage on a real S3 server: what a mock cannot show of keys, checksums, listings and ranges. `make services` brings the server."""

from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
import torch

from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_catalogue, write_catalogue
from tomoray.checkpoint import Card, load_picker, save_checkpoint
from tomoray.crops import read_crops
from tomoray.formats import open_tomogram
from tomoray.formats.mrc import write_mrc
from tomoray.formats.ome_zarr import write_ome_zarr
from tomoray.ingest import ChunkLayout, finished_rows, ingest_tomogram
from tomoray.patches import cut
from tomoray.preprocessing import Preparation, prepare
from tomoray.tomogram import Particle, Tomogram

VALUES = np.random.default_rng(0).normal(size=(24, 29, 34)).astype(np.float32)
CORNERS = np.array([[0, 0, 0], [3, 5, 7], [16, 21, 26]])
PATCH = 8
KINDS = ["mrc", "mrc.gz", "zarr", "zarr3"]


def written(kind: str, root: str) -> str:
    """Write the values as a file of some kind and return where it is."""
    uri, tomogram = f"{root}/TS_1.{kind.removesuffix('3')}", Tomogram("TS_1", VALUES, (10.0,) * 3)
    if kind.startswith("mrc"):
        write_mrc(uri, tomogram)
    else:
        write_ome_zarr(uri, tomogram, zarr_format=3 if kind == "zarr3" else 2, chunk_vox=8)
    return uri


def row_of(uri: str) -> CatalogueRow:
    mean, std = float(VALUES.mean(dtype=np.float64)), float(VALUES.std(dtype=np.float64))
    shape, least, most = (24, 29, 34), float(VALUES.min()), float(VALUES.max())
    return CatalogueRow("TS_1", "TS_1", uri, shape, "float32", 10.0, mean, std, least, most, "dark", split="train")


def write_half(path: Path) -> None:
    """Write something and then fail."""
    path.write_text("half")
    (path / "no folder").write_text("the other half")


def test_what_is_written_is_read_back(ceph_bucket: str) -> None:
    uri = f"{ceph_bucket}/folder/a file+name.bin"
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"0123456789")
    storage.write_bytes(uri, b"abcdefgh")
    assert (storage.read_bytes(uri), storage.size_bytes(uri)) == (b"abcdefgh", 8)
    assert storage.read_ranges(uri, [(0, 2), (5, 8), (6, 100)]) == [b"ab", b"fgh", b"gh"]
    storage.remove(f"{ceph_bucket}/folder")
    storage.remove(f"{ceph_bucket}/folder")
    assert not storage.exists(uri)


def test_files_in_several_parts_arrive_whole(ceph_bucket: str) -> None:
    """A checkpoint is put in parts of some megabytes each, and every range of it can be had."""
    content = np.random.default_rng(1).bytes(120_000_000)
    with storage.new_file(f"{ceph_bucket}/large") as path:
        path.write_bytes(content)
    assert storage.size_bytes(f"{ceph_bucket}/large") == len(content)
    starts = range(0, len(content), 9_000_000)
    assert storage.read_ranges(f"{ceph_bucket}/large", [(start, start + 1000) for start in starts]) == [content[s : s + 1000] for s in starts]
    with storage.local_copy(f"{ceph_bucket}/large") as path:
        assert path.read_bytes() == content


def test_folders_larger_than_one_page_are_listed_replaced_and_removed(ceph_bucket: str) -> None:
    """S3 lists and removes a thousand keys at a time."""
    names = [f"{number:05d}.parquet" for number in range(1100)]
    with storage.new_folder(f"{ceph_bucket}/candidates") as folder:
        for name in names:
            (folder / name).write_bytes(b"x")
    assert storage.list_names(f"{ceph_bucket}/candidates") == names
    with storage.new_folder(f"{ceph_bucket}/candidates") as folder:
        (folder / "card").write_bytes(b"new")
    assert storage.list_names(f"{ceph_bucket}/candidates") == ["card"]
    assert storage.list_names(ceph_bucket) == ["candidates"]


def test_what_failed_while_it_was_written_replaces_nothing(ceph_bucket: str) -> None:
    storage.write_bytes(f"{ceph_bucket}/made/card", b"old")
    with pytest.raises(NotADirectoryError), storage.new_folder(f"{ceph_bucket}/made") as folder:
        write_half(folder / "card")
    assert storage.read_bytes(f"{ceph_bucket}/made/card") == b"old"
    assert storage.list_names(f"{ceph_bucket}/made") == ["card"]


def test_a_missing_object_is_told_by_its_key(ceph_bucket: str) -> None:
    for read in (storage.read_bytes, storage.size_bytes, storage.list_names, lambda uri: storage.read_ranges(uri, [(0, 4)])):
        with pytest.raises(FileNotFoundError, match=rf"^{ceph_bucket}/deep/nowhere\.bin: there is no such file or folder; check the path"):
            read(f"{ceph_bucket}/deep/nowhere.bin")
    with pytest.raises(FileNotFoundError, match=r"^s3://no-bucket-of-ours/a: there is no such file or folder; check .* the bucket and the endpoint"):
        storage.read_bytes("s3://no-bucket-of-ours/a")


@pytest.mark.parametrize(("name", "value"), [("AWS_SECRET_ACCESS_KEY", "another-secret"), ("AWS_ACCESS_KEY_ID", "nobody")])
def test_wrong_keys_are_refused(ceph_bucket: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the mock lets in."""
    storage.write_bytes(f"{ceph_bucket}/file", b"x")
    monkeypatch.setattr(type(storage.resolve(ceph_bucket)[0]), "_cache", {})
    monkeypatch.setenv(name, value)
    for refused in (storage.read_bytes, storage.size_bytes, lambda uri: storage.write_bytes(uri, b"y")):
        with pytest.raises(PermissionError, match=r"/file: access refused .*: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
            refused(f"{ceph_bucket}/file")


def test_older_servers_take_checksums_only_where_they_are_required(ceph_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts its checkpoints with Arrow's client, whose default this server refuses; ours it takes with either setting."""

    def put_by_arrow() -> int:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(f"{ceph_bucket}/by-arrow")
        with filesystem.open_output_stream(path) as stream:
            stream.write(bytes(20_000_000))
        return storage.size_bytes(f"{ceph_bucket}/by-arrow")

    assert put_by_arrow() == 20_000_000
    for setting in ("when_supported", "WHEN_REQUIRED"):
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", setting)
        storage.write_bytes(f"{ceph_bucket}/{setting}", b"content")
        assert storage.read_bytes(f"{ceph_bucket}/{setting}") == b"content"
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    with pytest.raises(OSError, match=r"MissingContentLength|411"):
        put_by_arrow()


@pytest.mark.parametrize("kind", KINDS)
def test_cubes_are_those_of_the_whole(ceph_bucket: str, kind: str) -> None:
    tomogram = open_tomogram(written(kind, ceph_bucket))
    assert np.array_equal(tomogram.read(), VALUES)
    volume, _ = prepare(tomogram, contrast="dark", to_voxel_angstrom=10.0)
    crops = read_crops(tomogram, row_of(tomogram.uri), CORNERS, PATCH, Preparation("dark", 10.0), {})
    for corner, crop in zip(CORNERS, crops, strict=True):
        np.testing.assert_allclose(crop, cut(volume, corner, PATCH), atol=1e-5)


def test_a_tomogram_is_ingested_and_known_to_be(ceph_bucket: str) -> None:
    row = row_of(written("mrc", ceph_bucket))
    layout, output = ChunkLayout(4, 8), f"{ceph_bucket}/ingested"
    assert finished_rows([row], output, layout) == {}
    new, _ = ingest_tomogram(row, output, layout)
    assert finished_rows([row], output, layout) == {"TS_1": new}
    write_catalogue(f"{output}/catalogue.parquet", [new])
    (read,) = read_catalogue(f"{output}/catalogue.parquet")
    assert read == new
    before, _ = prepare(open_tomogram(row.uri), contrast="dark", to_voxel_angstrom=10.0)
    after, _ = prepare(open_tomogram(read.uri), contrast="dark", to_voxel_angstrom=10.0)
    np.testing.assert_allclose(after, before, atol=2.1e-3)  # half of what lies between two numbers of float16 below 8


def test_a_checkpoint_is_the_same_after_a_journey(ceph_bucket: str) -> None:
    card = Card((Particle("ribosome", 150.0),), 10.0, "dark", {"name": "asymmetric_unet", "width": 4, "blocks": [1, 1]})
    picker = card.build()
    with storage.new_folder(f"{ceph_bucket}/picker") as folder:
        save_checkpoint(folder, card, picker)
    loaded, read = load_picker(f"{ceph_bucket}/picker")
    assert read == card
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in picker.state_dict().items())
    with storage.local_copy(f"{ceph_bucket}/picker") as copy:
        assert Path(copy, "picker.pt").stat().st_size == storage.size_bytes(f"{ceph_bucket}/picker/picker.pt")
