"""Training under Ray Train: the loop of `training.fit` on every worker, with checkpoints and validation around it."""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from ray.data import Dataset
from ray.train import Checkpoint, CheckpointConfig, DataConfig, FailureConfig, Result, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from tqdm import tqdm

from tomoray import methods, storage
from tomoray.catalogue import CatalogueRow, read_catalogue, with_clicks
from tomoray.checkpoint import CARD, JOB, PICKER, STATE, Card, load_picker, read_card, save_checkpoint
from tomoray.cluster.data import IN_ORDER, CropSource, Shard, batch_size, crop_stream
from tomoray.cluster.session import session, threads_per_worker
from tomoray.cluster.tracking import CHECKPOINT, FOLDER, Run, start_run
from tomoray.config import ConfigError, dump_settings, read_settings_text
from tomoray.inference import for_inference
from tomoray.jobs import TrainJob
from tomoray.methods import METHODS, Method
from tomoray.networks import build_picker
from tomoray.report import training_page
from tomoray.scoring import agreement
from tomoray.thresholds import apply_thresholds
from tomoray.tomogram import Picks
from tomoray.training import Epoch, autocast_dtype, fit, plateau
from tomoray.validation import conclude, find_candidates, look, measure_of

log = logging.getLogger(__name__)

PROGRESS = "progress.json"
BEST = "picker"
FREE_TO_CHANGE = {"epochs", "workers", "output", "register_as", "champion"}  # what may differ when a run goes on under its name


@dataclass(frozen=True)
class Setup:
    """What a worker is told."""

    job: TrainJob
    counts: Mapping[str, Any]
    validation: tuple[CatalogueRow, ...]
    run: Run
    folder: str


@dataclass(frozen=True)
class Trained:
    """A finished training run: its checkpoint, where MLflow recorded it, and what its model is called there, if it was registered."""

    checkpoint: str
    card: Card
    run: Run
    model: str = ""


def train(job: TrainJob, *, parent: Run | None = None, callbacks: Sequence[UserCallback] = ()) -> Trained:
    """Train a picker as a job says, going on where a run of the same name stopped; `parent` is the MLflow run that it is part of.

    Raises
    ------
    ConfigError
        If the catalogue has nothing to train or validate on, or a run of that name has other settings.
    """
    rows, validation = training_rows(job)
    folder = storage.join(job.output, job.name)
    _claim(folder, job)
    run = start_run("train", job.name, job, tags={FOLDER: folder}, parent=parent)
    run.add_text(dump_settings(job), JOB)
    setup = Setup(job, counts_for(job, rows["labelled"]), validation, run, folder)
    with run.failed_if_left():
        with session(), _progress_bar(setup):
            result = _trainer(setup, rows, callbacks).fit()
        if result.error is not None:
            raise result.error
        checkpoint = _keep_best(result, folder, measure_of(job.validation))
        with storage.local_copy(checkpoint) as local:
            run.add_files(local, CHECKPOINT)
        card = read_card(checkpoint)
        run.add_file(training_page(folder, f"train {job.name}", card, {"picker": checkpoint, "MLflow": run, "catalogue": job.catalogue}))
    run.end()
    return Trained(checkpoint, card, run, run.register(job.register_as, champion=job.champion) if job.register_as else "")


def training_rows(job: TrainJob) -> tuple[dict[str, tuple[CatalogueRow, ...]], tuple[CatalogueRow, ...]]:
    """Return the rows of each stream that the method needs, and those to validate on, showing as many picks as the job says were clicked.

    Raises
    ------
    ConfigError
        If one of them is empty, a named run is not there, or the picks name none of the job's classes.
    """
    rows = [with_clicks(row, job.clicks, job.seed) for row in read_catalogue(job.catalogue)]
    training, validation = ([r for r in rows if r.split == split and r.is_labelled] for split in ("train", "validation"))
    labelled = _that_show_labels(training, job)
    if not labelled or not validation:
        raise ConfigError(
            f"{job.catalogue}: {len(labelled)} labelled tomograms to train on and {len(validation)} to validate on; there must be one "
            "of each at least: index with other shares of validation and test, or with more labels"
        )
    streams = {"labelled": tuple(labelled), "unlabelled": tuple(r for r in rows if r.split == "unlabelled" or (r in training and r not in labelled))}
    streams = {name: streams[name] for name in METHODS[job.method.name].streams}
    if empty := [name for name, members in streams.items() if not members]:
        raise ConfigError(
            f"{job.catalogue}: no {', '.join(empty)} tomogram, which {job.method.name} needs; index some without picks, or set labelled_runs"
        )
    known = {p.name for p in job.particles}
    found = {name for row in labelled for name in row.particles}
    if not known & found:
        raise ConfigError(
            f"{job.catalogue}: its picks name {', '.join(sorted(found)) or 'nothing'}, not {', '.join(sorted(known))}; correct [[particles]]"
        )
    if ignored := sorted(found - known):
        log.warning("%s: picks of %s are left out, since the job does not name these classes", job.catalogue, ", ".join(ignored))
    return streams, tuple(validation)


