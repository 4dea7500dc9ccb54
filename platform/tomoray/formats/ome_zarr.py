"""OME-Zarr 0.4 (zarr v2) and 0.5 (zarr v3) images: read in boxes that touch only their chunks, written as pyramids.

The metadata are those of https://ngff.openmicroscopy.org/0.4 and /0.5: axes with units, and per level a scale and perhaps a
translation, which the transformations of the whole multiscale follow.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from tomoray import storage
from tomoray.formats.checks import agreed_voxel_size, check_fits_memory
from tomoray.formats.zarr_voxels import ZarrVoxels
from tomoray.tomogram import FormatError, Tomogram, Triple

_ANGSTROM = {"angstrom": 1.0, "picometer": 0.01, "nanometer": 10.0, "micrometer": 1e4}
_MOST_CHUNKS = 4_000_000  # which are counted one by one; a tomogram of 4,000 voxels cubed has so many of 25 voxels cubed


class _Axis(BaseModel):
    name: str
    type: str | None = None
    unit: str | None = None


class _Transformation(BaseModel):
    type: str
    scale: list[float] | None = None
    translation: list[float] | None = None


class _Level(BaseModel):
    path: str
    transformations: list[_Transformation] = Field(default=[], alias="coordinateTransformations")


class _Multiscale(BaseModel):
    axes: list[_Axis]
    levels: list[_Level] = Field(alias="datasets", min_length=1)
    transformations: list[_Transformation] = Field(default=[], alias="coordinateTransformations")


def open_ome_zarr(uri: storage.Uri, *, name: str, voxel_angstrom: float | None = None, permissive: bool = False, level: int = 0) -> Tomogram:
    """Return one level of an OME-Zarr image as a tomogram whose boxes are read on demand.

    Without OME metadata there is no voxel size: then `voxel_angstrom` must be given, and the array "0" is taken as z, y, x.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    FormatError
        If it is no OME-Zarr image of one volume, or states no voxel size or another than `voxel_angstrom`. Unless `permissive`,
        also if its unit of length is unknown.
    """
    where = storage.as_text(uri)
    attributes, zarr_format = _read_group(uri)
    image = _read_multiscale(where, attributes)
    if image is None:
        array = _open_array(uri, "0", zarr_format)
        if voxel_angstrom is None:
            raise FormatError(f"{where}: the folder has no OME multiscales metadata, so neither axes nor voxel size are known: give voxel_angstrom")
        return Tomogram(name, ZarrVoxels(where, array, (0, 1, 2)), agreed_voxel_size(where, None, voxel_angstrom), uri=where)
    if not 0 <= level < len(image.levels):
        raise FormatError(f"{where}: level {level} was asked for; the image has {len(image.levels)}, counted from 0: ask for one of these")
    array = _open_array(uri, image.levels[level].path, zarr_format)
    zyx_axes = _zyx_axes(where, image.axes, array.shape)
    voxel, origin = _geometry(where, image, level, zyx_axes, permissive)
    return Tomogram(name, ZarrVoxels(where, array, zyx_axes), agreed_voxel_size(where, voxel, voxel_angstrom), origin, where)


def write_ome_zarr(
    uri: storage.Uri,
    tomogram: Tomogram,
    *,
    zarr_format: Literal[2, 3] = 2,
    chunk_vox: int = 64,
    shard_vox: int = 0,
    levels: int = 1,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a volume as OME-Zarr 0.4 (zarr v2) or 0.5 (zarr v3) in angstrom, each level half as fine as the one before.

    Every chunk is written, also one of nothing but zeros, so that a missing chunk always means a loss. With `shard_vox`, files hold that
    many voxels along each axis, in chunks of which each has its checksum (crc32c); then values are read one layer of shards after another,
    so that a single level takes no more memory than that. `about` is kept under `tomoray` in the image's attributes.

    Raises
    ------
    ValueError
        If there are fewer voxels than that many levels need, or shards are not whole numbers of chunks, or asked of zarr v2.
    """
    import zarr

    if levels < 1 or min(tomogram.shape) < 2**levels:
        raise ValueError(f"{uri}: {levels} levels of a volume of {tomogram.shape}; the coarsest must keep two voxels along each axis: ask for fewer")
    if shard_vox and (zarr_format == 2 or shard_vox % chunk_vox):
        raise ValueError(f"{uri}: shards of {shard_vox} and chunks of {chunk_vox} voxels; shards are zarr v3 and hold whole chunks: give a multiple")
    with storage.new_folder(uri) as folder:
        group = zarr.create_group(zarr.storage.LocalStore(folder), zarr_format=zarr_format)
        if levels == 1:
            array = _create_array(group, 0, tomogram.shape, tomogram.voxels.dtype, chunk_vox, shard_vox)
            depth = (array.shards or array.shape)[0]
            for z in range(0, tomogram.shape[0], depth):
                array[z : z + depth] = tomogram.read((slice(z, z + depth), slice(None), slice(None)))
        else:
            values = tomogram.read()
            for level in range(levels):
                values = values if level == 0 else _halved(values)
                _create_array(group, level, values.shape, values.dtype, chunk_vox, shard_vox)[:] = values
        group.attrs.update(_attributes(tomogram, zarr_format, levels) | ({"tomoray": dict(about)} if about else {}))


