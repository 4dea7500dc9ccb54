"""What is sent to a cluster: the package, one job file whose places mean the same there, and a command that no shell misreads."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tomoray
from tomoray import commands
from tomoray.cli import main
from tomoray.config import ConfigError, read_settings, read_settings_text
from tomoray.jobs import JOBS, IndexJob, PickJob, ScoreJob, SimulateJob, TrainJob, TuneJob
from tomoray.submission import command, exit_status, fingerprint, job_for_cluster, pack, verb_of

SHARED = {"output": "s3://b/out", "catalogue": "s3://b/c.parquet"}
ODD = 'pick it\'s $(touch harm); `harm` & "more".toml'
PACKAGE = Path(tomoray.__file__).parent
REPOSITORY = PACKAGE.parents[1]
JOB_FILES = sorted((REPOSITORY / "jobs").glob("*.toml"))


@pytest.mark.parametrize(
    ("name", "verb"), [("jobs/train_supervised.toml", "train"), ("pick.toml", "pick"), ("/a/b_c/score_x_y.v2.toml", "score"), (Path("demo"), "demo")]
)
def test_the_verb_is_the_first_part_of_the_name(name: str, verb: str) -> None:
    assert verb_of(name) == verb


@pytest.mark.parametrize("name", ["fly.toml", "", "training_x.toml"])
def test_other_names_need_a_verb(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no verb; there are simulate, .*: give --verb"):
        verb_of(name)


def test_only_sources_and_the_job_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the whole folder of the package, with what else lies in it; job files that nobody asked for."""
    package = tmp_path / "checkout" / "platform" / "tomoray"
    for name in ("__init__.py", "py.typed", "cluster/pick.py", ".env", "weights.pt", "__pycache__/x.pyc", "data/TS_1.mrc"):
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "checkout" / ".rayignore").write_text("*.mrc\n")
    (tmp_path / "checkout" / "mlflow.db").write_text("secret")
    monkeypatch.setattr(tomoray, "__file__", str(package / "__init__.py"))
    job = PickJob.model_validate(SHARED)
    for packs, expected in (
        (True, {".rayignore", "jobs/pick.toml", "tomoray/COMMIT", "tomoray/__init__.py", "tomoray/py.typed", "tomoray/cluster/pick.py"}),
        (False, {"jobs/pick.toml"}),
    ):
        (folder := tmp_path / f"sent{packs}").mkdir()
        assert {str(path) for path in pack(folder, "pick.toml", job, package=packs)} == expected
        assert read_settings(PickJob, folder / "jobs" / "pick.toml") == job


