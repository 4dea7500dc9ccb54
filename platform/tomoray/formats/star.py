"""STAR files of particle positions, as RELION reads and writes them; of the STAR format only plain loops and name-value pairs.

RELION 5 counts angstrom from the tomogram's centre (`rlnCenteredCoordinateXAngst`), earlier versions pixels from its corner
(`rlnCoordinateX`), of whichever pixel; the tomogram is named by `rlnTomoName`, or as subtomograms had it by `rlnMicrographName`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tomoray import storage
from tomoray.tomogram import FormatError, Picks, Triple

Columns = dict[str, list[str]]

CENTRED = tuple(f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ")
PIXELS = tuple(f"rlnCoordinate{axis}" for axis in "XYZ")
SHIFTS = tuple(f"rlnOrigin{axis}{unit}" for axis in "XYZ" for unit in ("", "Angst"))
RUN_COLUMNS = ("rlnTomoName", "rlnMicrographName")
SCORE = "rlnAutopickFigureOfMerit"
WORD = re.compile(r"""'[^']*'|"[^"]*"|\S+""")


def read_star(uri: str) -> dict[str, Columns]:
    """Return the blocks of a STAR file: name without `data_` -> column without `_` -> values as text; a pair is a column of one value.

    Raises
    ------
    FormatError
        If it is no text, or a line is none that can stand there: a row with too few values, a name that was there before.
    """
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise FormatError(f"{uri}: not text; it must be a STAR file: check the file") from None
    blocks: dict[str, Columns] = {}
    block: Columns = {}
    loop: list[str] | None = None  # the columns of the loop that a line may be a row of
    for number, line in enumerate(lines, start=1):
        match _words(line):
            case []:
                pass
            case [head] if head.startswith("data_") and head.removeprefix("data_") not in blocks:
                block, loop = blocks.setdefault(head.removeprefix("data_"), {}), None
            case ["loop_"] if blocks:
                loop = []
            case [head] if loop is not None and head.startswith("_") and head[1:] not in block:
                loop.append(head[1:])
                block[head[1:]] = []
            case [head, value] if blocks and head.startswith("_") and head[1:] not in block:
                block[head[1:]], loop = [value], None
            case words if loop and len(words) == len(loop) and not words[0].startswith("_"):
                for name, word in zip(loop, words, strict=True):
                    block[name].append(word)
            case words:
                row = loop and not words[0].startswith("_")
                wanted = f"a row of {len(loop or [])} values, not {len(words)}" if row else "the begin of a block or loop, or a new name"
                raise FormatError(f"{uri}: line {number}: {line.strip()[:60]!r}; it must be {wanted}: correct the file")
    return blocks


def has_positions(uri: str) -> bool:
    """Return whether a STAR file holds positions, which those of tilt series and micrographs beside tomograms do not."""
    return any(set(CENTRED) <= set(block) or set(PIXELS) <= set(block) for block in read_star(uri).values())


def star_runs(uri: str) -> list[str]:
    """Return the runs that a STAR file of positions names, in order; none where it names none."""
    block = _positions_block(uri)
    return list(dict.fromkeys(_run_of(value) for value in block.get(_run_column(block), [])))


def read_star_picks(
    uri: str, run: str, *, particle: str, shape_zyx: Sequence[int], voxel_angstrom: float, pixel_angstrom: float | None = None
) -> Picks:
    """Return the picks of one run; of a file that names no run, all.

    Parameters
    ----------
    particle
        Their class, which STAR files do not say.
    shape_zyx, voxel_angstrom
        The tomogram's, from whose centre or corner positions count.
    pixel_angstrom
        Size of the pixel that `rlnCoordinateX` counts; needed where the tilt series' pixel is stated and is not the tomogram's voxel.

    Raises
    ------
    FormatError
        If nothing of that run is there, a value is no finite number, positions are shifted by `rlnOrigin`, or the pixel is not plain.
    """
    block = _positions_block(uri)
    names = block.get(_run_column(block))
    keep = [place for place in range(len(next(iter(block.values())))) if names is None or _run_of(names[place]) == run]
    if not keep and names:
        raise FormatError(f"{uri}: no picks of run {run!r}; it names {', '.join(star_runs(uri)[:5])}: give the file that holds this tomogram")

    def numbers(columns: Sequence[str]) -> NDArray[np.float64]:
        try:
            values = np.array([[float(block[name][place]) for name in columns] for place in keep], dtype=np.float64).reshape(-1, len(columns))
        except ValueError as error:
            raise FormatError(f"{uri}: {error}; {', '.join(columns)} must hold numbers: correct the file") from None
        if not np.isfinite(values).all():
            raise FormatError(f"{uri}: a value of {', '.join(columns)} is not finite; it must be a number: correct or remove that row")
        return values

    if shifts := [name for name in SHIFTS if name in block and numbers([name]).any()]:
        raise FormatError(f"{uri}: positions are shifted by {', '.join(shifts)}; they must be where particles lie: re-centre them in RELION")
    if set(CENTRED) <= set(block):
        positions_zyx = numbers(CENTRED)[:, ::-1] + 0.5 * voxel_angstrom * np.asarray(shape_zyx)
    else:
        positions_zyx = numbers(PIXELS)[:, ::-1] * (pixel_angstrom or _plain_pixel(uri, voxel_angstrom))
    scores = numbers([SCORE])[:, 0] if SCORE in block else np.ones(len(keep))
    return Picks(run, positions_zyx, np.array([particle] * len(keep), dtype=np.str_), scores)


