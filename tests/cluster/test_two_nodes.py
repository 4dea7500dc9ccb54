"""Jobs on a head and two nodes: one node, or the head, is lost while they work, and they finish with nothing lost and nothing done twice.

All of it runs on one machine, so that what is lost are processes, not disks; what all nodes share is a folder.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import VOXEL_ANGSTROM, faulty_server, row, small_checkpoint, small_volume
from mlflow import MlflowClient
from ray_nodes import Cluster, Node, ray_cluster
from small_jobs import small_train_job

from tomoray.catalogue import write_catalogue
from tomoray.checkpoint import read_card
from tomoray.cluster.pick import candidates_folder
from tomoray.cluster.train import _noted
from tomoray.config import Settings, dump_settings
from tomoray.formats.candidates import read_candidates
from tomoray.formats.czii import read_czii_csv, write_czii_csv
from tomoray.formats.mrc import write_mrc
from tomoray.jobs import PickJob, TrainJob, TuneJob
from tomoray.results import committed, table_uri
from tomoray.search import Trial
from tomoray.tomogram import Picks, Tomogram

pytestmark = pytest.mark.slow

NODE_CPUS = 4
WORKER_CPUS = 2.5  # so that a node has room for one, and for what reads for it
TOMOGRAMS, DELAY_S = 24, 0.5
APART_VOX, BALL_VOX = 14.0, 4.0


@pytest.fixture(scope="module")
def cluster(tracking: str) -> Iterator[Cluster]:
    """A head that does no work, as in k8s/; nodes join it test by test."""
    with ray_cluster(head_cpus=0) as one:
        yield one


@pytest.fixture
def nodes(cluster: Cluster) -> tuple[Node, Node]:
    """Two nodes that are there when a test begins."""
    alive = [node for node in cluster.nodes if node.processes()]
    first, second, *_ = [*alive, *(cluster.add_node(NODE_CPUS) for _ in range(2 - len(alive)))]
    return first, second


class Driver:
    """A command of ours as a process of its own, with what it says in a file."""

    def __init__(self, folder: Path, *words: str, address: str = "") -> None:
        self.log = folder / f"{words[0]}.log"
        environment = {**os.environ, **({"RAY_ADDRESS": address} if address else {})}
        with self.log.open("a") as file:
            self.process = subprocess.Popen([sys.executable, "-m", "tomoray", *words], env=environment, stdout=file, stderr=subprocess.STDOUT)

    def wait_until(self, happened: Callable[[], Any]) -> None:
        """Wait for something to happen while the command runs."""
        while not happened():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def finish(self) -> str:
        """Return what the command said, once it has ended well."""
        status = self.process.wait(400)
        said = self.log.read_text()
        assert status == 0, said
        return said


def job_file(job: Settings, path: Path) -> str:
    path.write_text(dump_settings(job))
    return str(path)


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[PickJob]:
    """A job that picks many copies of a tomogram, of which each takes a moment to come."""
    write_mrc(tmp_path / "volume.mrc", small_volume())
    with faulty_server((tmp_path / "volume.mrc").read_bytes(), delay_s=DELAY_S) as server:
        catalogue, checkpoint = str(tmp_path / "catalogue.parquet"), small_checkpoint(tmp_path / "picker")
        write_catalogue(catalogue, [row(f"copy-{i:02d}", server.uri(f"copy-{i:02d}")) for i in range(TOMOGRAMS)])
        yield PickJob(catalogue=catalogue, checkpoint=checkpoint, output=str(tmp_path / "picks"), actors=2, tile_vox=32)


def assert_each_is_picked_once(job: PickJob) -> None:
    folder = candidates_folder(job, read_card(str(job.checkpoint)))
    names = [f"copy-{i:02d}" for i in range(TOMOGRAMS)]
    assert sorted(path.name for path in Path(folder).iterdir()) == [f"{name}.parquet" for name in names]
    counts = {len(read_candidates(table_uri(folder, name))[0]) for name in names}
    assert len(counts) == 1, "copies of a tomogram have equally many candidates"
    rows = Counter(picks.run for picks in read_czii_csv(f"{job.output}/picks.csv") for _ in range(len(picks)))
    assert sorted(rows) == names
    assert len(set(rows.values())) == 1


def test_picking_outlives_a_node(cluster: Cluster, nodes: tuple[Node, Node], copies: PickJob, tmp_path: Path) -> None:
    """An actor dies with its node, and so do a reader and what it has read."""
    folder = candidates_folder(copies, read_card(str(copies.checkpoint)))
    driver = Driver(tmp_path, "pick", job_file(copies, tmp_path / "pick.toml"), address=cluster.address)
    driver.wait_until(lambda: len(committed(folder)) >= 4)
    places = [len(node.workers("Predict")) for node in nodes]
    nodes[1].kill()
    before = len(committed(folder))
    assert places == [1, 1], "an actor on each node"
    assert before < TOMOGRAMS - 4, "the job was over before the kill"
    assert f"{TOMOGRAMS} tomograms picked (0 before), 0 failed" in driver.finish()
    assert_each_is_picked_once(copies)


def balls(folder: Path, size: int = 32) -> str:
    """Write a catalogue of two tomograms, to train and to validate on: eight balls that look the same however they are mirrored and turned."""
    axis = np.abs((np.arange(size) + 0.5) - size / 2)
    distance = np.sqrt(np.sum(np.square(np.stack(np.meshgrid(axis, axis, axis)) - APART_VOX / 2), axis=0))
    write_mrc(folder / "balls.mrc", Tomogram("balls", np.where(distance < BALL_VOX, -1.0, 0.2).astype(np.float32), (VOXEL_ANGSTROM,) * 3))
    ends = (size / 2 + np.array([-1, 1]) * APART_VOX / 2) * VOXEL_ANGSTROM
    centres = np.stack(np.meshgrid(ends, ends, ends)).reshape(3, 8).T
    splits, picks = ("train", "validation"), str(folder / "picks.csv")
    write_czii_csv(picks, [Picks(split, centres, np.full(8, "ball")) for split in splits])
    plain = row("", str(folder / "balls.mrc"), size)
    catalogue = str(folder / "balls.parquet")
    write_catalogue(catalogue, [replace(plain, tomogram_id=s, run=s, split=s, picks_uri=picks, particles={"ball": 8}) for s in splits])
    return catalogue


def ball_job(folder: Path, name: str, workers: int) -> TrainJob:
    """Return a training whose crops are all alike, so that how they are shared out does not matter; as many per step for any number of workers."""
    options = {
        "name": name,
        "particles": [{"name": "ball", "radius_angstrom": BALL_VOX * VOXEL_ANGSTROM}],
        "voxel_angstrom": VOXEL_ANGSTROM,
        "epochs": 8,
        "steps_per_epoch": 4,
        "precision": "float32",
        "network__width": 4,
        "network__blocks": [1, 1],
        "method": {"name": "supervised", "intensity_strength": 0.0},
        "crops__patch_vox": 32,
        "crops__batch_size": 4 // workers,
        "crops__per_visit": 4,
        "crops__shuffle_crops": 0,
        "crops__readers": 1,
        "workers__count": workers,
        "workers__cpus": WORKER_CPUS,
        "workers__threads": 1,
        "validation__every_epochs": 1,
        "validation__tile_vox": 32,
    }
    return small_train_job(balls(folder), folder / "runs", **options)


def losses(tracking: str, folder: Path) -> list[tuple[int, float]]:
    """Return the steps and losses of a run, in the order in which they were logged."""
    client = MlflowClient(tracking)
    (run,) = client.search_runs(["1"], f"tags.`tomoray.folder` = '{folder}'")
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]


def test_two_nodes_train_as_one_worker_does_and_go_on_when_one_is_lost(
    cluster: Cluster, nodes: tuple[Node, Node], tracking: str, tmp_path: Path
) -> None:
    """All crops are alike, so that losses do not depend on how they are shared out; that workers share gradients tests/core shows."""
    alone, both = (ball_job(tmp_path, name, workers) for name, workers in (("alone", 1), ("both", 2)))
    Driver(tmp_path, "train", job_file(alone, tmp_path / "alone.toml"), address=cluster.address).finish()

    driver = Driver(tmp_path, "train", job_file(both, tmp_path / "both.toml"), address=cluster.address)
    folder = tmp_path / "runs" / "both"
    driver.wait_until(lambda: _noted(str(folder)).get("kept", 0) >= 2)
    places = [len(node.workers("RayTrainWorker")) for node in nodes]
    nodes[0].kill()
    assert places == [1, 1], "a worker on each node"
    cluster.add_node(NODE_CPUS)
    driver.finish()

    expected = dict(losses(tracking, tmp_path / "runs" / "alone"))
    found = losses(tracking, folder)
    steps = [step for step, _ in found]
    assert sorted(set(steps)) == list(expected) == [4 * epoch for epoch in range(1, 9)]
    assert steps.count(4) == 1, f"steps were {steps}: the run began anew"
    assert len(steps) <= len(expected) + 1, f"steps were {steps}: more than the epoch that was under way was lost"
    assert expected[32] < 0.8 * expected[4], "nothing was learnt, so nothing was shown"
    assert found[0][1] == pytest.approx(expected[4], rel=1e-4)
    assert [loss for _, loss in found] == pytest.approx([expected[step] for step in steps], rel=0.05), "Adam makes much of a last digit"
    again = [(first, second) for (step, first), (other, second) in pairwise(found) if step == other]
    assert again == [pytest.approx((first, first), rel=1e-6) for first, _ in again], "an epoch that was lost is the same when it is done again"


def test_a_sweep_outlives_a_node(cluster: Cluster, nodes: tuple[Node, Node], tracking: str, tmp_path: Path) -> None:
    """It takes a trial along, which goes on from its last checkpoint elsewhere."""
    train = ball_job(tmp_path, "x", 1)
    workers = {"workers": train.workers.model_copy(update={"cpus": WORKER_CPUS}), "epochs": 3}
    told = train.model_copy(update=workers).model_dump(exclude={"catalogue", "output", "name"}, mode="json")
    space = {"base": "jobs/train_x.toml", "space": {"optimizer.learning_rate": {"choices": [1e-3, 2e-3, 3e-3]}}}
    where = {"catalogue": train.catalogue, "output": str(tmp_path), "name": "sweep", "winner": str(tmp_path / "train_best.toml")}
    job = TuneJob.model_validate({**where, "space": space, "search": "grid", "scheduler": "none", "parallel": 2, "train": told})

    def trials() -> list[Trial]:
        return [Trial.from_json(path.read_bytes()) for path in sorted((tmp_path / "sweep" / "trials").glob("*.json"))]

    driver = Driver(tmp_path, "tune", job_file(job, tmp_path / "tune.toml"), address=cluster.address)
    driver.wait_until(lambda: any(trial.history for trial in trials()))
    victim = max(nodes, key=lambda node: len(node.workers("ImplicitFunc")))
    assert victim.workers("ImplicitFunc"), "no trial was there to die"
    victim.kill()
    assert not all(trial.is_over for trial in trials()), "the sweep was over before the kill"
    cluster.add_node(NODE_CPUS)
    said = driver.finish()
    assert "3 trials run now, 0 of 3 failed" in said
    assert [(trial.state, trial.epochs) for trial in trials()] == [("finished", 3)] * 3
    for trial in trials():
        steps = [step for step, _ in losses(tracking, tmp_path / "sweep" / "runs" / f"sweep-{trial.name}")]
        assert sorted(set(steps)) == [4, 8, 12]
        assert len(steps) <= 4, f"trial {trial.name} took steps {steps}: it began anew"


def test_a_head_that_is_started_again_finds_what_was_picked(cluster: Cluster, nodes: tuple[Node, Node], copies: PickJob, tmp_path: Path) -> None:
    """With the very same command. Its driver dies with the head, and what worked for it."""
    words = ("submit", job_file(copies, tmp_path / "pick.toml"), "--address", cluster.dashboard)
    folder = candidates_folder(copies, read_card(str(copies.checkpoint)))
    driver = Driver(tmp_path, *words)
    driver.wait_until(lambda: len(committed(folder)) >= 4)
    cluster.kill()
    driver.process.kill()
    driver.process.wait(20)
    before = {name: Path(table_uri(folder, name)).stat().st_mtime_ns for name in committed(folder)}
    assert 4 <= len(before) < TOMOGRAMS - 4
    cluster.start_head()
    cluster.add_node(NODE_CPUS)
    assert f"{TOMOGRAMS} tomograms picked ({len(before)} before), 0 failed" in Driver(tmp_path, *words).finish()
    assert {name: Path(table_uri(folder, name)).stat().st_mtime_ns for name in before} == before, "what was done is not done again"
    assert_each_is_picked_once(copies)