def test_what_is_packed_runs_by_itself(tmp_path: Path) -> None:
    """With the very command that is sent, in a shell, and with a name that a shell would misread."""
    job = SimulateJob(output="/nowhere", seed=3)
    paths = pack(tmp_path, ODD, job)
    assert {path.suffix for path in paths} <= {".py", ".toml", ".typed", ""}
    there = {str(path.relative_to("tomoray")) for path in paths if path.parts[0] == "tomoray"}
    assert there == {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")} | {"COMMIT", "py.typed"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    line = f"{command('simulate', ODD)} --dry-run && python -c 'import tomoray; print(tomoray.__file__)'"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    printed, _, where = done.stdout.rstrip().rpartition("\n")
    assert read_settings_text(SimulateJob, printed, "printed") == job
    assert Path(where) == tmp_path / "tomoray" / "__init__.py"
    assert not (tmp_path / "harm").exists()


def test_the_command_is_quoted_and_holds_no_settings() -> None:
    """Planted: words joined by blanks."""
    assert command("pick", "pick.toml") == "python -m tomoray pick jobs/pick.toml"
    assert shlex.split(command("pick", ODD, verbose=True)) == ["python", "-m", "tomoray", "pick", f"jobs/{ODD}", "--verbose"]


LOCAL = [
    ("pick", PickJob, {}, "output = 'picks'; catalogue = 'data/catalogue.parquet'"),
    ("pick", PickJob, {**SHARED, "checkpoint": ("s3://b/a", "runs/b")}, "checkpoint = 'runs/b'"),
    ("pick", PickJob, {**SHARED, "checkpoint": "~/picker"}, "checkpoint = '~/picker'"),
    ("score", ScoreJob, {**SHARED, "picks": "picks"}, "picks = 'picks'"),
    ("simulate", SimulateJob, {"output": "/d", "maps": {"ribosome": "x.mrc"}}, "maps.ribosome = 'x.mrc'"),
    ("tune", TuneJob, {**SHARED, "train": {"start_from": "runs/a"}}, "train.start_from = 'runs/a'"),
    ("tune", TuneJob, {**SHARED, "threshold": {"candidates": "c"}}, "threshold.candidates = 'c'"),
]


@pytest.mark.parametrize(("verb", "model", "settings", "told"), LOCAL)
def test_places_that_only_this_machine_has_are_refused(verb: str, model: Any, settings: dict[str, Any], told: str) -> None:
    """Planted: `output` not looked at, whose files would go with the job's own folder."""
    with pytest.raises(ConfigError, match="beside you, where no cluster looks") as error:
        job_for_cluster(verb, model.model_validate(settings))
    assert str(error.value).startswith(told + ": ")


def test_relative_places_are_the_same_under_a_root() -> None:
    """Those of a list too; names in the registry and what lies elsewhere already stay as they are."""
    job = PickJob(catalogue="data/c.parquet", output="/d", checkpoint=("runs/a", "models:/picker@champion", "s3://b/a"))
    sent = job_for_cluster("pick", job, "s3://bucket/mine/")
    moved = {"catalogue": "s3://bucket/mine/data/c.parquet", "checkpoint": ("s3://bucket/mine/runs/a", "models:/picker@champion", "s3://b/a")}
    assert sent == job.model_copy(update=moved)
    assert job_for_cluster("index", IndexJob(source="x", output="c.parquet"), "/shared") == IndexJob(source="/shared/x", output="/shared/c.parquet")
    space = {"base": "jobs/train_x.toml", "space": {"optimizer.learning_rate": {"choices": [0.1, 0.2]}}}
    sent = job_for_cluster("tune", TuneJob.model_validate({**SHARED, "space": space, "train": {"start_from": "runs/a"}}), "s3://b")
    assert isinstance(sent, TuneJob)
    assert sent.train.start_from == "s3://b/runs/a"


@pytest.mark.parametrize(
    ("root", "place", "told"),
    [
        ("bucket", "runs/a", "checkpoint = 'bucket/runs/a'"),
        ("s3://b", "~/a", "checkpoint = '~/a'"),
        ("s3://b", "../a", "checkpoint = '../a'"),
        ("s3://me:secret@b", "a", "--root: checkpoint = 's3://***@b/a' holds credentials"),
    ],
)
def test_no_root_makes_a_place_of_one_that_has_none(root: str, place: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        job_for_cluster("pick", PickJob.model_validate({**SHARED, "checkpoint": place}), root)


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda path: path.name)
def test_every_job_file_shows_a_command_that_sends_it(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(REPOSITORY)
    (line,) = (line for line in path.read_text().splitlines() if line.startswith("# or: "))
    words = shlex.split(line.removeprefix("# or: "))
    assert words[:3] == ["tomoray", "submit", f"jobs/{path.name}"]
    assert main([*words[1:], "--dry-run"]) == 0
    printed, _, told = capsys.readouterr().out.rstrip().rpartition("\n")
    verb = verb_of(path)
    assert told.endswith(f"python -m tomoray {verb} jobs/{path.name}")
    assert read_settings_text(JOBS[verb], printed, "printed").model_dump()["output"].startswith("s3://BUCKET/")


@pytest.mark.parametrize(
    ("verb", "model", "settings"),
    [
        ("pick", PickJob, {**SHARED, "checkpoint": ("models:/picker@champion", "/shared/run/picker")}),
        ("index", IndexJob, {"source": "https://host/x", "output": "/shared/c.parquet", "picks": "user_1"}),
        ("train", TrainJob, SHARED),
        ("study", JOBS["study"], {**SHARED, "train": {"name": "x"}, "arms": [{"name": "a"}, {"name": "b", "start_from": "a"}]}),
    ],
)
def test_places_that_all_see_are_taken_as_they_are(verb: str, model: Any, settings: dict[str, Any]) -> None:
    """A study's arms name arms, not places; a copick project's picks name their author."""
    job = model.model_validate(settings)
    assert job_for_cluster(verb, job) == job


def test_a_space_goes_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the name of the file sent, which is not there."""
    monkeypatch.chdir(REPOSITORY)
    job = TuneJob.model_validate({**SHARED, "space": "tune_spaces/loss_weights.toml"})
    sent = job_for_cluster("tune", job)
    assert isinstance(sent, TuneJob)
    assert isinstance(sent.space, dict)
    assert sent.read_space() == job.read_space()


@pytest.mark.parametrize(
    ("state", "code", "status"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", 1, 1),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("FAILED", 0, 1),
        ("STOPPED", None, 130),
    ],
)
def test_the_status_is_that_of_the_command(state: str, code: int | None, status: int) -> None:
    """A job that failed is never 0. Planted: the code of a job that was never started taken for 0."""
    assert exit_status(state, code) == status


def test_a_job_is_known_by_what_it_does() -> None:
    job = PickJob.model_validate(SHARED)
    assert fingerprint("pick", job) == fingerprint("pick", PickJob.model_validate(SHARED))
    assert len({fingerprint("pick", job), fingerprint("train", job), fingerprint("pick", job.model_copy(update={"views": 4}))}) == 3


def test_options_of_the_jobs_verb_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Before and after the job's name. Planted: options of one verb for all."""
    seen: list[Any] = []
    monkeypatch.setattr(commands, "submit", lambda *told, dry_run: seen.append((*told, dry_run)) or 3)
    file = tmp_path / "pick_all.toml"
    file.write_text('catalogue = "s3://b/c.parquet"\n')
    assert main(["submit", "--address", "http://head:8265", "--views", "4", str(file), "--output", "/d", "--set", "floor=0.1", "--installed"]) == 3
    job = PickJob(catalogue="s3://b/c.parquet", output="/d", views=4, floor=0.1)
    assert seen.pop() == ("pick", job, commands.Sending("pick_all.toml", "http://head:8265", package=False), False)
    (other := tmp_path / "night.toml").write_text("")
    assert main(["submit", str(other), "--verb", "simulate", "--output", "/d", "--dry-run"]) == 3
    assert seen.pop() == ("simulate", SimulateJob(output="/d"), commands.Sending("night.toml"), True)
    assert main(["submit", str(other)]) == 2
    assert "'night' at its start is no verb" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["submit", str(file), "--epochs", "3"])
    assert "unrecognized arguments: --epochs" in capsys.readouterr().err
    assert not seen


def test_a_dry_run_says_what_would_be_sent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomoray.cluster", None)
    assert main(["submit", str(REPOSITORY / "jobs" / "pick.toml"), "--dry-run", "--output", "/d", "--catalogue", "/c", "--checkpoint", "/p"]) == 0
    printed, _, told = capsys.readouterr().out.rstrip().rpartition("\n")
    assert read_settings_text(PickJob, printed, "printed").output == "/d"
    assert told.startswith("would send ")
    assert told.endswith("python -m tomoray pick jobs/pick.toml")
