"""The command line: help that is quick and whole, faults with status 2 and no traceback, and dry runs that change nothing."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import Field

import tomoray
from tomoray.cli import leaves, main
from tomoray.config import Settings, read_settings_text
from tomoray.jobs import JOBS, PickJob, SimulateJob, TrainJob

SOURCE_ROOT = str(Path(tomoray.__file__).parents[1])


@pytest.fixture(autouse=True)
def loud_or_quiet_as_before() -> Iterator[None]:
    """`main` sets how much tomoray says; the tests that follow shall not hear it."""
    logger = logging.getLogger("tomoray")
    level = logger.level
    yield
    logger.setLevel(level)


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": SOURCE_ROOT, "COLUMNS": "200"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, timeout=120, check=False)


def help_of(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    return re.sub(r"\s+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("verb", JOBS)
def test_help_lists_every_key_with_its_meaning_and_default(verb: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    text = help_of(verb, capsys)
    for key, meaning, default in leaves(JOBS[verb]):
        assert f"--{key.replace('_', '-')} VALUE {meaning} (default: {default})" in text, key
    for option in ("--set", "--dry-run", "--verbose"):
        assert option in text


def test_help_of_train_shows_keys_of_its_tables(capsys, monkeypatch) -> None:
    """Planted: keys of nested tables left out."""
    monkeypatch.setenv("COLUMNS", "400")
    text = help_of("train", capsys)
    for part in ("--crops.patch-vox VALUE", "--optimizer.learning-rate VALUE at the start (default: 0.001)", "--network.width VALUE", "apo-ferritin"):
        assert part in text


def test_help_spells_what_argparse_and_people_trip_over(capsys, monkeypatch) -> None:
    """Planted: a `%` in a meaning, which argparse takes for a format; an empty text shown as nothing at all."""

    class Odd(Settings):
        """An odd job."""

        share: float = Field(0.5, description="100 % of a (share)")
        empty: str = Field("", description="a text")
        needed: int = Field(description="a number")
        names: tuple[str, ...] = Field(("a", "b"), description="names")

    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setitem(JOBS, "odd", Odd)
    text = help_of("odd", capsys)
    for part in ("100 % of a (share) (default: 0.5)", "a text (default: not set)", "a number (default: none, it must be given)"):
        assert part in text
    assert "names (default: ['a', 'b'])" in text


def test_help_waits_for_nothing_heavy(tmp_path: Path) -> None:
    """In one process of its own, the help of every verb imports neither torch nor Ray."""
    program = """
import json, sys
from tomoray.cli import main
for verb in [None, *json.loads(sys.argv[1])]:
    try:
        main(["--help"] if verb is None else [verb, "--help"])
    except SystemExit as stop:
        assert not stop.code, stop.code
heavy = {"torch", "ray", "mlflow", "monai", "scipy", "pyarrow", "zarr", "matplotlib", "pandas", "s3fs"}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""
    done = run_python("-c", program, json.dumps(list(JOBS)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert done.stderr == ""


def test_a_fault_ends_with_status_2_and_a_sentence(tmp_path: Path) -> None:
    """As a person would meet it: `python -m tomoray` with a wrong job file."""
    (tmp_path / "job.toml").write_text("epohcs = 3\n")
    done = run_python("-m", "tomoray", "train", "job.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "tomoray train: job.toml: unknown key 'epohcs'; did you mean 'epochs'?\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.toml"], "tomoray train: nowhere.toml: there is no such job file"),
        (["train", "--epochs", "many"], 'tomoray train: settings: epochs = "many": Input should be a valid integer'),
        (["pick", "--set", "views"], "tomoray pick: --set 'views': it must read key=value"),
        (["pick", "--set", "veiws=4"], "tomoray pick: settings: unknown key 'veiws'; did you mean 'views'?"),
        (["score", "--catalogue", "nowhere.parquet"], "tomoray score: nowhere.parquet"),
        (["pick", "--catalogue", "nowhere.parquet", "--checkpoint", "nowhere", "--dry-run"], "tomoray pick: "),
    ],
)
def test_faults_are_told_on_stderr(arguments, message, capsys, tmp_path, monkeypatch) -> None:
    if arguments[0] == "pick" and "--dry-run" in arguments:
        pytest.importorskip("ray")
        pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert "Traceback" not in captured.err


def test_verbose_shows_where_a_fault_came_from(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no such job file"):
        main(["train", "nowhere.toml", "--verbose"])


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train", "--wings", "2"], ["train", "--epochs"]])
def test_what_is_no_command_is_refused(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "tomoray" in capsys.readouterr().err


def test_verbs_and_version_are_listed(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"tomoray {tomoray.__version__}\n"
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for verb, model in JOBS.items():
        assert re.search(rf"^ +{verb}\s+{re.escape((model.__doc__ or '').splitlines()[0][:20])}", text, re.MULTILINE)


@pytest.mark.parametrize("verb", ["simulate", "demo"])
def test_a_dry_run_prints_the_job_and_makes_nothing(verb: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([verb, "--dry-run"]) == 0
    assert read_settings_text(JOBS[verb], capsys.readouterr().out, "printed") == JOBS[verb]()
    assert list(tmp_path.iterdir()) == []


def test_options_go_over_the_job_file(capsys, tmp_path, monkeypatch) -> None:
    """The file, then `--set`, then options with their own name; values are TOML where they can be."""
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text('tomograms = 3\nseed = 1\nunlabelled = 1\ncontrast = "bright"\n')
    options = ["--set", "tomograms=4", "--set", "seed=2", "--seed", "5", "--shape-zyx", "[48, 64, 96]", "--maps", '{ribosome = "x.mrc"}']
    assert main(["simulate", "job.toml", "--dry-run", *options]) == 0
    job = read_settings_text(SimulateJob, capsys.readouterr().out, "printed")
    assert job == SimulateJob(tomograms=4, seed=5, unlabelled=1, contrast="bright", shape_zyx=(48, 64, 96), maps={"ribosome": "x.mrc"})


def test_status_and_job_of_a_command_are_passed_on(monkeypatch) -> None:
    """Status 3: done but for what failed."""
    from tomoray import commands

    seen = []
    monkeypatch.setattr(commands, "run", lambda verb, job, dry_run: seen.append((verb, job, dry_run)) or 3)
    assert main(["pick", "--views", "4", "--set", "thresholds.a=0.5"]) == 3
    assert main(["train", "--crops.patch-vox", "64", "--name", "x"]) == 3
    assert seen[0] == ("pick", PickJob(views=4, thresholds={"a": 0.5}), False)
    assert seen[1] == ("train", TrainJob.model_validate({"crops": {"patch_vox": 64}, "name": "x"}), False)


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*arguments: object, **options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("tomoray.commands.run", interrupted)
    assert main(["simulate"]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