def _that_show_labels(training: list[CatalogueRow], job: TrainJob) -> list[CatalogueRow]:
    if not job.labelled_runs:
        return training
    if isinstance(job.labelled_runs, int):
        return training[: job.labelled_runs]
    if missing := sorted(set(job.labelled_runs) - {row.run for row in training}):
        raise ConfigError(f"labelled_runs: {', '.join(missing)} is no labelled run of split train in {job.catalogue}; correct the name")
    return [row for row in training if row.run in job.labelled_runs]


def _claim(folder: str, job: TrainJob) -> None:
    """Mark a folder as this job's, and refuse one that another job made."""
    where = storage.join(folder, JOB)
    if storage.exists(where):
        old = read_settings_text(TrainJob, storage.read_bytes(where).decode(), where)
        differs = [key for key, value in job if key not in FREE_TO_CHANGE and getattr(old, key) != value]
        if differs:
            raise ConfigError(f"{folder}: a run of this name has another {', '.join(differs)}; give this one another name, or remove that folder")
    storage.write_bytes(where, dump_settings(job).encode())


def _trainer(setup: Setup, rows: Mapping[str, tuple[CatalogueRow, ...]], callbacks: Sequence[UserCallback]) -> TorchTrainer:
    job, workers, best = setup.job, setup.job.workers, measure_of(setup.job.validation)

    def visits(stream: str) -> tuple[int, int]:
        per_step = batch_size(stream, job.crops) * workers.count / job.crops.per_visit
        per_epoch = per_step * job.steps_per_epoch
        done = _noted(setup.folder).get("kept", 0)
        return int(done * per_epoch), int(job.epochs * per_epoch + per_step) + 3  # a little more, since equal shards drop a remainder

    def stream(name: str) -> Callable[[], Dataset]:
        told = (job.particle_list(), job.voxel_angstrom, job.contrast, job.crops, job.seed)
        source = CropSource(rows[name], *told, labelled=name == "labelled", clip_sd=job.clip_sd)
        return crop_stream(source, partial(visits, name))

    resources = {"CPU": workers.cpus, "GPU": 1.0} if workers.gpu else {"CPU": workers.cpus}
    return TorchTrainer(
        _worker,
        train_loop_config={"setup": setup},
        datasets={name: stream(name) for name in rows},
        dataset_config=DataConfig(execution_options=IN_ORDER),
        scaling_config=ScalingConfig(num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=resources),
        run_config=RunConfig(
            name=job.name,
            storage_path=_absolute(job.output),
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=best, checkpoint_score_order="max"),
            callbacks=list(callbacks),
        ),
    )


def _worker(config: Mapping[str, Any]) -> None:
    """Train on one worker; rank 0 also reports, checkpoints and logs."""
    setup: Setup = config["setup"]
    job, context = setup.job, ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(job.workers.threads or threads_per_worker(context.get_local_world_size()))
    torch.manual_seed(job.seed)  # the same weights on every worker, and in every run of this seed
    method = build_method(job, setup.counts).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    wrapped = prepare_model(method)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=job.optimizer.learning_rate, weight_decay=job.optimizer.weight_decay, fused=True)
    schedule = plateau(optimizer) if job.optimizer.schedule == "plateau" else None
    start = _resume(method, optimizer, schedule)
    seed = job.seed * 10_007 + rank
    loaders = {name: Shard(name, job.crops, seed) for name in method.streams}
    epochs = fit(
        wrapped,
        optimizer,
        loaders,
        epochs=job.epochs,
        steps_per_epoch=job.steps_per_epoch,
        start_epoch=start,
        cosine=schedule is None,
        seed=seed,
        precision=job.precision,
        device=get_device(),
    )
    with setup.run.system_metrics(f"node_{context.get_node_rank()}") if not context.get_local_rank() else nullcontext():
        for epoch in epochs:
            _report(setup, method, optimizer, schedule, epoch)


