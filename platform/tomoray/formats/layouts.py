"""How tomograms and their picks lie together in folders and buckets, and which picks belong to which tomogram.

Known are the CZII challenge's folders, a copick project, a CryoET Data Portal prefix, and any folder of MRC and OME-Zarr files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal, TypeVar

from tomoray import storage
from tomoray.formats import is_tomogram
from tomoray.formats.clicks import SUFFIXES, Told, is_clicks, read_clicks, runs_in, what_was_told
from tomoray.formats.copick import join_classes, names_in, read_copick_picks, read_copick_project
from tomoray.formats.czii import czii_picks_files, read_czii_csv, read_czii_picks
from tomoray.formats.portal import list_portal_tomograms, read_portal_picks
from tomoray.tomogram import FormatError, Picks

FOREIGN_SUFFIXES = (".tif", ".tiff", ".hdf", ".h5", ".hdf5", ".em", ".dm3", ".dm4", ".nrrd", ".n5", ".npy")  # volumes, but none that we read
LISTING_THREADS = 16  # listing a bucket is all waiting


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file: an error keeps its tomogram out of the catalogue, a warning does not."""

    uri: str
    level: Literal["error", "warning"]
    message: str


@dataclass(frozen=True)
class Found:
    """A tomogram that lies somewhere, not opened yet.

    Attributes
    ----------
    tomogram_id
        The run, and where a layout keeps several tomograms per run also what tells them apart: `<run>-<spacing>-<kind>`.
    run
        Name under which picks know it.
    uri
        Its file or folder.
    picks_uri
        What `read_picks` needs for its picks; empty where there are none.
    kind
        Type of reconstruction as the layout names it, like `denoised`; empty where it names none.
    """

    tomogram_id: str
    run: str
    uri: str
    picks_uri: str = ""
    kind: str = ""


Findings = tuple[list[Found], list[Problem]]
Result = TypeVar("Result")


def find_tomograms(source: storage.Uri, *, picks: str = "", kinds: Sequence[str] = (), told: Told = Told()) -> Findings:
    """Return the tomograms that lie in `source`, by id, and what is wrong with what lies there.

    Parameters
    ----------
    source
        Root of the CZII folders (or their `train` or `test`), of a copick project or its configuration JSON, a portal prefix,
        a folder of tomograms at any depth, or one tomogram.
    picks
        Picks that lie elsewhere: a CSV or STAR file of many runs, a copick JSON, or a folder with a file or folder per run. In a copick
        project that holds picks of several users, `<user>_<session>` chooses. In plain folders, a CSV or STAR file of positions beside a
        tomogram, and of its name, is found without this.
    kinds
        Only these types of reconstruction, or patterns of them, as in `denoised` or, for the portal, `10.012-*`; all by default.
    told
        What a person said of files of clicks.

    Raises
    ------
    FormatError
        If `source` is a JSON that is no copick configuration.
    """
    root = _absolute(source)
    if not storage.exists(root):
        return [], [Problem(root, "error", f"{root}: there is no such file or folder; give the folder or bucket prefix that holds the tomograms")]
    elsewhere = bool(picks) and (picks.lower().endswith((".csv", ".json", ".star")) or storage.exists(picks))
    found, problems = _find(root, "" if elsewhere else picks)
    if kinds:
        others = {one.kind for one in found}
        found = [one for one in found if any(fnmatchcase(one.kind, kind) for kind in kinds)]
        if not found and others:
            problems.append(Problem(root, "error", f"{root}: no tomogram of kind {', '.join(kinds)}; there are {', '.join(sorted(others))}"))
    if elsewhere:
        found, more = _with_sidecar(found, _absolute(picks))
        problems += more
    elif picks and not any(one.picks_uri for one in found):
        message = f"picks = {picks!r}: neither a file, a folder, nor <user>_<session> of picks in {root}; check the name"
        problems.append(Problem(picks, "error", message))
    elif not picks:
        found, more = _with_clicks_beside(found)
        problems += more
    found, more = _with_told(found, told)
    problems += more
    found, more = _without_duplicates(found)
    problems += more
    if not found and not any(problem.level == "error" for problem in problems):
        message = f"{root}: no tomogram found; it must hold MRC or OME-Zarr files, the CZII or copick folders, or a portal data set: check the path"
        problems.append(Problem(root, "error", message))
    return sorted(found, key=lambda one: one.tomogram_id), problems