def _create_array(group: Any, level: int, shape: Sequence[int], dtype: np.dtype[Any], chunk_vox: int, shard_vox: int) -> Any:
    import numcodecs
    import zarr

    old = group.metadata.zarr_format == 2
    compressor: Any = numcodecs.Blosc("lz4", clevel=5) if old else zarr.codecs.BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
    chunks = tuple(chunk_vox if shard_vox else min(chunk_vox, length) for length in shape)
    return group.create_array(
        str(level),
        shape=shape,
        chunks=chunks,
        shards=tuple(min(shard_vox, -(-length // chunk_vox) * chunk_vox) for length in shape) if shard_vox else None,
        dtype=dtype.newbyteorder("<") if old else dtype,
        compressors=[compressor, zarr.codecs.Crc32cCodec()] if shard_vox else compressor,
        fill_value=0,
        chunk_key_encoding={"name": "v2" if old else "default", "separator": "/"},
        dimension_names=None if old else ["z", "y", "x"],
        config={"write_empty_chunks": True},
    )


def _open_store(uri: storage.Uri) -> Any:
    from zarr.storage import FsspecStore, LocalStore

    from tomoray.formats.zarr_store import CountedStore

    if storage.is_local(uri):
        return CountedStore(LocalStore(storage.local_path(uri), read_only=True))
    options = storage.options(uri)
    if storage.protocol(uri) == "s3":
        options["max_concurrency"] = 1  # or s3fs asks how long an object is before each that it fetches
    return CountedStore(FsspecStore.from_url(storage.as_text(uri), storage_options=options, read_only=True))


def _read_group(uri: storage.Uri) -> tuple[dict[str, Any], int]:
    """Return the attributes of a group and its zarr format. Asked for both formats at once, zarr makes fourteen requests of a server."""
    import zarr

    store = _open_store(uri)
    with storage.plain_errors(uri):
        try:
            try:
                group = zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)
            except FileNotFoundError:
                group = zarr.open_group(store, mode="r", zarr_format=2, use_consolidated=False)
            return dict(group.attrs), group.metadata.zarr_format
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, FileNotFoundError) and not storage.exists(uri):
                raise
            raise FormatError(
                f"{uri}: not a zarr group ({error}); an OME-Zarr folder holds .zgroup and .zattrs, or zarr.json: copy it whole"
            ) from None


def _open_array(uri: storage.Uri, path: str, zarr_format: int) -> Any:
    import zarr

    where = storage.join(uri, path)
    with storage.plain_errors(uri):
        try:
            array = zarr.open_array(_open_store(uri), path=path, mode="r", zarr_format=zarr_format)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{where}: the array cannot be opened ({error}); its metadata must be whole: copy the folder again") from None
    if array.dtype.kind not in "fiub":
        raise FormatError(f"{where}: values of type {array.dtype}; a tomogram holds real numbers: convert it")
    if array.nchunks > _MOST_CHUNKS:
        raise FormatError(
            f"{where}: {array.nchunks:,} chunks by its metadata; a tomogram has {_MOST_CHUNKS:,} at most: write it with larger chunks, "
            "or correct the shape"
        )
    check_fits_memory(f"{where}, in one chunk", math.prod(array.chunks) * array.dtype.itemsize)  # a chunk is unpacked whole
    return array


def _read_multiscale(where: str, attributes: dict[str, Any]) -> _Multiscale | None:
    """Return the first multiscale image of a group's attributes, or nothing where there is none.

    Raises
    ------
    FormatError
        If it breaks the OME-Zarr specification.
    """
    ome = attributes.get("ome", attributes)  # 0.5 keeps apart what 0.4 puts among the other attributes
    images = ome.get("multiscales") if isinstance(ome, dict) else None
    if not images:
        return None
    try:
        return _Multiscale.model_validate(images[0] if isinstance(images, list) else images)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise FormatError(f"{where}: multiscales metadata, {key}: {fault['msg']}; it must follow OME-Zarr 0.4 or 0.5: write the file again") from None


def _zyx_axes(where: str, axes: Sequence[_Axis], shape: Sequence[int]) -> tuple[int, int, int]:
    """Return which axes of the array run along z, y and x."""
    names = [axis.name.lower() for axis in axes]
    spare = [f"{name} ({length})" for name, length in zip(names, shape, strict=False) if name not in ("z", "y", "x") and length != 1]
    if len(names) != len(shape) or any(names.count(name) != 1 for name in "zyx") or spare:
        raise FormatError(
            f"{where}: axes {', '.join(names)} of an array of shape {tuple(shape)}; a tomogram has z, y and x, "
            "and no other axis longer than one: give one volume (one channel, one time) per file"
        )
    return names.index("z"), names.index("y"), names.index("x")


def _geometry(where: str, image: _Multiscale, level: int, zyx_axes: Sequence[int], permissive: bool) -> tuple[Triple | None, Triple]:
    """Return the voxel size, if stated, and the origin of a level in angstrom along z, y, x."""
    scale, offset, stated = np.ones(len(image.axes)), np.zeros(len(image.axes)), False
    for transformation in [*image.levels[level].transformations, *image.transformations]:  # applied in this order
        factors, shift = transformation.scale, transformation.translation
        if any(len(numbers) != len(image.axes) for numbers in (factors, shift) if numbers is not None):
            raise FormatError(f"{where}: a {transformation.type} of another length than the {len(image.axes)} axes; correct the metadata")
        if factors is not None:
            scale, offset, stated = scale * factors, offset * factors, True
        if shift is not None:
            offset = offset + shift
    units = _units_angstrom(where, [image.axes[axis].unit for axis in zyx_axes], permissive)
    picked = list(zyx_axes)
    voxel, origin = (scale[picked] * units).tolist(), (offset[picked] * units).tolist()
    usable = stated and np.isfinite(voxel).all() and min(voxel) > 0
    return (voxel[0], voxel[1], voxel[2]) if usable else None, (origin[0], origin[1], origin[2])


def _units_angstrom(where: str, units: Sequence[str | None], permissive: bool) -> NDArray[np.float64]:
    """Return the length of each unit in angstrom; a unit that is missing is taken as angstrom, with a warning."""
    unknown = [unit for unit in units if unit not in _ANGSTROM]
    if any(unit is not None for unit in unknown) and not permissive:
        raise FormatError(f"{where}: axes in {unknown}; known units are {', '.join(_ANGSTROM)}: correct the metadata, or read with permissive=True")
    if unknown:
        warnings.warn(f"{where}: axes without a known unit ({unknown}); their scale is taken as angstrom", UserWarning, stacklevel=5)
    return np.array([_ANGSTROM.get(unit or "angstrom", 1.0) for unit in units])


def _attributes(tomogram: Tomogram, zarr_format: Literal[2, 3], levels: int) -> dict[str, Any]:
    """Return the OME metadata of a pyramid."""
    datasets = []
    for level in range(levels):
        transformations = [{"type": "scale", "scale": [size * 2**level for size in tomogram.voxel_angstrom]}]
        if any(tomogram.origin_angstrom):
            transformations.append({"type": "translation", "translation": list(tomogram.origin_angstrom)})
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    axes = [{"name": name, "type": "space", "unit": "angstrom"} for name in "zyx"]
    image = {"name": tomogram.name, "axes": axes, "datasets": datasets}
    return {"multiscales": [{"version": "0.4", **image}]} if zarr_format == 2 else {"ome": {"version": "0.5", "multiscales": [image]}}


def _halved(values: NDArray[Any]) -> NDArray[Any]:
    """Return the means of 2 x 2 x 2 voxels; where a length is odd, the last plane counts twice."""
    padded = np.pad(values, [(0, length % 2) for length in values.shape], mode="edge")
    d, h, w = (length // 2 for length in padded.shape)
    means = padded.reshape(d, 2, h, 2, w, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    halved: NDArray[Any] = np.rint(means) if values.dtype.kind in "iu" else means
    return halved.astype(values.dtype)
