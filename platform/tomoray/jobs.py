"""Jobs: what a job file may say. One class per verb of the command line, every field with its unit, its default and its meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from tomoray.config import Settings
from tomoray.recipes import AsymmetricUNetSettings, Fraction, MethodSettings, NetworkSettings, SupervisedSettings, TomoPickerSettings
from tomoray.spaces import SpaceSettings, read_space
from tomoray.tomogram import CZII_PARTICLES, Contrast, Particle


def _zero_or_large(tile_vox: int) -> int:
    if 0 < tile_vox < 16:
        raise ValueError(f"tile_vox is {tile_vox}; it must be 0 (decided by the voxels there is room for) or at least 16")
    return tile_vox


FILE_NAME = r"^[A-Za-z0-9._-]+$"
Objective = Literal["f1", "czii"]
Regularise = Literal["none", "bootstrap", "leave_one_out"]  # as in `thresholds`, whose import takes longer than reading a job may
EvenSize = Annotated[int, Field(ge=16, multiple_of=2)]
TileSize = Annotated[int, Field(ge=0, multiple_of=2), AfterValidator(_zero_or_large)]


class ParticleSettings(Settings):
    """One class of particles."""

    name: str = Field(description="name as in the picks files")
    radius_angstrom: PositiveFloat = Field(description="radius in angstrom")
    metric_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="weight in the CZII metric")

    def particle(self) -> Particle:
        """Return it as the rest of tomoray knows it."""
        return Particle(self.name, self.radius_angstrom, self.metric_weight)


CZII = tuple(ParticleSettings(name=p.name, radius_angstrom=p.radius_angstrom, metric_weight=p.metric_weight) for p in CZII_PARTICLES)


class Job(Settings):
    """What all jobs share."""

    output: str = Field(description="folder or s3:// prefix to write to")


class WithParticles(Job):
    """A job that must know the classes."""

    particles: tuple[ParticleSettings, ...] = Field(CZII, min_length=1, description="classes; the six of CZII by default")

    def particle_list(self) -> tuple[Particle, ...]:
        """Return the classes in order."""
        return tuple(p.particle() for p in self.particles)


class SimulateJob(Job):
    """Make tomograms with known truth, in the folder layout of the CZII challenge."""

    output: str = Field("data/simulated", description="folder to write to")
    tomograms: PositiveInt = Field(10, description="number of tomograms")
    unlabelled: Annotated[int, Field(ge=0)] = Field(0, description="how many of them, the last, get no picks files (their truth is in truth.csv)")
    shape_zyx: tuple[EvenSize, EvenSize, EvenSize] = Field((64, 256, 256), description="voxels along z, y, x")
    voxel_angstrom: PositiveFloat = Field(10.012, description="voxel size in angstrom")
    crowding: PositiveFloat = Field(1.0, description="particle concentration relative to the CZII tomograms")
    noise: Annotated[float, Field(ge=0)] | None = Field(None, description="noise relative to a particle's density; by default like denoised CZII")
    domain_shift: Fraction = Field(0.0, description="0 to 1: how far noise, wedge, defocus and blur move away")
    per_um3: dict[str, Annotated[float, Field(ge=0)]] = Field({}, description="class -> particles per cubic micrometre instead of CZII's; 0: none")
    contrast: Contrast = Field("dark", description="particles dark, as in CZII, or bright")
    maps: dict[str, str] = Field({}, description="class -> MRC map to place; built-in shapes where none is given")
    formats: tuple[Literal["zarr", "mrc"], ...] = Field(("zarr",), min_length=1, description="files to write per tomogram")
    seed: int = Field(0, description="same seed, same tomograms")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="processes; 0: one per core")


class IndexJob(Job):
    """Make the catalogue: one Parquet row per tomogram."""

    source: str = Field("data/simulated", description="folder, bucket prefix, CZII root, copick project or Data Portal prefix")
    output: str = Field("data/catalogue.parquet", description="catalogue to write")
    picks: str = Field("", description="picks of a plain folder (a CSV or STAR file, or a folder of files); of a copick project: user_session")
    picks_unit: Literal["voxel", "angstrom"] | PositiveFloat | None = Field(
        None, description="of positions in plain CSV and STAR files: voxel, angstrom, or the size in angstrom of the pixels that they count"
    )
    picks_particle: str = Field("", description="class of the picks of such files where they name none")
    kinds: tuple[str, ...] = Field((), description="which reconstructions, as denoised or 10.012-*, where runs have several; all by default")
    particles: tuple[str, ...] = Field((), description="class names that picks may have; any by default")
    voxel_angstrom: PositiveFloat | None = Field(None, description="voxel size where files do not say; a contradiction is an error")
    contrast: Contrast | None = Field(None, description="particles dark or bright; guessed with a warning where not given")
    validation: float | tuple[str, ...] = Field(0.2, description="share, or names, of labelled runs for validation")
    test: float | tuple[str, ...] = Field(0.0, description="share, or names, of labelled runs to keep for testing")
    seed: int = Field(0, description="of the shares")
    permissive: bool = Field(False, description="read files that break their format where their meaning is clear")


class IngestJob(Job):
    """Rewrite a catalogue's tomograms for training: OME-Zarr in shards, chunks that fit the crops, float16 where it loses nothing."""

    catalogue: str = Field("data/catalogue.parquet", description="catalogue of the tomograms to rewrite")
    output: str = Field("data/ingested", description="folder or s3:// prefix for tomograms, picks and the new catalogue.parquet")
    patch_vox: EvenSize = Field(96, description="edge of the crops that training will cut, in voxels; chunks have half of it")
    shard_vox: PositiveInt = Field(256, description="about how many voxels the edge of a file (shard) has; it holds whole chunks")
    dtype: Literal["auto", "float32"] = Field("auto", description="auto: float16 where rounding is lost in the noise; 8 and 16 bits stay as they are")
    readers: PositiveInt = Field(2, description="tomograms rewritten at the same time")
    permissive: bool = Field(False, description="read files that break their format where their meaning is clear")


