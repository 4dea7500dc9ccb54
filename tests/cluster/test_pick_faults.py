"""Everything goes wrong at once: one run over sixty tomograms with corrupt files, refusals, crashes and kills.

The size of the run, and so what hundreds and thousands of tomograms take, is for `tests/benchmarks/pick_many.py`.
"""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from faults import faulty_catalogue, faulty_server, kill_actors, kill_driver, row, small_checkpoint, small_volume
from mlflow import MlflowClient

from tomoray.catalogue import read_catalogue, write_catalogue
from tomoray.cluster.pick import actors_per_gpu, candidates_folder, pick_all
from tomoray.config import ConfigError
from tomoray.ensemble import ensemble_card
from tomoray.formats.candidates import read_candidates
from tomoray.formats.czii import read_czii_csv
from tomoray.formats.failures import DIED
from tomoray.formats.mrc import write_mrc
from tomoray.jobs import PickJob
from tomoray.results import committed, table_uri

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small tomogram as a file."""
    path = tmp_path_factory.mktemp("content") / "volume.mrc"
    write_mrc(path, small_volume())
    return path.read_bytes()


def test_every_readable_tomogram_is_picked_once_whatever_happens(content: bytes, tmp_path: Path) -> None:
    """Planted: one attempt only at reading; no sweep of what killed writers left; actors' tasks not retried; results counted twice."""
    with faulty_server(content) as server:
        catalogue = faulty_catalogue(tmp_path, server, good=52, flaky=4, corrupt=2)
        checkpoint = small_checkpoint(tmp_path / "picker")
        output = tmp_path / "picks"
        job = PickJob(catalogue=catalogue, checkpoint=checkpoint, output=str(output), actors=2, tile_vox=16, overlap=0.5, views=8)
        folder = candidates_folder(job, ensemble_card(job.checkpoints))
        kill_driver(job, folder, tmp_path / "pick.toml")
        before = {name: Path(table_uri(folder, name)).stat().st_mtime_ns for name in committed(folder)}
        assert 5 <= len(before) < 50
        (Path(folder) / ".good-0000.parquet.0123abcd.partial").mkdir()  # as a writer leaves that is killed

        killed: list[int] = []
        killer = threading.Thread(target=kill_actors, args=(folder, (len(before) + 3, len(before) + 10), killed), daemon=True)
        killer.start()
        picked = pick_all(job)
        killer.join(10)

    names = {row.tomogram_id for row in read_catalogue(catalogue)}
    lost = {"corrupt-0000", "corrupt-0001", "deadly"}
    assert len(killed) == 2, "two actors must have died in the run"
    assert picked.skipped == len(before)
    assert {f.tomogram_id for f in picked.failures} == lost
    assert sorted(p.name for p in Path(folder).iterdir()) == sorted(f"{name}.parquet" for name in names - lost)
    assert {name: Path(table_uri(folder, name)).stat().st_mtime_ns for name in before} == before, "what was done is not done again"

    reasons = {f.tomogram_id: f.reason for f in picked.failures}
    assert reasons["deadly"] == DIED
    assert "bytes" in reasons["corrupt-0000"]
    assert 6 <= len(server.crashed["deadly"]) <= 9, "three attempts in each of two passes, and up to three before the driver was killed"
    assert all(server.asked[f"flaky-{i:04d}"] > 1 for i in range(4))
    assert server.asked["once-deadly"] > 1

    counts = {len(read_candidates(table_uri(folder, name))[0]) for name in names - lost}
    assert len(counts) == 1, "copies of a tomogram have equally many candidates"
    rows = Counter(p.run for p in read_czii_csv(picked.picks_csv) for _ in range(len(p)))
    assert set(rows) == names - lost
    assert len(set(rows.values())) == 1

    done = MlflowClient(picked.run.tracking_uri).get_run(picked.run.run_id).data.metrics
    assert done["failed"] == 3
    assert done["picked"] == len(names - lost) - len(before)
    assert 0 < done["device_busy_share"] <= 1
    assert done["read_s"] > 0
    assert done["commit_s"] > 0
    assert 0.131 * (done["picked"] - 1) < done["values_read_megabytes"] < 0.132 * (done["picked"] + 1)


def test_several_checkpoints_pick_with_the_mean_of_their_maps(tmp_path: Path) -> None:
    """Planted: only the first picker asked; thresholds of the first card; a name that depends on the first checkpoint only."""
    volume = tmp_path / "volume.mrc"
    write_mrc(volume, small_volume())
    catalogue = str(tmp_path / "catalogue.parquet")
    write_catalogue(catalogue, [row("one", str(volume))])
    a = small_checkpoint(tmp_path / "a", seed=1, thresholds=(0.4, 0.2))
    b = small_checkpoint(tmp_path / "b", seed=2, thresholds=(0.6, 0.8))
    job = PickJob(catalogue=catalogue, output=str(tmp_path / "picks"), tile_vox=32, precision="float32", checkpoint=(a, b))
    both = pick_all(job)
    alone = [pick_all(job.model_copy(update={"checkpoint": one})) for one in (a, b)]
    assert len({both.candidates, *(picked.candidates for picked in alone)}) == 3
    assert ensemble_card((a, b)).thresholds == pytest.approx({"ribosome": 0.5, "virus-like-particle": 0.5})
    scores = [read_candidates(table_uri(picked.candidates, "one"))[0].scores for picked in (both, *alone)]
    assert scores[0].max() <= (scores[1].max() + scores[2].max()) / 2 + 1e-6, "the best mean is at most the mean of the best"
    assert not any(np.array_equal(scores[0], other) for other in scores[1:])
    swapped = job.model_copy(update={"checkpoint": (b, a)})
    assert pick_all(swapped).skipped == 1, "the order of checkpoints does not matter"


def test_checkpoints_that_do_not_fit_are_told_before_anything_starts(tmp_path: Path) -> None:
    """Planted: the damaged checkpoint only found by the actors, in a long trace of Ray's."""
    write_mrc(tmp_path / "volume.mrc", small_volume())
    catalogue = str(tmp_path / "catalogue.parquet")
    write_catalogue(catalogue, [row("one", str(tmp_path / "volume.mrc"))])
    checkpoint = small_checkpoint(tmp_path / "a")
    job = PickJob(catalogue=catalogue, output=str(tmp_path / "picks"), checkpoint=checkpoint)
    with pytest.raises(ConfigError, match="this machine has no GPU"):
        pick_all(job.model_copy(update={"gpus_per_actor": 0.5}))
    (tmp_path / "a" / "picker.pt").write_bytes(b"cut")
    with pytest.raises(ValueError, match="the checkpoint is damaged"):
        pick_all(job)


@pytest.mark.parametrize(("share", "actors"), [(1.0, 1), (0.5, 2), (0.3, 3), (1 / 3, 3), (0.1, 10), (0.6, 1)])
def test_a_share_of_a_gpu_never_spans_two(share: float, actors: int) -> None:
    """Planted: shares summed over all GPUs, as int(4 / 0.3) = 13 where 12 fit."""
    assert actors_per_gpu(share) == actors
