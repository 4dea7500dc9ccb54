"""One simulated tomogram, and whole data sets of them in the layout of the CZII challenge."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict

import numpy as np

from tomoray import storage
from tomoray.config import ConfigError
from tomoray.simulate.density import draw
from tomoray.simulate.layout import Seed, place
from tomoray.simulate.optics import Optics, image
from tomoray.simulate.scene import Scene
from tomoray.tomogram import Picks, Tomogram

FORMATS = ("zarr", "mrc")


def simulate_tomogram(scene: Scene, *, seed: Seed, name: str) -> tuple[Tomogram, Picks]:
    """Return a tomogram (float32) and all particles that are in it.

    The same scene and seed give the same voxels, bit for bit on the same machine; `name` is a label only.

    Raises
    ------
    ConfigError, FormatError
        If a class has neither a built-in shape nor a usable map.
    """
    layout = place(scene, seed=seed, name=name)
    _, optics_stream, noise_stream = np.random.default_rng(seed).spawn(3)  # the first is the layout's
    voxels = image(draw(scene, layout), scene, Optics.sample(scene, optics_stream), noise_stream)
    return Tomogram(name, voxels, (scene.voxel_angstrom,) * 3), layout.picks


def write_dataset(
    root: storage.Uri,
    scene: Scene,
    *,
    runs: int,
    seed: int,
    labelled: int | None = None,
    formats: Sequence[str] = ("zarr",),
    workers: int = 1,
    on_done: Callable[[str], None] | None = None,
    prefix: str = "TS",
) -> list[str]:
    """Write tomograms `TS_0001`, `TS_0002`, ... in the CZII layout and return their names; what is there already is not made again.

    Volumes lie under `static/`, picks (user `curation`, session `0`) of the first `labelled` runs under `overlay/`, and the truth of
    all runs, labelled or not, in `truth.csv`. Tomogram `i` depends on the scene, `seed` and `i` only, so more runs can be added later.

    Parameters
    ----------
    labelled
        How many runs get picks; all where it is None.
    formats
        "zarr", "mrc" or both.
    workers
        Tomograms made side by side, in threads; one of 184 x 630 x 630 voxels takes about 1.5 GB.
    on_done
        Called with the name of each run as it is complete, in no particular order.
    prefix
        What run names begin with; give data sets that are used together different ones.

    Raises
    ------
    ConfigError
        If a number or a format is impossible, or `root` holds tomograms of another scene, seed or number of labelled runs.
    """
    _check(runs, labelled, formats, workers, seed)
    root = storage.as_text(root)
    _claim(root, scene, seed, labelled, prefix)
    names = [f"{prefix}_{i + 1:04d}" for i in range(runs)]
    with ThreadPoolExecutor(workers) as pool:
        jobs = {
            pool.submit(_write_run, root, scene, (seed, i), name, labelled is None or i < labelled, formats): name for i, name in enumerate(names)
        }
        try:
            for job in as_completed(jobs):
                job.result()
                if on_done is not None:
                    on_done(jobs[job])
        finally:
            pool.shutdown(cancel_futures=True)
    from tomoray.formats.czii import write_czii_csv

    folders = storage.list_names(storage.join(root, "static", "ExperimentRuns"))  # an earlier call may have made more than this one
    numbers = [int(name.removeprefix(f"{prefix}_")) for name in folders if name.startswith(f"{prefix}_")]
    truth = [place(scene, seed=(seed, number - 1), name=f"{prefix}_{number:04d}").picks for number in numbers]
    write_czii_csv(storage.join(root, "truth.csv"), truth)
    return names


def _write_run(root: str, scene: Scene, seed: Seed, name: str, with_picks: bool, formats: Sequence[str]) -> None:
    """Make a tomogram unless all its files are there; each file or folder appears whole or not at all."""
    from tomoray.formats.copick import write_copick_picks
    from tomoray.formats.czii import picks_folder, tomogram_uri
    from tomoray.formats.mrc import write_mrc
    from tomoray.formats.ome_zarr import write_ome_zarr

    volume = tomogram_uri(root, name).removesuffix("zarr")
    picks_uri = {p.name: storage.join(picks_folder(root, name), f"{p.name}.json") for p in scene.particles if with_picks}
    last_parts = {"zarr": f"{volume}zarr/.zattrs", "mrc": f"{volume}mrc"}
    if all(storage.exists(uri) for uri in [*picks_uri.values(), *(last_parts[f] for f in formats)]):
        return
    tomogram, picks = simulate_tomogram(scene, seed=seed, name=name)
    if "zarr" in formats:
        write_ome_zarr(f"{volume}zarr", tomogram)
    if "mrc" in formats:
        write_mrc(f"{volume}mrc", tomogram)
    for particle, uri in picks_uri.items():
        write_copick_picks(uri, picks, particle=particle, user_id="curation", session_id="0")


def _claim(root: str, scene: Scene, seed: int, labelled: int | None, prefix: str) -> None:
    """Write what the data set is made of into `scene.json`, or stop if something else is there.

    Without it a second call with other settings would skip old tomograms and give them a new truth.
    """
    record = json.loads(json.dumps({"scene": asdict(scene), "seed": seed, "labelled": labelled, "prefix": prefix}))
    uri = storage.join(root, "scene.json")
    if not storage.exists(uri):
        storage.write_bytes(uri, json.dumps(record, indent=1).encode())
        return
    there = json.loads(storage.read_bytes(uri))
    if there != record:
        old, new = {**there, **there["scene"]}, {**record, **record["scene"]}
        changed = [f"{key} {old.get(key)} -> {new.get(key)}" for key in new if key != "scene" and old.get(key) != new.get(key)]
        raise ConfigError(
            f"{root}: it holds tomograms made with other settings ({'; '.join(changed)}); one folder holds one data set: "
            "give another folder, or remove this one"
        )


def _check(runs: int, labelled: int | None, formats: Sequence[str], workers: int, seed: int) -> None:
    if runs < 1 or workers < 1 or (labelled is not None and not 0 <= labelled <= runs):
        raise ConfigError(
            f"runs = {runs}, labelled = {labelled}, workers = {workers}: runs and workers must be 1 or more and labelled between 0 and runs; "
            "correct the numbers"
        )
    if seed < 0:
        raise ConfigError(f"seed = {seed}: it must be 0 or more; give another")
    if not formats or set(formats) - set(FORMATS):
        raise ConfigError(f"formats = {tuple(formats)}: they must be some of {', '.join(FORMATS)}; give at least one of these")
