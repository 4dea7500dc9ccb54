"""From candidates tables to the picks that people use, without a network: thresholds applied, copick and STAR files and one CSV written."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from tomoray import storage
from tomoray.checkpoint import Card
from tomoray.config import ConfigError
from tomoray.formats.candidates import read_candidates
from tomoray.formats.copick import picks_file_name, write_copick_picks
from tomoray.formats.czii import picks_folder, write_czii_csv
from tomoray.formats.star import write_star
from tomoray.thresholds import apply_thresholds
from tomoray.tomogram import Picks, Triple

log = logging.getLogger(__name__)

SUFFIX = ".parquet"
AT_A_TIME = 8  # tables; object stores answer late, and many at once


def table_uri(folder: str, tomogram_id: str) -> str:
    """Return where the candidates of a tomogram lie."""
    return storage.join(folder, f"{tomogram_id}{SUFFIX}")


def committed(folder: str) -> set[str]:
    """Return the ids of the tomograms whose table exists."""
    names = storage.list_names(folder) if storage.exists(folder) else []
    return {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)}


def find_tables(folder: str) -> str:
    """Return the folder if it holds candidates tables, else the one folder in it that does.

    Raises
    ------
    ConfigError
        If there is none, or there are several.
    """
    if committed(folder):
        return folder
    inner = [storage.join(folder, name) for name in storage.list_names(folder)] if storage.exists(folder) else []
    found = [uri for uri in inner if committed(uri)]
    if len(found) != 1:
        there = f"there are several in it: {', '.join(found)}" if found else "there are none in it"
        raise ConfigError(f"{folder}: one folder of candidates tables is needed, and {there}; give the one that `tomoray pick` printed")
    return found[0]


def choose(card: Card, given: Mapping[str, float], numbers: Mapping[str, int] | None = None) -> dict[str, float]:
    """Return class -> threshold: the given one, else the card's; 0, below all scores, for a class of which `numbers` says how many to pick.

    Raises
    ------
    ConfigError
        If a class has neither, or something is given for a class that there is not, or both for one.
    """
    names, numbers = [p.name for p in card.particles], numbers or {}
    for what, table in (("thresholds", given), ("numbers", numbers)):
        if unknown := sorted(set(table) - set(names)):
            raise ConfigError(f"{what}: {', '.join(unknown)} is no class of the checkpoint; its classes are {', '.join(names)}: correct the name")
    if both := sorted(set(given) & set(numbers)):
        raise ConfigError(f"{', '.join(both)}: both a threshold and a number are given; picks are chosen by one of them: remove the other")
    thresholds = {**card.thresholds, **given, **dict.fromkeys(numbers, 0.0)}
    if missing := [name for name in names if name not in thresholds]:
        raise ConfigError(f"thresholds: none for {', '.join(missing)} on the checkpoint's card; every class needs one: give thresholds in the job")
    return {name: thresholds[name] for name in names}


@dataclass(frozen=True)
class Outputs:
    """Which files are written beside the CSV: copick's, one per class and tomogram, and RELION's, one per class."""

    copick: bool = True
    star: bool = True


def write_picks(
    output: str,
    folder: str,
    ids: Collection[str],
    thresholds: Mapping[str, float],
    *,
    numbers: Mapping[str, int] | None = None,
    outputs: Outputs | None = None,
) -> tuple[str, int]:
    """Write the picks of some tables; return the path of the CSV, which has the form of a CZII submission, and how many there are.

    Of the classes in `numbers` so many are picked in each tomogram, or what there is with a warning.
    """
    outputs, extents = outputs or Outputs(), dict[str, Triple]()

    def derive(tomogram_id: str) -> Picks:
        candidates, about = read_candidates(table_uri(folder, tomogram_id))
        picks = apply_thresholds(candidates, thresholds).highest(numbers or {})
        for name, number in (numbers or {}).items():
            if (there := len(picks.of(name))) < number:
                log.warning("%s: %d candidates of %s, fewer than %d; pick again with a lower floor to have more", tomogram_id, there, name, number)
        for name in thresholds if outputs.copick else ():
            target = storage.join(picks_folder(output, picks.run, part=""), picks_file_name(name))
            write_copick_picks(target, picks.of(name), particle=name, voxel_angstrom=about.get("voxel_angstrom"))
        if "extent_angstrom" in about:
            extents[picks.run] = tuple(about["extent_angstrom"])
        return picks

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        derived = pool.map(derive, sorted(ids))
        everything = list(tqdm(derived, total=len(ids), desc="threshold", unit="tomogram", leave=False))
    csv = storage.join(output, "picks.csv")
    write_czii_csv(csv, everything)
    if outputs.star:
        _write_stars(output, everything, thresholds, extents)
    return csv, sum(map(len, everything))


def _write_stars(output: str, picks: Sequence[Picks], names: Collection[str], extents: Mapping[str, Triple]) -> None:
    """Write `star/<class>.star` with the picks of all tomograms, whose centres must be known."""
    if unknown := [one.run for one in picks if one.run not in extents]:
        log.warning("%s: no STAR files, since tables of an older version do not say where its centre is; pick again to have them", unknown[0])
        return
    for name in names:
        write_star(storage.join(output, "star", f"{name}.star"), [one.of(name) for one in picks], extents)