class OptimizerSettings(Settings):
    """Adam, and how its rate falls."""

    learning_rate: PositiveFloat = Field(1e-3, description="at the start")
    schedule: Literal["cosine", "plateau"] = Field(
        "cosine", description="to zero along a cosine, or halved after five validations without a better one (TomoPicker)"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay")


class CropSettings(Settings):
    """What one visit to a tomogram yields."""

    patch_vox: EvenSize = Field(96, description="edge of a crop in voxels")
    per_visit: PositiveInt = Field(16, description="crops cut each time a tomogram is read")
    layout: Literal["random", "grid"] = Field("random", description="where crops lie; grid: cubes side by side, all of them in each pass")
    centred_fraction: Fraction = Field(0.5, description="share of random crops around a particle, classes drawn evenly; the rest lie anywhere")
    readers: PositiveInt = Field(2, description="tomograms read at the same time, for each stream")
    batch_size: PositiveInt = Field(8, description="labelled crops per step and worker")
    unlabelled_batch_size: Annotated[int, Field(ge=0)] = Field(0, description="unlabelled crops per step and worker; 0: as many as labelled")
    shuffle_crops: Annotated[int, Field(ge=0)] = Field(128, description="crops among which each worker shuffles")


class WorkerSettings(Settings):
    """How many workers train, and with what."""

    count: PositiveInt = Field(1, description="training workers")
    gpu: bool = Field(False, description="one GPU per worker")
    cpus: PositiveFloat = Field(0.5, description="CPUs that Ray reserves per worker")
    threads: Annotated[int, Field(ge=0)] = Field(0, description="torch threads per worker; 0: the node's cores shared among its workers")
    max_failures: Annotated[int, Field(ge=0)] = Field(3, description="times that lost workers are replaced before giving up")


class ValidationSettings(Settings):
    """How the picker is measured while it trains."""

    every_epochs: PositiveInt = Field(5, description="epochs between validations; the last epoch is always validated")
    objective: Objective = Field("f1", description="what thresholds maximise: one-to-one F1 at half the radius, or the F4 of CZII")
    regularise: Regularise = Field("none", description="how thresholds are kept from fitting these tomograms; if so, what to expect is estimated too")
    floor: Fraction = Field(0.02, description="candidates above this score are looked at; PU's scores may all lie lower where little is marked")
    best_by: Literal["objective", "soft_f1"] = Field(
        "objective", description="tells the best checkpoint: the objective of its picks, or how well scores fit what is marked, be it little"
    )
    expected_particles: dict[str, PositiveFloat] | None = Field(
        None,
        description="class -> roughly how many lie in one tomogram, where only some are marked: thresholds reckon with it; else as the method says",
    )
    tile_vox: TileSize = Field(0, description="edge of cubic tiles for prediction; 0: as few tiles as ten million voxels each allow")


class TrainJob(WithParticles):
    """Train a picker."""

    catalogue: str = Field("data/catalogue.parquet", description="catalogue with splits train and validation")
    output: str = Field("runs", description="folder or s3:// prefix; the run becomes a folder in it")
    name: str = Field("picker", pattern=FILE_NAME, description="name of the run; the same name again goes on where it stopped")
    labelled_runs: Annotated[int, Field(ge=0)] | tuple[str, ...] = Field(
        0, description="how many runs of split train, or which, may show their labels; the others count as unlabelled; 0: all show them"
    )
    clicks: Annotated[int, Field(ge=0)] = Field(
        0, description="as if so many particles of each class had been clicked in each tomogram of splits train and validation; 0: all are shown"
    )
    start_from: str = Field(
        "", description="checkpoint folder, or models:/NAME@ALIAS, to take weights (and thresholds) from, such as that of a burn-in"
    )
    voxel_angstrom: PositiveFloat = Field(10.012, description="voxel size to work at; other tomograms are resampled")
    contrast: Contrast = Field("dark", description="contrast to work at; other tomograms are inverted")
    clip_sd: Annotated[float, Field(ge=0)] = Field(0.0, description="standard deviations from the mean at which values are clipped; 0: nowhere")
    epochs: PositiveInt = Field(50, description="epochs")
    steps_per_epoch: PositiveInt = Field(100, description="optimiser steps per epoch")
    precision: Literal["auto", "bf16", "float32"] = Field("auto", description="auto: bf16 where the processor computes in it")
    seed: int = Field(0, description="of weights, crops, augmentation and clicks")
    register_as: str = Field("", description="name in MLflow's model registry under which the picker becomes a version; empty: none")
    champion: bool = Field(False, description="with register_as: that version becomes models:/NAME@champion, in place of another")
    method: MethodSettings = Field(SupervisedSettings(), description="how to learn")
    network: NetworkSettings = Field(AsymmetricUNetSettings(), description="what learns")
    optimizer: OptimizerSettings = OptimizerSettings()
    crops: CropSettings = CropSettings()
    workers: WorkerSettings = WorkerSettings()
    validation: ValidationSettings = ValidationSettings()

    @field_validator("champion")
    @classmethod
    def _registered_if_champion(cls, champion: bool, info: ValidationInfo) -> bool:
        if champion and not info.data.get("register_as"):
            raise ValueError("a champion is a registered model; register_as must name it")
        return champion

    @field_validator("method", mode="before")
    @classmethod
    def _supervised_where_not_named(cls, method: Any) -> Any:
        return {"name": "supervised", **method} if isinstance(method, dict) else method

    @field_validator("method")
    @classmethod
    def _expected_where_few_are_marked(cls, method: MethodSettings, info: ValidationInfo) -> MethodSettings:
        clicks = getattr(method, "supervised", method)
        names = [p.name for p in info.data.get("particles", ())]
        if isinstance(clicks, TomoPickerSettings) and not set(clicks.expected_particles or ["none"]) <= set(names):
            raise ValueError(f"tomopicker needs expected_particles, roughly how many lie in one tomogram, of some of {', '.join(names)}")
        return method

    @field_validator("network", mode="before")
    @classmethod
    def _asymmetric_unet_where_not_named(cls, network: Any) -> Any:
        return {"name": "asymmetric_unet", **network} if isinstance(network, dict) else network

    def expected_particles(self) -> dict[str, float]:
        """Return class -> roughly how many lie in one tomogram, of those classes of which only some are marked."""
        method = getattr(self.method, "supervised", self.method)
        return dict(self.validation.expected_particles or getattr(method, "expected_particles", None) or {})


class ArmSettings(Settings):
    """One of the ways to train that a study compares."""

    name: str = Field(pattern=FILE_NAME, description="name of the arm")
    changes: dict[str, Any] = Field({}, description="keys of the train job, dotted as on the command line, and their values in this arm")
    start_from: str = Field("", description="arm, listed before, from whose picker of the same seed and labels it starts")
    labels: Literal["some", "all"] = Field("some", description="all: every labelled run shows its labels; trained once per seed")

    @field_validator("changes", mode="before")
    @classmethod
    def _dotted(cls, changes: Any) -> Any:
        """TOML makes tables of bare dotted keys; a table would replace what it changes whole."""
        return dict(_leaves(changes)) if isinstance(changes, dict) else changes


def _leaves(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class StudyJob(Job):
    """Train every arm with every seed and number of labels, and compare them in one table."""

    catalogue: str = Field("data/catalogue.parquet", description="catalogue with splits train, validation and test")
    output: str = Field("studies", description="folder or s3:// prefix; the study becomes a folder in it")
    name: str = Field("study", pattern=FILE_NAME, description="name of the study; the same name again trains what is missing")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="each arm is trained once with each")
    labelled_runs: tuple[Annotated[int, Field(ge=0)], ...] = Field((2,), min_length=1, description="how many runs show their labels; 0: all")
    splits: tuple[Literal["test", "validation"], ...] = Field(("test",), min_length=1, description="splits to score on, at the very end")
    reference: str = Field("", description="arm that the others are compared with; empty: the first")
    full: str = Field("", description="arm taken as what can be reached at best, to tell which share of the gap an arm closes")
    parallel: Annotated[int, Field(ge=0)] = Field(0, description="trials at a time; 0: as many as resources allow")
    train: TrainJob = Field(TrainJob(), description="what all arms share")
    arms: tuple[ArmSettings, ...] = Field(
        (ArmSettings(name="supervised"), ArmSettings(name="semietpicker", changes={"method.name": "semietpicker"}, start_from="supervised")),
        min_length=1,
        description="ways to train",
    )


class WithCheckpoint(Job):
    """A job that uses what training made."""

    checkpoint: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "",
        description="checkpoint folder, as `tomoray train` prints it, or models:/NAME@ALIAS; a list picks with the mean of their scores",
    )
    thresholds: dict[str, Fraction] = Field({}, description="class -> threshold instead of the card's; of several cards their mean counts")
    numbers: dict[str, PositiveInt] = Field({}, description="class -> how many to pick in each tomogram, the best ones, instead of by a threshold")

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoint folders, be they one or several."""
        return (self.checkpoint,) if isinstance(self.checkpoint, str) else self.checkpoint


class PickJob(WithCheckpoint):
    """Pick particles in every tomogram of a catalogue."""

    catalogue: str = Field("data/catalogue.parquet", description="catalogue of tomograms")
    output: str = Field("picks", description="folder or s3:// prefix for candidates, picks and failures")
    splits: tuple[str, ...] = Field((), description="only rows of these splits; all by default")
    floor: Fraction = Field(0.02, description="candidates above this score are kept")
    tile_vox: TileSize = Field(0, description="edge of cubic tiles, 90 in the paper; 0: the card's, or else the whole volume if memory allows")
    overlap: Annotated[float, Field(ge=0, lt=1)] = Field(0.25, description="share that neighbouring cubic tiles overlap")
    views: Literal[1, 4, 8] = Field(1, description="mirrored views averaged at test time")
    refine: bool = Field(True, description="place peaks between cells, where their scores say")
    precision: Literal["auto", "bf16", "fp16", "float32"] = Field(
        "auto", description="auto: bf16 where the processor computes in it and the card says that picks agree with those of float32"
    )
    actors: Annotated[int, Field(ge=0)] = Field(0, description="predicting actors; 0: as many as fit on the GPUs, or one per eight cores")
    gpus_per_actor: Fraction = Field(0.0, description="share of a GPU per actor; 1: one each, 0.5: two on each, 0: none")
    readers: PositiveInt = Field(2, description="tomograms read at the same time")
    permissive: bool = Field(False, description="read files that break their format where their meaning is clear")


class ThresholdJob(WithCheckpoint):
    """Derive picks again from the candidates that `tomoray pick` found, with other thresholds and without a network."""

    candidates: str = Field("picks/candidates", description="folder of candidates tables, as `tomoray pick` prints it")
    output: str = Field("picks", description="folder or s3:// prefix for the picks; those that lie there are replaced")
    checkpoint: str | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "", description="checkpoint folder, or a list, whose thresholds to use; empty: those that the tables name"
    )
    catalogue: str = Field("", description="catalogue on whose labelled tomograms thresholds are chosen anew; empty: they are those of the cards")
    splits: tuple[str, ...] = Field(("validation",), description="which of them; none that training has seen")
    objective: Objective = Field("f1", description="what thresholds maximise there: one-to-one F1 at half the radius, or the F4 of CZII")
    regularise: Regularise = Field("none", description="how they are kept from fitting these very tomograms")
    copick: bool = Field(True, description="write copick files beside the CSV")
    star: bool = Field(True, description="write RELION 5 STAR files with scores beside the CSV, one per class")


class TuneJob(Job):
    """Search a space of settings: train, pick or choose thresholds with each, and keep what does best."""

    catalogue: str = Field("data/catalogue.parquet", description="catalogue with splits train and validation")
    output: str = Field("sweeps", description="folder or s3:// prefix; the sweep becomes a folder in it")
    name: str = Field("sweep", pattern=FILE_NAME, description="name of the sweep; the same name again goes on where it stopped")
    space: str | dict[str, Any] = Field("tune_spaces/loss_weights.toml", description="file of tune_spaces/, or a table that says the same")
    trials: PositiveInt = Field(20, description="trials in all; a grid has no more than its combinations")
    search: Literal["optuna", "random", "grid"] = Field("optuna", description="how values are chosen; optuna learns from the trials before (TPE)")
    metric: Objective = Field("f1", description="what trials are compared by, and what thresholds maximise")
    scheduler: Literal["asha", "none"] = Field("asha", description="asha: trainings that fall behind are stopped early")
    grace_epochs: PositiveInt = Field(1, description="epochs after which a training may first be stopped")
    reduction_factor: Annotated[float, Field(gt=1)] = Field(3.0, description="one of so many goes on, and then so many times as long")
    splits: tuple[str, ...] = Field(("validation",), min_length=1, description="labelled tomograms that picks and thresholds are compared on")
    seed: int = Field(0, description="of the search")
    parallel: Annotated[int, Field(ge=0)] = Field(0, description="trials at a time; 0: as many as resources allow")
    winner: str = Field("", description="job file to write with the best settings; empty: in jobs/, after the sweep")
    register_as: str = Field("", description="name in MLflow's model registry under which the best picker becomes `champion`; empty: none")
    train: TrainJob = Field(TrainJob(), description="what all trials share that train")
    pick: PickJob = Field(PickJob(), description="what all trials share that pick")
    threshold: ThresholdJob = Field(ThresholdJob(), description="what all trials share that choose thresholds")

    @field_validator("space")
    @classmethod
    def _known_keys_only(cls, space: str | dict[str, Any]) -> str | dict[str, Any]:
        return space if isinstance(space, str) else read_space(space).model_dump(mode="json", exclude_defaults=True)

    def read_space(self) -> SpaceSettings:
        """Return the space, from its file or its table."""
        return read_space(self.space)


class ScoreJob(WithParticles):
    """Score picks against the truth that a catalogue knows."""

    catalogue: str = Field("data/catalogue.parquet", description="catalogue with labelled tomograms")
    picks: str = Field("picks", description="output of `tomoray pick`, or a CSV with experiment, particle_type, x, y, z")
    truth: str = Field("", description="CSV of truth, instead of the catalogue's picks files")
    output: str = Field("", description="folder for score.json and score.md; empty: print only")
    splits: tuple[str, ...] = Field((), description="only runs of these splits; all labelled runs by default")
    distance_angstrom: PositiveFloat | None = Field(
        None, description="also F1 within this distance, one-to-one and many-to-many as in TomoPicker's paper"
    )


class DemoJob(Settings):
    """The whole main job in a row: simulate, index, train, pick, score, look.

    Its steps read and write in its own folder, whatever paths they name. The defaults suit two cores and ten minutes.
    """

    output: str = Field("demo", description="folder for everything")
    simulate: SimulateJob = SimulateJob(tomograms=13, shape_zyx=(64, 320, 320), crowding=4.0)
    index: IndexJob = IndexJob(validation=0.25, test=0.3, contrast="dark")
    train: TrainJob = TrainJob(
        epochs=20,
        steps_per_epoch=50,
        network=AsymmetricUNetSettings(width=16, blocks=(1, 1, 1, 1)),
        crops=CropSettings(patch_vox=64, batch_size=4),
        workers=WorkerSettings(count=2),
    )
    pick: PickJob = PickJob()


JOBS: dict[str, type[Settings]] = {
    "simulate": SimulateJob,
    "index": IndexJob,
    "ingest": IngestJob,
    "train": TrainJob,
    "study": StudyJob,
    "tune": TuneJob,
    "pick": PickJob,
    "threshold": ThresholdJob,
    "score": ScoreJob,
    "demo": DemoJob,
}
"""Verb -> what its job file may say."""