def read_picks(uri: str, run: str, *, shape_zyx: Sequence[int], voxel_angstrom: float) -> Picks:
    """Return the picks of one run from whatever `uri` is: a CSV, a STAR file, a copick JSON, a Picks folder or a pattern in it, portal annotations.

    Shape and voxel size are the tomogram's: some files count voxels, or from its centre.

    Raises
    ------
    FormatError
        If nothing of that run is there, or what is there cannot be read.
    """
    uri, told = what_was_told(uri)
    if uri.lower().endswith(SUFFIXES) and is_clicks(uri):
        return read_clicks(uri, run, told, shape_zyx=shape_zyx, voxel_angstrom=voxel_angstrom)
    if uri.lower().endswith(".csv"):
        if told != Told():
            raise FormatError(f"{uri}: no plain table of clicks, but one that says class and angstrom; leave picks_unit and picks_particle out")
        of_run = [picks for picks in read_czii_csv(uri) if picks.run == run]
        if not of_run:
            raise FormatError(f"{uri}: no picks of run {run!r}; its column experiment must name the run: give the table that holds this tomogram")
        return of_run[0]
    if uri.endswith((".ndjson", "/Annotations")):
        return read_portal_picks(uri, run)
    if uri.endswith(".json") and "*" not in uri:
        return join_classes(run, {uri: read_copick_picks(uri)})
    return read_czii_picks(uri, run)


def _absolute(uri: storage.Uri) -> str:
    """Return a path that means the same to the processes that will read the catalogue, elsewhere."""
    return str(storage.local_path(uri).absolute()) if storage.is_local(uri) else storage.as_text(uri)


def _find(root: str, session: str) -> Findings:
    if root.endswith(".json"):
        return _find_runs(*read_copick_project(root), session)
    if is_tomogram(root):
        return [_plain(root)], []
    names = names_in(root)
    if "ExperimentRuns" in names:
        return _find_runs(root, root, session)
    parts = [root, *(storage.join(root, part) for part in ("train", "test") if part in names)]
    parts = [part for part in parts if {"static", "overlay"} & set(names_in(part))]
    if parts:
        return _joined([_find_runs(storage.join(part, "static"), storage.join(part, "overlay"), session) for part in parts])
    runs = [name for name in _in_parallel(partial(_portal_run, root), [name for name in names if not is_tomogram(name)]) if name]
    if runs:
        return _joined(_in_parallel(partial(_find_portal, root), runs))
    return _find_plain(root)


def _find_runs(static: str, overlay: str, session: str) -> Findings:
    """Find tomograms of a copick project, of which the CZII folders are one kind."""
    roots = list(dict.fromkeys((storage.join(static, "ExperimentRuns"), storage.join(overlay, "ExperimentRuns"))))
    runs = sorted({name for root in roots for name in names_in(root)})
    return _joined(_in_parallel(partial(_find_run, roots, f"{session}_*.json" if session else ""), runs))


def _find_run(roots: Sequence[str], pattern: str, run: str) -> Findings:
    folders = [storage.join(root, run, "Picks") for root in reversed(roots)]  # the overlay holds what people changed: it comes first
    candidates = [storage.join(folder, pattern) if pattern else folder for folder in folders]
    picks_uri = next((uri for uri in candidates if czii_picks_files(uri)), "")
    found = []
    for root in roots:
        for spacing in (name for name in names_in(storage.join(root, run)) if name.startswith("VoxelSpacing")):
            names = [name for name in names_in(storage.join(root, run, spacing)) if is_tomogram(name) and not name.endswith("_features.zarr")]
            kinds = {_stem(name): name for name in sorted(names, key=lambda name: name.endswith(".zarr"))}  # of a tomogram's two files the zarr
            for kind, name in kinds.items():
                uri = storage.join(root, run, spacing, name)
                found.append(Found(f"{run}-{spacing.removeprefix('VoxelSpacing')}-{kind}", run, uri, picks_uri, kind))
    if picks_uri and not found:
        return [], [_unknown_run(picks_uri, run)]
    return found, []