def counts_for(job: TrainJob, labelled: Sequence[CatalogueRow]) -> dict[str, Any]:
    """Return what a method must know of the labelled tomograms: for TomoPicker the voxels of one, and how many particles are marked in one."""
    if getattr(job.method, "supervised", job.method).name != "tomopicker":
        return {}
    voxels = [math.prod(row.shape_zyx) * (row.voxel_angstrom / job.voxel_angstrom) ** 3 for row in labelled]
    marked = {p.name: sum(row.particles.get(p.name, 0) for row in labelled) / len(labelled) for p in job.particles}
    return {"tomogram_vox": sum(voxels) / len(voxels), "labelled_particles": marked}


def build_method(job: TrainJob, counts: Mapping[str, Any]) -> Method:
    """Return the method of a job, its network with fresh weights or those it starts from; `counts` as of `counts_for`.

    Raises
    ------
    ConfigError
        If the network to start from is another.
    """
    options = job.method.model_dump()
    options.get("supervised", options).update(counts)
    activation = methods.activation_of(**options)
    network = build_picker(**job.network.model_dump(), classes=len(job.particles), activation=activation).network
    if job.start_from:
        picker, card = load_picker(job.start_from)
        try:
            network.load_state_dict(picker.network.state_dict())
        except RuntimeError as error:
            theirs = f"{card.network} ({len(card.particles)}, {card.activation})"
            ours = f"{job.network.model_dump(mode='json')} ({len(job.particles)}, {activation})"
            raise ConfigError(f"{job.start_from}: its network (classes, activation) is {theirs}, the job's is {ours}; make them the same") from error
        if job.method.name == "semietpicker":
            options["peak_thresholds"] = card.thresholds
    return methods.build_method(network, job.particle_list(), job.voxel_angstrom, **options)


