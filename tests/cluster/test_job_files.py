"""Every job of jobs/: what two cores can do is sent to a cluster with the very command that its file shows, its bucket a folder, its steps few.

The rest, of full width or on data that we have not, is checked with `--dry-run`.
"""

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from faults import row, save_untrained, small_checkpoint

from tomoray.catalogue import write_catalogue
from tomoray.checkpoint import Card
from tomoray.cli import main
from tomoray.config import read_settings
from tomoray.jobs import TrainJob

ROOT = Path(__file__).parents[2]
PER_UM3 = (  # so that each of few tomograms, of a size that suits the test, shows something
    "{apo-ferritin = 3000, beta-amylase = 3000, beta-galactosidase = 3000, ribosome = 1500, thyroglobulin = 3000, virus-like-particle = 1500}"
)
FEW_STEPS = (
    *("--seeds", "[0]", "--train.steps-per-epoch", "1", "--train.network.width", "4", "--train.network.blocks", "[1, 1]"),
    *("--train.crops.patch-vox", "32", "--train.crops.batch-size", "2"),
)
JOURNEY = {  # in this order, since each takes what one before it has made
    "simulate.toml": ("--tomograms", "6", "--shape-zyx", "[48,64,64]", "--crowding", "8"),
    "index.toml": ("--validation", "0.34", "--test", "0.17"),
    "ingest.toml": (),
    "pick.toml": ("--tile-vox", "32"),
    "threshold.toml": (),
    "score.toml": (),
    "simulate_crowded.toml": ("--shape-zyx", "[56,96,96]"),  # with room for the ribosomes that its studies expect
    "index_crowded.toml": (),
    "simulate_study.toml": ("--shape-zyx", "[40,64,64]", "--per-um3", PER_UM3),
    "index_study.toml": (),
}
LONGER = {
    "demo.toml": (
        *("--simulate.tomograms", "6", "--simulate.shape-zyx", "[48,64,64]", "--simulate.crowding", "8", "--pick.tile-vox", "48"),
        *("--train.epochs", "1", "--train.steps-per-epoch", "4", "--train.crops.patch-vox", "48", "--train.validation.tile-vox", "48"),
    ),
    "train_supervised_small.toml": ("--epochs", "2", "--steps-per-epoch", "5", "--crops.patch-vox", "48", "--validation.tile-vox", "48"),
    "tune_inference.toml": ("--trials", "2"),
    "tune_semietpicker_small.toml": ("--trials", "2", "--train.steps-per-epoch", "2"),
    **{path.name: FEW_STEPS for path in sorted((ROOT / "jobs").glob("study_*.toml")) if "_table" not in path.name},
}
OTHERS = sorted({path.name for path in (ROOT / "jobs").glob("*.toml")} - {*JOURNEY, *LONGER, "tune_thresholds.toml"})


def submit(name: str, head: str, bucket: Path, *options: str) -> str:
    """Return what a job said that was sent with the command in its file, its head and bucket filled in."""
    lines = (ROOT / "jobs" / name).read_text().splitlines()
    (shown,) = (line.removeprefix("# or: ") for line in lines if line.startswith("# or: tomoray submit "))
    words = shlex.split(shown.replace("http://HEAD:8265", head).replace("s3://BUCKET", str(bucket)))
    done = subprocess.run([sys.executable, "-m", *words, *options], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def untrained(job: str, folder: Path) -> None:
    """Write the picker with which a training would begin."""
    settings = read_settings(TrainJob, ROOT / "jobs" / job)
    save_untrained(Card(settings.particle_list(), settings.voxel_angstrom, "dark", settings.network.model_dump(mode="json")), folder)


@pytest.fixture(scope="module")
def bucket(head: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything lies that the jobs of the journey read and wrote."""
    folder = tmp_path_factory.mktemp("bucket")
    small_checkpoint(folder / "runs" / "supervised" / "picker")
    untrained("train_supervised_small.toml", folder / "runs" / "burn-in-small" / "picker")
    for name, options in JOURNEY.items():
        submit(name, head, folder, *options)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_after_the_other_they_are_the_whole_journey(head: str, bucket: Path) -> None:
    """What they wrote is under the root."""
    there = {str(path.relative_to(bucket)) for path in bucket.rglob("*")}
    expected = {"data/simulated/truth.csv", "data/catalogue.parquet", "data/ingested/catalogue.parquet", "picks/picks.csv", "picks/score/score.md"}
    assert expected | {"data/crowded.parquet", "data/study.parquet"} <= there
    submit("pick.toml", head, bucket, *JOURNEY["pick.toml"], "--splits", '["validation"]', "--output", "picks-validation")
    said = submit("tune_thresholds.toml", head, bucket)
    assert "6 trials run now, 0 of 6 failed" in said


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", LONGER)
def test_so_do_those_that_take_minutes(head: str, bucket: Path, name: str) -> None:
    assert "status 0" in submit(name, head, bucket, *LONGER[name])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what jobs of full width ask for by name: catalogues, in which tomograms are only spoken of, and a picker of that width."""
    folder = tmp_path_factory.mktemp("published")
    particles = dict.fromkeys((p.name for p in read_settings(TrainJob, ROOT / "jobs" / "train_supervised.toml").particle_list()), 50)
    rows = [replace(row("", "none.mrc"), shape_zyx=(184, 630, 630), split=s) for s in (*["train"] * 7, "validation", "test", *["unlabelled"] * 3)]
    for catalogue, digits, first in (("catalogue", 4, 1), ("empiar10988_vpp", 4, 1), ("empiar10988_defocus", 3, 29)):
        names = [f"TS_{first + number:0{digits}d}" for number in range(len(rows))]
        known = [{"picks_uri": "none.csv", "particles": particles} if r.split != "unlabelled" else {} for r in rows]
        named = [replace(r, tomogram_id=name, run=name, **told) for name, r, told in zip(names, rows, known, strict=True)]  # type: ignore[arg-type]
        write_catalogue(str(folder / "data" / f"{catalogue}.parquet"), named)
    untrained("train_supervised.toml", folder / "runs" / "supervised" / "picker")
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_say_what_they_would_do(published: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "jobs" / name
    (verb,) = re.findall(rf"^# tomoray (\w+) jobs/{name}$", file.read_text(), re.MULTILINE)
    monkeypatch.chdir(published)
    assert main([verb, str(file), "--dry-run"]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert f"would {verb.replace('study', 'train')} " in said.out + said.err