def _portal_run(root: str, name: str) -> str:
    return name if "Reconstructions" in names_in(storage.join(root, name)) else ""


def _find_portal(root: str, run: str) -> Findings:
    try:
        tomograms = list_portal_tomograms(root, run)
    except FormatError as error:
        return [], [Problem(storage.join(root, run), "error", str(error))]
    kinds = [f"{one.spacing.removeprefix('VoxelSpacing')}-{one.number}" for one in tomograms]
    return [Found(f"{run}-{kind}", run, one.uri, one.annotations_uri, kind) for one, kind in zip(tomograms, kinds, strict=True)], []


def _find_plain(root: str) -> Findings:
    filesystem, top = storage.resolve(root)
    found, problems = [], []
    for folder, folders, files in filesystem.walk(top):
        inside = folder.removeprefix(top).strip("/")
        here = storage.join(root, inside) if inside else root
        for name in sorted((*folders, *files)):
            uri = storage.join(here, name)
            if name.startswith("."):
                continue
            if is_tomogram(name):
                found.append(_plain(uri))
            elif name.lower().endswith(FOREIGN_SUFFIXES):
                message = f"{uri}: not a format that tomoray reads; tomograms must be MRC or OME-Zarr: convert it to MRC or OME-Zarr if it is one"
                problems.append(Problem(uri, "warning", message))
        folders[:] = [name for name in folders if not name.startswith(".") and not name.lower().endswith((".zarr", ".n5"))]
    return found, problems


def _with_clicks_beside(found: Sequence[Found]) -> Findings:
    """Give tomograms of plain folders the CSV or STAR file of positions that lies beside them under their name; two of them are a problem."""
    folders = {one.uri.rpartition("/")[0] for one in found if not (one.kind or one.picks_uri)}
    tables = {folder: [name for name in names_in(folder) if name.lower().endswith(SUFFIXES)] for folder in sorted(folders)}
    kept, problems = [], []
    for one in found:
        folder = one.uri.rpartition("/")[0]
        clicks = []
        for uri in (storage.join(folder, name) for name in tables.get(folder, []) if not one.kind and name.rpartition(".")[0] == one.run):
            try:
                clicks += [uri] if is_clicks(uri) else []
            except (FormatError, OSError) as error:
                problems.append(Problem(uri, "warning", str(error)))
        if len(clicks) > 1:
            message = f"{', '.join(clicks)}: positions of {one.run!r} in {len(clicks)} files; there must be one: remove the others, or give picks"
            problems.append(Problem(one.uri, "error", message))
        else:
            kept.append(replace(one, picks_uri=clicks[0]) if clicks else one)
    return kept, problems


def _with_told(found: list[Found], told: Told) -> Findings:
    """Add what a person said to the URIs of files of clicks; said of none, it is a problem."""
    if told == Told():
        return found, []
    tables = [one.picks_uri.lower().endswith(SUFFIXES) for one in found]
    if found and not any(tables):
        message = "picks_unit or picks_particle is given, but no tomogram has a CSV or STAR file of positions, which alone may need it; leave it out"
        return found, [Problem(found[0].uri, "warning", message)]
    return [replace(one, picks_uri=told.beside(one.picks_uri)) if table else one for one, table in zip(found, tables, strict=True)], []


def _plain(uri: str) -> Found:
    run = _stem(uri.rpartition("/")[2])
    return Found(run, run, uri)


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".bz2").rpartition(".")[0].removesuffix(".ome")


