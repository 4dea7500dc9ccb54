"""Training under Ray: what a run leaves behind, and that it survives the loss of a worker and of the driver."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from faults import actors
from mlflow import MlflowClient
from small_jobs import small_train_job

from tomoray.catalogue import CatalogueRow, read_catalogue, read_row_picks
from tomoray.checkpoint import load_picker, read_card
from tomoray.cluster.train import _noted, build_method, counts_for, train, training_rows
from tomoray.config import ConfigError


def logged(tracking: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(tracking).get_metric_history(run_id, key)]


def test_a_run_leaves_a_picker_with_thresholds_and_a_record(checkpoint: str, tracking: str, catalogue: str) -> None:
    picker, card = load_picker(checkpoint)
    assert [p.name for p in card.particles] == ["ribosome", "virus-like-particle"]
    assert set(card.thresholds) == {"ribosome", "virus-like-particle"}
    assert card.validation["runs"] == [r.run for r in read_catalogue(catalogue) if r.split == "validation"]
    assert card.validation["f1"]["value"] > 0.6, "a picker that saw 300 steps finds most of what is plainly there"
    assert picker(torch.zeros(1, 1, 48, 48, 48)).shape == (1, 2, 24, 24, 24)

    runs = MlflowClient(tracking).search_runs(["1"], "tags.verb = 'train' and attributes.status = 'FINISHED'")
    (run,) = (one for one in runs if one.data.tags["tomoray.folder"] == str(Path(checkpoint).parent))
    assert run.data.params["network.width"] == "8"
    assert {"loss", "supervised_loss", "val_f1", "val_f1/ribosome", "data_wait_share"} <= set(run.data.metrics)
    assert [step for step, _ in logged(tracking, run.info.run_id, "loss")] == [25 * n for n in range(1, 13)]
    files = {f.path for f in MlflowClient(tracking).list_artifacts(run.info.run_id, "checkpoint")}
    assert files == {"checkpoint/picker.pt", "checkpoint/card.json", "checkpoint/job.toml"}
    assert "job.toml" in {f.path for f in MlflowClient(tracking).list_artifacts(run.info.run_id)}


def test_a_killed_worker_costs_no_more_than_the_epochs_since_the_last_checkpoint(
    local_ray: None, catalogue: str, tmp_path: Path, tracking: str
) -> None:
    """`kill -9` of one of two workers; planted mistake: without `_resume` epoch 1 is logged twice."""
    job = small_train_job(catalogue, tmp_path, name="killed", epochs=6, steps_per_epoch=20, validation__every_epochs=1)
    folder = str(tmp_path / "killed")
    killed: list[float] = []

    def kill_one() -> None:
        while _noted(folder).get("kept", 0) < 2:
            time.sleep(0.2)
        kept = _noted(folder)["kept"]
        os.kill(actors("RayTrainWorker")[0], signal.SIGKILL)
        killed.append(kept)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    trained = train(job)
    killer.join(5)
    assert killed, "nothing was killed, so nothing was shown"
    assert 2 <= killed[0] < 6, "the run was over before the kill"
    assert _noted(folder)["kept"] == 6
    steps = [step // 20 for step, _ in logged(tracking, trained.run.run_id, "loss")]
    assert steps[-1] == 6
    assert steps.count(1) == 1, f"epochs were {steps}: the run began anew"
    assert len(steps) <= 6 + 1, f"epochs were {steps}: more than the epoch that was under way was lost"


def test_the_same_name_goes_on_and_other_settings_are_refused(local_ray: None, catalogue: str, tmp_path: Path, tracking: str) -> None:
    first = train(small_train_job(catalogue, tmp_path, name="longer", epochs=1, steps_per_epoch=3, workers__count=1))
    with pytest.raises(ConfigError, match=r"a run of this name has another seed; give this one another name"):
        train(small_train_job(catalogue, tmp_path, name="longer", epochs=2, steps_per_epoch=3, workers__count=1, seed=5))
    second = train(small_train_job(catalogue, tmp_path, name="longer", epochs=2, steps_per_epoch=3, workers__count=1))
    assert second.run.run_id == first.run.run_id
    assert [step for step, _ in logged(tracking, second.run.run_id, "loss")] == [3, 6]
    assert read_card(second.checkpoint).method == "supervised"


def test_soft_f1_and_a_plateau_under_two_workers_and_after_a_stop(local_ray: None, catalogue: str, tmp_path: Path, tracking: str) -> None:
    """Planted: a plateau fed on rank 0 only, where the other worker has no value to step with; its state left out of the checkpoint."""
    options = {"optimizer__schedule": "plateau", "validation__best_by": "soft_f1", "validation__every_epochs": 1, "clicks": 3}
    job = small_train_job(catalogue, tmp_path, name="plateau", epochs=2, steps_per_epoch=3, **options)
    first = train(job)
    assert first.card.validation["soft_f1"] > 0
    second = train(job.model_copy(update={"epochs": 3}))
    for key in ("val_soft_f1", "val_f1", "learning_rate"):
        assert [step for step, _ in logged(tracking, second.run.run_id, key)] == [3, 6, 9]
    assert {rate for _, rate in logged(tracking, second.run.run_id, "learning_rate")} == {0.003}, "no cosine beside it"
    state = torch.load(next((tmp_path / "plateau").rglob("state.pt")), weights_only=True)
    assert state["schedule"]["last_epoch"] == state["epochs"]


def test_jobs_that_cannot_train_stop_before_a_worker_starts(catalogue: str, tmp_path: Path) -> None:
    job = small_train_job(catalogue, tmp_path, particles=[{"name": "proteasome", "radius_angstrom": 80.0}])
    with pytest.raises(ConfigError, match=r"its picks name ribosome, virus-like-particle, not proteasome; correct \[\[particles\]\]"):
        train(job)
    from tomoray.catalogue import assign_splits, write_catalogue

    unsplit = str(tmp_path / "unsplit.parquet")
    write_catalogue(unsplit, assign_splits(read_catalogue(catalogue)))
    with pytest.raises(ConfigError, match="8 labelled tomograms to train on and 0 to validate on; there must be one of each"):
        train(small_train_job(unsplit, tmp_path))


def test_what_is_not_clicked_does_not_show(catalogue: str, tmp_path: Path) -> None:
    """Planted: clicks in the tomograms to train on only, so that validation knows more than who clicked; the same for every seed."""
    shown, there = {}, {row.run: row.particles for row in read_catalogue(catalogue)}
    for seed in (0, 1):
        job = small_train_job(catalogue, tmp_path, clicks=1, seed=seed, labelled_runs=2, method={"name": "semietpicker"})
        streams, validation = training_rows(job)
        assert [row.run for row in streams["labelled"]] == ["TS_0001", "TS_0002"]
        assert [row.run for row in streams["unlabelled"]] == ["TS_0003", "TS_0004"]
        shown[seed] = [read_row_picks(row) for row in (*streams["labelled"], *validation)]
        for picks in shown[seed]:
            assert {name: len(picks.of(name)) for name in there[picks.run]} == dict.fromkeys(there[picks.run], 1), (
                "one of each class, though more lie there"
            )
        assert counts_for(job, streams["labelled"]) == {}
    assert any((first.positions_zyx != second.positions_zyx).any() for first, second in zip(*shown.values(), strict=True))
    clicks = {"name": "tomopicker", "expected_particles": {"ribosome": 50}}
    job = small_train_job(catalogue, tmp_path, clicks=1, method=clicks)
    assert counts_for(job, training_rows(job)[0]["labelled"])["labelled_particles"]["ribosome"] == 1
    assert job.expected_particles() == {"ribosome": 50}


def test_tomopicker_reckons_with_what_the_catalogue_counts(tmp_path: Path) -> None:
    """Planted: voxels of the file where those of the job are meant; marks summed over tomograms; a student that is told nothing."""
    rows = [
        CatalogueRow(name, name, "x.mrc", (20, 100, 100), "float32", 20.0, 0.0, 1.0, -4.0, 4.0, "dark", particles={"ribosome": marked})
        for name, marked in (("a", 10), ("b", 30))
    ]
    clicks = {"name": "tomopicker", "expected_particles": {"ribosome": 50}}
    for method in (clicks, {"name": "semietpicker", "supervised": clicks}):
        job = small_train_job("x.parquet", tmp_path, voxel_angstrom=10.0, method=method)
        counts = counts_for(job, rows)
        assert counts["tomogram_vox"] == 8 * 200_000
        assert counts["labelled_particles"]["ribosome"] == 20
        built = build_method(job, counts)
        student = getattr(built, "supervised", built)
        assert student.expected[0] == pytest.approx(2.5 * student.observed[0])
    assert counts_for(small_train_job("x.parquet", tmp_path), rows) == {}
