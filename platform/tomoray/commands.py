"""What each verb of the command line does: run a job, and say in words what came of it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tomoray import storage
from tomoray.catalogue import CatalogueRow, assign_splits, read_catalogue, read_row_picks, write_catalogue
from tomoray.config import ConfigError, Settings, dump_settings
from tomoray.credentials import redacted
from tomoray.demo import demo_jobs, look
from tomoray.formats.clicks import Told
from tomoray.formats.czii import read_czii_csv
from tomoray.formats.layouts import Problem
from tomoray.index import index
from tomoray.jobs import DemoJob, IndexJob, IngestJob, PickJob, ScoreJob, SimulateJob, StudyJob, ThresholdJob, TrainJob, TuneJob
from tomoray.models import with_checkpoints
from tomoray.score_table import score_table
from tomoray.scoring import score_picks
from tomoray.simulate import CZII_PER_UM3, Scene, write_dataset
from tomoray.study import steps_of
from tomoray.submission import STOPPED, command, exit_status, pack

DONE, SOME_FAILED = 0, 3
WARNINGS_SHOWN = 3  # of one kind
KIND = 40  # letters by which warnings are told apart
OBJECTIVES = {"f1": "F1", "czii": "F4"}


@dataclass(frozen=True)
class Sending:
    """How a job is to be sent: the name of its file, the cluster, and whether this package goes with it or the cluster's own is used."""

    name: str
    address: str = ""
    package: bool = True
    verbose: bool = False


def run(verb: str, job: Settings, *, dry_run: bool = False) -> int:
    """Run a job, or only check it, and return the exit status. Registered models are fetched first, beside what the job writes."""
    commands: dict[str, Callable[[Any, bool], int]] = {
        "simulate": simulate,
        "index": make_index,
        "ingest": ingest,
        "train": train,
        "study": study,
        "tune": tune,
        "pick": pick,
        "threshold": threshold,
        "score": score,
        "demo": demo,
    }
    with tempfile.TemporaryDirectory() as temporary:

        def fetched(address: str) -> str:
            from tomoray.cluster.tracking import fetch_model

            return fetch_model(address, temporary if dry_run else storage.join(getattr(job, "output", ""), "models"))

        return commands[verb](with_checkpoints(job, fetched), dry_run)


def say(text: str) -> None:
    """Tell the person at the command line."""
    tqdm.write(text)


def simulate(job: SimulateJob, dry_run: bool = False) -> int:
    """Write simulated tomograms in the CZII layout."""
    scene = Scene(
        shape_zyx=job.shape_zyx,
        voxel_angstrom=job.voxel_angstrom,
        per_um3={**CZII_PER_UM3, **job.per_um3},
        crowding=job.crowding,
        noise=Scene.noise if job.noise is None else job.noise,
        domain_shift=job.domain_shift,
        contrast=job.contrast,
        maps=job.maps,
    )
    if dry_run:
        return DONE
    with tqdm(total=job.tomograms, desc="simulate", unit="tomogram") as bar:
        runs = write_dataset(
            job.output,
            scene,
            runs=job.tomograms,
            seed=job.seed,
            labelled=job.tomograms - job.unlabelled,
            formats=job.formats,
            workers=job.workers or os.cpu_count() or 1,
            on_done=lambda _: bar.update(1),
        )
    say(f"{len(runs)} tomograms of {job.shape_zyx} voxels in {job.output}; all truth is in {storage.join(job.output, 'truth.csv')}")
    return DONE


def make_index(job: IndexJob, dry_run: bool = False) -> int:
    """Write the catalogue, and list everything that is wrong."""
    with tqdm(desc="index", unit="tomogram") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        rows, problems = index(
            job.source,
            picks=job.picks,
            kinds=job.kinds,
            told=Told(job.picks_unit, job.picks_particle),
            particles=job.particles,
            contrast=job.contrast,
            voxel_angstrom=job.voxel_angstrom,
            permissive=job.permissive,
            progress=progress,
        )
    _tell(problems)
    errors = sum(problem.level == "error" for problem in problems)
    if not rows:
        raise ConfigError(f"{job.source}: no usable tomogram, {errors} errors; see above, or give another source")
    rows = assign_splits(rows, validation=job.validation, test=job.test, seed=job.seed)
    if not dry_run:
        write_catalogue(job.output, rows)
    counts = Counter(row.split or "left out" for row in rows)
    say(f"{len(rows)} tomograms ({', '.join(f'{n} {split}' for split, n in counts.items())}), {errors} errors -> {job.output}")
    return SOME_FAILED if errors else DONE