def _with_sidecar(found: list[Found], picks: str) -> Findings:
    """Give each tomogram its picks from a place of their own; runs there that no tomogram has are problems."""
    try:
        uri_of = _sidecar_runs(picks, found)
    except (FormatError, OSError) as error:
        return found, [Problem(picks, "error", str(error))]
    known = {one.run for one in found}
    problems = [_unknown_run(uri, run) for run, uri in uri_of.items() if run not in known]
    if not uri_of:
        problems.append(Problem(picks, "error", f"{picks}: no picks there; it must hold a CSV or JSON or a Picks folder per run: check the folder"))
    return [replace(one, picks_uri=uri_of.get(one.run, "")) for one in found], problems


def _sidecar_runs(picks: str, found: Sequence[Found]) -> dict[str, str]:
    if picks.lower().endswith(SUFFIXES) and is_clicks(picks):
        named = runs_in(picks)
        if not named and len(found) > 1:
            raise FormatError(f"{picks}: no column names the run, and there are {len(found)} tomograms; add a column `run`, or give a file for each")
        return dict.fromkeys(named or [one.run for one in found], picks)
    if picks.lower().endswith(".star"):
        raise FormatError(f"{picks}: no particle positions in it; it must have rlnCoordinateX or rlnCenteredCoordinateXAngst: give another file")
    if picks.lower().endswith(".csv"):
        return {one.run: picks for one in read_czii_csv(picks)}
    if picks.endswith(".json"):
        runs = {one.run for one in found}
        run = read_copick_picks(picks).run or (runs.pop() if len(runs) == 1 else "")
        if not run:
            raise FormatError(f"{picks}: no run_name, and more than one tomogram; write the run's name into the file")
        return {run: picks}
    names = names_in(picks)
    for inner in ("overlay", "ExperimentRuns"):
        if inner in names:
            return _sidecar_runs(storage.join(picks, inner), found)
    uri_of = {}
    for name in names:
        uri = storage.join(picks, name)
        if name.endswith((".csv", ".json", ".star")):
            uri_of[name.rpartition(".")[0]] = uri
        else:
            inner = storage.join(uri, "Picks")
            folder = next((folder for folder in (uri, inner) if czii_picks_files(folder)), "")
            uri_of |= {name: folder} if folder else {}
    return uri_of


def _without_duplicates(found: Sequence[Found]) -> Findings:
    """Leave out tomograms that share an id; of a labelled one and its unlabelled copies (the zip's `test` folder) the labelled one stays."""
    groups: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        groups[one.tomogram_id].append(one)
    kept, problems = [], []
    for name, group in groups.items():
        labelled = [one for one in group if one.picks_uri]
        if len(group) == 1 or len(labelled) == 1:
            kept.append(labelled[0] if labelled else group[0])
            for copy in (one for one in group if one is not kept[-1]):
                message = f"{copy.uri}: a second tomogram named {name!r}; names must differ: without picks, it is left out for {kept[-1].uri}"
                problems.append(Problem(copy.uri, "warning", message))
        else:
            where = ", ".join(one.uri for one in group)
            message = f"{where}: {len(group)} tomograms named {name!r}; names must differ, for picks are found by them: rename or remove all but one"
            problems.append(Problem(group[0].uri, "error", message))
    return kept, problems


def _unknown_run(picks_uri: str, run: str) -> Problem:
    message = f"{picks_uri}: picks of run {run!r}, for which there is no tomogram; names must agree: rename one of them, or leave the picks out"
    return Problem(picks_uri, "warning", message)


def _joined(findings: Iterable[Findings]) -> Findings:
    found: list[Found] = []
    problems: list[Problem] = []
    for some, wrong in findings:
        found += some
        problems += wrong
    return found, problems


def _in_parallel(function: Callable[[str], Result], names: Iterable[str]) -> list[Result]:
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        return list(pool.map(function, names))