def write_star(uri: str, picks: Sequence[Picks], extents_zyx: Mapping[str, Triple]) -> None:
    """Write picks of one class and any number of runs as RELION 5 has them: angstrom from the centre, scores as figures of merit.

    Parameters
    ----------
    extents_zyx
        Run -> edge lengths of its tomogram along z, y, x, in angstrom.

    Raises
    ------
    FormatError
        If a run's name is empty or holds a space or a quote, which no column of a STAR file can.
    """
    names = (RUN_COLUMNS[0], *CENTRED, SCORE)
    lines = ["", "data_particles", "", "loop_", *(f"_{name} #{number}" for number, name in enumerate(names, start=1))]
    for one in picks:
        if not one.run or re.search(r"[\s'\"#]", one.run):
            raise FormatError(f"{uri}: a run named {one.run!r}; in a STAR file it must be without spaces, quotes and '#': rename the tomogram")
        centred = one.positions_zyx - 0.5 * np.asarray(extents_zyx[one.run])
        rows = zip(centred[:, ::-1].tolist(), one.scores.tolist(), strict=True)
        lines += [f"{one.run} {x:.4f} {y:.4f} {z:.4f} {score:.6f}" for (x, y, z), score in rows]
    storage.write_bytes(uri, ("\n".join(lines) + "\n").encode())


def _words(line: str) -> list[str]:
    words = []
    for word in WORD.findall(line):
        if word.startswith("#"):
            break
        words.append(word[1:-1] if word[0] in "'\"" and word[-1] == word[0] and len(word) > 1 else word)
    return words


def _positions_block(uri: str) -> Columns:
    """Return the one block with positions, whose columns are equally long."""
    blocks = read_star(uri)
    found = [block for block in blocks.values() if set(CENTRED) <= set(block) or set(PIXELS) <= set(block)]
    if len(found) != 1:
        raise FormatError(f"{uri}: {len(found)} blocks with {PIXELS[0]} or {CENTRED[0]}; there must be one: give a file of particle positions")
    return found[0]


def _plain_pixel(uri: str, voxel_angstrom: float) -> float:
    """Return the voxel size as that of pixels, unless the file states another of the tilt series, which RELION 4 counts in."""
    stated = {float(value) for block in read_star(uri).values() for value in block.get("rlnTomoTiltSeriesPixelSize", [])}
    if any(abs(size - voxel_angstrom) > 0.01 * voxel_angstrom for size in stated):
        raise FormatError(
            f"{uri}: {PIXELS[0]} in pixels, of the tilt series' {', '.join(f'{size:g}' for size in sorted(stated))} angstrom or of the tomogram's "
            f"{voxel_angstrom:g}; which must be plain: give picks_unit as the pixel's size in angstrom, or 'voxel' for the tomogram's"
        )
    return voxel_angstrom


def _run_column(block: Columns) -> str:
    return next((name for name in RUN_COLUMNS if name in block), "")


def _run_of(value: str) -> str:
    """Return the run of a tomogram's name, which may be a path."""
    name = value.rpartition("/")[2]
    return name.rpartition(".")[0] if name.lower().endswith((".mrc", ".rec", ".map", ".tomostar")) else name