def _tell(problems: Sequence[Problem]) -> None:
    """List every error, and of warnings that say the same of many tomograms the first few."""
    alike: Counter[str] = Counter()
    for problem in problems:
        kind = problem.message.removeprefix(problem.uri)[:KIND]
        alike[kind] += problem.level == "warning"
        if alike[kind] <= WARNINGS_SHOWN:
            say(f"{problem.level}: {problem.message}")
    for kind, count in alike.items():
        if count > WARNINGS_SHOWN:
            say(f"warning: and {count - WARNINGS_SHOWN} more that begin with {kind.lstrip(': ')!r}")


def ingest(job: IngestJob, dry_run: bool = False) -> int:
    """Rewrite tomograms for training and say where their catalogue is; status 3 where some could not be rewritten."""
    from tomoray.cluster import ingest as ingesting
    from tomoray.ingest import finished_rows

    if dry_run:
        rows, layout = read_catalogue(job.catalogue), ingesting.layout_of(job)
        left = len(rows) - len(finished_rows(rows, job.output, layout))
        say(f"would ingest {left} of {len(rows)} tomograms in chunks of {layout.chunk_vox} and shards of {layout.shard_vox} voxels")
        return DONE
    ingested = ingesting.ingest_all(job)
    for failure in ingested.failures:
        say(f"failed: {failure.tomogram_id}: {failure.reason}")
    say(f"{ingested.rows} tomograms ingested ({ingested.now} now), {len(ingested.failures)} failed -> {ingested.catalogue}")
    return SOME_FAILED if ingested.failures else DONE


def train(job: TrainJob, dry_run: bool = False) -> int:
    """Train a picker and say where it is."""
    from tomoray.cluster import train as training

    if dry_run:
        streams, validation = training.training_rows(job)
        method = training.build_method(job, training.counts_for(job, streams["labelled"]))
        weights = sum(p.numel() for p in method.parameters() if p.requires_grad)
        counts = ", ".join(f"{len(rows)} {name}" for name, rows in streams.items())
        say(f"would train {weights:,} weights on {counts} tomograms and validate on {len(validation)}")
        return DONE
    trained = training.train(job)
    f1 = trained.card.validation["f1"]
    say(f"picker: {trained.checkpoint}")
    say(f"F1 at half the radius on {len(f1['runs'])} validation tomograms: {f1['value']:.3f}; thresholds: {_spell(trained.card.thresholds)}")
    if "soft_f1" in trained.card.validation:
        say(f"soft F1, by which the best of its checkpoints was told: {trained.card.validation['soft_f1']:.3f}")
    if expected := trained.card.validation.get("expected"):
        say(f"{OBJECTIVES[job.validation.objective]} to expect on other tomograms: {_spell(expected)}")
    if trained.model:
        say(f"model:  {trained.model}")
    say(f"MLflow: {trained.run}")
    return DONE


def study(job: StudyJob, dry_run: bool = False) -> int:
    """Compare ways to train and print the table; status 3 where some trials failed."""
    from tomoray.cluster import study as studies

    if dry_run:
        trials, rows = studies.plan(job)
        done = studies.finished(storage.join(job.output, job.name), trials)
        for trial in trials:
            start = f" from {trial.after}" if trial.after else ""
            say(f"{trial.name}: {trial.own_steps:,} steps{start}{', done' if trial.name in done else ''}")
        todo = [trial for trial in trials if trial.name not in done]
        steps = sum(trial.own_steps for trial in todo)
        what = f"{len(rows)} tomograms of split {', '.join(job.splits)}"
        say(f"would train {len(todo)} of {len(trials)} trials, {steps:,} steps, and score each on {what}")
        return DONE
    compared = studies.run_study(job)
    say(compared.text)
    say(f"{len(compared.trained)} trials trained now, {len(compared.failures)} failed")
    for name, reason in compared.failures.items():
        say(f"failed: {name}: {reason}")
    say(f"table:  {storage.join(compared.folder, studies.TABLE)}, all values {storage.join(compared.folder, studies.DATA)}")
    say(f"MLflow: {compared.run}")
    return SOME_FAILED if compared.failures else DONE


