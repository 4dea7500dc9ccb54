"""What goes to a cluster with a job: its settings, checked and such that they mean the same there, the package, and the command to run."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomoray
from tomoray import storage
from tomoray.config import ConfigError, Settings, dump_settings, flatten, read_settings_text
from tomoray.jobs import JOBS, TuneJob
from tomoray.models import is_model
from tomoray.provenance import COMMIT, commit

FOLDER = "jobs"  # of the job file, in what is sent
IGNORED = ".rayignore"

# Keys that name places. A job within a job gets most of its own from the job around it, so that only the latter count there.
PLACES = ("output", "catalogue", "source", "truth", "checkpoint", "candidates", "start_from")
INNER_PLACES = ("checkpoint", "candidates", "start_from")

FAILED, STOPPED, BY_SIGNAL = 1, 130, 128  # exit statuses, as shells give them


def verb_of(job_file: str | Path) -> str:
    """Return the verb of a job file: its name up to the first underscore or dot.

    Raises
    ------
    ConfigError
        If that is no verb.
    """
    word = Path(job_file).name.partition(".")[0].partition("_")[0]
    if word not in JOBS:
        known = ", ".join(JOBS)
        raise ConfigError(f"{job_file or 'no job file'}: {word!r} at its start is no verb; there are {known}: give --verb, or rename the file")
    return word


def job_for_cluster(verb: str, job: Settings, root: str = "") -> Settings:
    """Return a job as any machine can run it: what it reads from other files of the checkout is part of it, and relative places are under `root`.

    Raises
    ------
    ConfigError
        If a path means something on this machine only.
    """
    if root:
        moved = {key: [_under(root, one) for one in place] if isinstance(place, list) else _under(root, place) for key, place in _places(verb, job)}
        job = read_settings_text(type(job), dump_settings(job), "--root", moved)
    named = ((key, one) for key, place in _places(verb, job) for one in (place if isinstance(place, list) else [place]))
    here = [f"{key} = {place!r}" for key, place in named if _is_here(place)]
    if here:
        raise ConfigError(
            f"{'; '.join(here)}: beside you, where no cluster looks, and what a job writes beside itself goes with it; places must be s3://, "
            "https:// or absolute paths on storage that all nodes share: give others, or with --root what relative ones are under"
        )
    if isinstance(job, TuneJob) and isinstance(job.space, str):
        return job.model_copy(update={"space": job.read_space().model_dump(mode="json", exclude_defaults=True)})
    return job


def _places(verb: str, job: Settings) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a job that name places, and the place or the list of places that each names."""
    outer = {key: value for key, value in job.model_dump(mode="json").items() if not isinstance(value, dict)}
    for key, value in flatten({**job.model_dump(mode="json", exclude_defaults=True), **outer}).items():
        *parents, name = key.split(".")
        if value and (name in (INNER_PLACES if parents else PLACES) or parents == ["maps"] or (verb == "score" and key == "picks")):
            yield key, value


def _under(root: str, place: str) -> str:
    """Return a place of the same name under `root`; those of one's home or outside the working directory have none."""
    return storage.join(root, place) if _is_here(place) and not place.startswith(("~", "..")) else place


def _is_here(place: Any) -> bool:
    return not is_model(place) and storage.is_local(place) and not Path(storage.as_text(place)).is_absolute()


def command(verb: str, name: str, *, verbose: bool = False) -> str:
    """Return the line for the cluster's shell that runs a packed job. Settings are in the file, so that no process list shows them."""
    return shlex.join(["python", "-m", "tomoray", verb, f"{FOLDER}/{name}", *(["--verbose"] if verbose else [])])


def fingerprint(verb: str, job: Settings, length: int = 12) -> str:
    """Return a short hash of what a job does, by which it is known on the cluster."""
    return hashlib.sha256(f"{verb}\n{dump_settings(job)}".encode()).hexdigest()[:length]


def pack(folder: Path, name: str, job: Settings, *, package: bool = True) -> list[Path]:
    """Fill an empty folder with the job's file and this very package, and return the paths in it.

    Of the package only source files are taken, and its commit. A `.rayignore` of the checkout comes along, and Ray leaves out what it names.
    """
    (folder / FOLDER).mkdir()
    (folder / FOLDER / name).write_text(dump_settings(job), encoding="utf-8")
    if package:
        ours = Path(tomoray.__file__).parent
        for source in [*sorted(ours.rglob("*.py")), ours / "py.typed"]:
            target = folder / "tomoray" / source.relative_to(ours)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        (folder / "tomoray" / COMMIT).write_text(commit(), encoding="utf-8")
        if (ignored := ours.parents[1] / IGNORED).is_file():
            shutil.copyfile(ignored, folder / IGNORED)
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def exit_status(state: str, code: int | None) -> int:
    """Return what the command ended with on the cluster, from Ray's state of the job and the exit code of its driver.

    Ray knows jobs that succeeded, failed or were stopped; only the code tells a job that must be corrected (2) from one that is done but for
    what failed (3). There is none where the command was never started or was lost with its node: that is 1.
    """
    if state == "SUCCEEDED":
        return 0
    if state == "STOPPED":
        return STOPPED
    if not code:
        return FAILED
    return code if code > 0 else BY_SIGNAL - code