def _resume(method: nn.Module, optimizer: torch.optim.Optimizer, schedule: ReduceLROnPlateau | None) -> int:
    """Load the last checkpoint of this run, if there is one, and return the number of epochs it has seen."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / STATE, map_location=get_device(), weights_only=True)
    method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    if schedule is not None:
        schedule.load_state_dict(state["schedule"])
    return int(state["epochs"])


def _report(setup: Setup, method: Method, optimizer: torch.optim.Optimizer, schedule: ReduceLROnPlateau | None, epoch: Epoch) -> None:
    """Tell MLflow and Ray what an epoch brought; every few epochs validate, and keep a checkpoint.

    MLflow comes first: what dies in between is done and recorded once more, while an epoch that is kept would never be recorded again.
    """
    job, done, rank = setup.job, epoch.index + 1, ray.train.get_context().get_world_rank()
    metrics = {**epoch.metrics, "epoch": done, "steps_per_s": epoch.steps / epoch.wall_s, "data_wait_share": epoch.wait_s / epoch.wall_s}
    metrics["learning_rate"] = optimizer.param_groups[0]["lr"]
    kept = done % job.validation.every_epochs == 0 or done >= job.epochs
    if kept:
        card, found = _validate(setup, method)
        if schedule is not None:
            schedule.step(found[measure_of(job.validation)])
        metrics |= found
    if rank:
        ray.train.report(metrics)
        return
    setup.run.log(metrics, step=done * job.steps_per_epoch)
    with _checkpoint(setup, method, optimizer, schedule, card, done) if kept else nullcontext() as checkpoint:
        ray.train.report(metrics, checkpoint=checkpoint)
    if kept:  # else Ray takes note of it within seconds, and what dies before that goes on from the one before
        ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
    _note(setup.folder, {"epoch": done, "loss": metrics["loss"], **({"kept": done, "val_f1": metrics["val_f1"]} if kept else {})})


@contextmanager
def _checkpoint(
    setup: Setup, method: Method, optimizer: torch.optim.Optimizer, schedule: ReduceLROnPlateau | None, card: Card, epochs: int
) -> Iterator[Checkpoint]:
    """Yield a picker with what it takes to train it on."""
    state = {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epochs}
    state |= {} if schedule is None else {"schedule": schedule.state_dict()}
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, card, method.picker(), job=dump_settings(setup.job), state=state)
        yield Checkpoint.from_directory(folder)


def _validate(setup: Setup, method: Method) -> tuple[Card, dict[str, float]]:
    """Look at this worker's share of the validation tomograms; return what rank 0 concludes from all of them, which every worker is told.

    The card is whole on rank 0 only.
    """
    job, context = setup.job, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    if dist.is_initialized():
        for buffer in method.buffers():  # batch statistics of the last step differ between workers; the picker's are rank 0's
            dist.broadcast(buffer, 0)
    card = Card(
        job.particle_list(),
        job.voxel_angstrom,
        job.contrast,
        clip_sd=job.clip_sd,
        network=job.network.model_dump(mode="json"),
        activation=method.picker().activation,
        finder=method.finder,
        tile_vox=job.validation.tile_vox,
        method=job.method.name,
    )
    picker = for_inference(method.picker(), job.precision)
    mine = [look(picker, card, row, job) for row in setup.validation[rank::world]]
    shares, told = [mine], [dict[str, float]()]
    if dist.is_initialized():
        shares = [mine] * world
        dist.all_gather_object(shares, mine)
    if rank == 0:
        card, told[0] = conclude(card, setup.validation, [seen for share in shares for seen in share], job)
        card = replace(card, agreement=_agreement(method, card, setup, mine[0].candidates))
    if dist.is_initialized():
        dist.broadcast_object_list(told, 0)
    return card, told[0]


def _agreement(method: Method, card: Card, setup: Setup, candidates: Picks) -> float:
    """Return how well the picks of the first validation tomogram agree with those that float32 finds there, one to one within a voxel."""
    if autocast_dtype(setup.job.precision, get_device()) is None:
        return 1.0
    exact = find_candidates(for_inference(method.picker()), card, setup.validation[0], setup.job)
    kept, wanted = (apply_thresholds(picks, card.thresholds) for picks in (candidates, exact))
    return agreement(kept, wanted, card.voxel_angstrom)


def _keep_best(result: Result, folder: str, measure: str) -> str:
    """Copy what is needed to pick from the best checkpoint to a folder with a plain name, and return that."""
    best = result.get_best_checkpoint(measure, "max") or result.checkpoint
    assert best is not None, "the last epoch always leaves a checkpoint"
    target = storage.join(folder, BEST)
    with best.as_directory() as source, storage.new_folder(target) as new:
        for name in (PICKER, CARD, JOB):
            (new / name).write_bytes((Path(source) / name).read_bytes())
    return target


def _note(folder: str, news: Mapping[str, float]) -> None:
    """Add to what the driver and a restarted run can know of a run's progress."""
    storage.write_bytes(storage.join(folder, PROGRESS), json.dumps({**_noted(folder), **news}).encode())


def _noted(folder: str) -> dict[str, float]:
    where = storage.join(folder, PROGRESS)
    return dict(json.loads(storage.read_bytes(where))) if storage.exists(where) else {}


@contextmanager
def _progress_bar(setup: Setup) -> Iterator[None]:
    """Show the run's progress while the block lasts, as rank 0 notes it."""
    over = threading.Event()

    def watch() -> None:
        with tqdm(total=setup.job.epochs, desc=f"train {setup.job.name}", unit="epoch", initial=int(_noted(setup.folder).get("kept", 0))) as bar:
            ended = False
            while not ended:
                ended = over.wait(1.0)
                news = _noted(setup.folder)
                bar.set_postfix({key: f"{news[key]:.3f}" for key in ("loss", "val_f1") if key in news}, refresh=False)
                if int(news.get("epoch", 0)) > bar.n:
                    bar.update(int(news["epoch"]) - bar.n)
                elif sys.stderr.isatty():
                    bar.refresh()  # a file is spared a line per second

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _absolute(uri: str) -> str:
    return str(storage.local_path(uri).resolve()) if storage.is_local(uri) else uri