def tune(job: TuneJob, dry_run: bool = False) -> int:
    """Search a space and say what did best and where it is; status 3 where some trials failed, or none was finished."""
    from tomoray.cluster import tune as tuning
    from tomoray.cluster.session import session
    from tomoray.search import trials_of

    if dry_run:
        planned = tuning.plan(job)
        total, over = trials_of(job, planned.space), sum(trial.is_over for trial in tuning.known_trials(planned))
        for key, parameter in planned.space.space.items():
            say(f"{key}: {parameter}")
        with session():
            limit = tuning.at_a_time(planned)
        steps = f", {steps_of(job.train):,} steps each at most" if planned.space.verb == "train" else ""
        say(f"would run {max(0, total - over)} of {total} trials ({job.search}){steps}, {limit} at a time, and compare them by {job.metric}")
        return DONE
    swept = tuning.run_sweep(job)
    say(swept.text)
    failed = sum(trial.state == "failed" for trial in swept.trials)
    say(f"{swept.ran} trials run now, {failed} of {len(swept.trials)} failed")
    for what, where in swept.files.items():
        say(f"{what}: {where}")
    say(f"MLflow: {swept.run}")
    return SOME_FAILED if failed or swept.winner is None else DONE


def pick(job: PickJob, dry_run: bool = False) -> int:
    """Pick all tomograms of a catalogue and say where everything is; status 3 where some could not be picked."""
    from tomoray.cluster import pick as picking
    from tomoray.ensemble import ensemble_card
    from tomoray.results import committed

    if dry_run:
        rows, card = picking.wanted_rows(job), ensemble_card(job.checkpoints)
        done = committed(picking.candidates_folder(job, card))
        say(f"would pick {sum(row.tomogram_id not in done for row in rows)} of {len(rows)} tomograms")
        return DONE
    picked = picking.pick_all(job)
    say(f"{len(picked.picked)} tomograms picked ({picked.skipped} before), {len(picked.failures)} failed, in {picked.wall_s:.0f} s")
    for failure in picked.failures:
        say(f"failed: {failure.tomogram_id}: {failure.reason}")
    say(f"picks:      {picked.picks_csv}, {storage.join(job.output, 'ExperimentRuns')} and {storage.join(job.output, 'star')}")
    say(f"candidates: {picked.candidates}")
    say(f"failures:   {storage.join(job.output, 'failures.parquet')}")
    say(f"MLflow:     {picked.run}")
    return SOME_FAILED if picked.failures else DONE


def threshold(job: ThresholdJob, dry_run: bool = False) -> int:
    """Derive picks again from candidates, and say where they are."""
    from tomoray import results
    from tomoray.formats.candidates import read_candidates
    from tomoray.held_out import card_of, choose_on

    began, folder = time.perf_counter(), results.find_tables(job.candidates)
    ids = results.committed(folder)
    about, card = read_candidates(results.table_uri(folder, min(ids)))[1], card_of(job, folder)
    if job.catalogue:
        rows = scored_rows(job.catalogue, job.splits)
        card, expected = choose_on(job, card, folder, rows)
        say(f"thresholds chosen on {len(rows)} tomograms" + (f"; to expect on others: {_spell(expected)}" if expected else ""))
    thresholds = results.choose(card, job.thresholds, job.numbers)
    if below := [name for name, value in thresholds.items() if value < about["floor"] and name not in job.numbers]:
        say(f"warning: thresholds of {', '.join(below)} lie below {about['floor']:g}, under which `tomoray pick` kept no candidates")
    if dry_run:
        say(f"would apply {_spell(thresholds)} to {len(ids)} tables of {folder}")
        return DONE
    csv, count = results.write_picks(job.output, folder, ids, thresholds, numbers=job.numbers, outputs=results.Outputs(job.copick, job.star))
    say(f"{count} picks of {len(ids)} tomograms, in {time.perf_counter() - began:.1f} s; thresholds: {_spell(thresholds)}")
    written = [storage.join(job.output, name) for name, wanted in (("ExperimentRuns", job.copick), ("star", job.star)) if wanted]
    say(f"picks: {', '.join([csv, *written])}")
    return DONE


def submit(verb: str, job: Settings, sending: Sending, *, dry_run: bool = False) -> int:
    """Send a job to a cluster, show its log, and return what it ended with there; Ctrl-C leaves it running."""
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            paths = pack(Path(folder), sending.name, job, package=sending.package)
            size = sum((Path(folder) / path).stat().st_size for path in paths)
        say(f"would send {len(paths)} files, {size / 1e3:.0f} kB, and run: {command(verb, sending.name, verbose=sending.verbose)}")
        return DONE
    from tomoray.cluster import submit as cluster

    sent = cluster.submit(verb, sending.name, job, address=sending.address, package=sending.package, verbose=sending.verbose)
    found = "runs there already, and is followed" if sent.found else "sent"
    try:
        _pass_on(f"{found}: {sent.submission_id} at {sent.address}\n")
        details = cluster.follow(sent, _pass_on)
    except KeyboardInterrupt:
        say(f"{sent.submission_id} goes on without us; the same command follows it again. To stop it:")
        say(f"  ray job stop {sent.submission_id} --address {sent.address}")
        return STOPPED
    status = exit_status(str(details.status), details.driver_exit_code)
    reason = f": {redacted(details.message or '')}" if status and details.driver_exit_code is None else ""
    say(f"{sent.submission_id}: {str(details.status).lower()}, status {status}{reason}")
    return status


def _pass_on(text: str) -> None:
    """Show a part of a log at once, also where it goes into a file."""
    sys.stdout.write(text)
    sys.stdout.flush()


def score(job: ScoreJob, dry_run: bool = False) -> int:
    """Print the per-class table of picks against the truth."""
    truth = read_czii_csv(job.truth) if job.truth else [read_row_picks(row) for row in scored_rows(job.catalogue, job.splits)]
    picks = read_czii_csv(job.picks if job.picks.endswith(".csv") else storage.join(job.picks, "picks.csv"))
    if dry_run:
        return DONE
    scores = score_picks(truth, picks, job.particle_list(), distance_angstrom=job.distance_angstrom)
    table = score_table(scores)
    say(table)
    if job.output:
        storage.write_bytes(storage.join(job.output, "score.md"), table.encode())
        storage.write_bytes(storage.join(job.output, "score.json"), json.dumps({k: v.as_dict() for k, v in scores.items()}, indent=2).encode())
    return DONE


def scored_rows(catalogue: str, splits: Sequence[str]) -> list[CatalogueRow]:
    """Return the labelled rows of some splits, or of all.

    Raises
    ------
    ConfigError
        If there is none.
    """
    rows = [row for row in read_catalogue(catalogue) if row.is_labelled and (not splits or row.split in splits)]
    if not rows:
        raise ConfigError(f"{catalogue}: no labelled tomogram of split {', '.join(splits) or 'any'}; give other splits, or a CSV as truth")
    return rows


def demo(job: DemoJob, dry_run: bool = False) -> int:
    """Simulate, index, train, pick what was held back, score it, and draw it."""
    began, jobs = time.perf_counter(), demo_jobs(job)
    if dry_run:
        return DONE
    if storage.is_local(job.output):  # else MLflow is where the environment says
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path(job.output).resolve() / 'mlflow.db'}")
        Path(job.output).mkdir(parents=True, exist_ok=True)
    status = 0
    for verb, step in jobs.items():
        say(f"\n== tomoray {verb} ==")
        storage.write_bytes(storage.join(job.output, f"{verb}.toml"), dump_settings(step).encode())
        status = max(status, run(verb, step))
    report, picture = look(jobs["score"], scored_rows(jobs["score"].catalogue, ("test",)))
    say(f"\nThe whole main job took {(time.perf_counter() - began) / 60:.1f} minutes. Look at")
    say(f"  report   {report}")
    say(f"  picture  {picture}")
    if tracking := os.environ.get("MLFLOW_TRACKING_URI"):
        say(f"  MLflow   mlflow ui --backend-store-uri {tracking}")
    return status


def _spell(thresholds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in thresholds.items())
