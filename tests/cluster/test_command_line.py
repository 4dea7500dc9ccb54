"""The commands as people give them: in a shell, against object storage, and on a cluster elsewhere."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from tomoray import storage
from tomoray.catalogue import read_catalogue
from tomoray.config import read_settings
from tomoray.formats.czii import read_czii_csv
from tomoray.formats.mrc import write_mrc
from tomoray.jobs import ThresholdJob
from tomoray.tomogram import Tomogram

ROOT = Path(__file__).parents[2]


def tomoray(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tomoray", *arguments], capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload, no-any-return]


def test_index_and_pick_from_a_bucket_to_a_bucket(s3_bucket: str, scene: object, checkpoint: str) -> None:
    from tomoray.simulate import Scene, write_dataset

    assert isinstance(scene, Scene)
    write_dataset(f"{s3_bucket}/data", scene, runs=2, seed=9, formats=("zarr",))
    with storage.new_folder(f"{s3_bucket}/picker") as folder:
        for path in Path(checkpoint).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    catalogue = f"{s3_bucket}/catalogue.parquet"
    indexed = tomoray("index", "--source", f"{s3_bucket}/data", "--output", catalogue, "--contrast", "dark", "--validation", "0")
    assert indexed.returncode == 0, indexed.stderr
    assert [row.run for row in read_catalogue(catalogue)] == ["TS_0001", "TS_0002"]

    options = ("--catalogue", catalogue, "--checkpoint", f"{s3_bucket}/picker", "--output", f"{s3_bucket}/picks")
    picked = tomoray("pick", *options)
    assert picked.returncode == 0, picked.stderr
    assert "2 tomograms picked (0 before), 0 failed" in picked.stdout
    assert sorted(storage.list_names(f"{s3_bucket}/picks/ExperimentRuns")) == ["TS_0001", "TS_0002"]
    assert read_czii_csv(f"{s3_bucket}/picks/picks.csv")
    assert "would pick 0 of 2 tomograms" in tomoray("pick", *options, "--dry-run").stdout

    scored = tomoray(
        "score",
        "--catalogue",
        catalogue,
        "--picks",
        f"{s3_bucket}/picks",
        "--particles",
        '[{name="ribosome", radius_angstrom=150}, {name="virus-like-particle", radius_angstrom=135}]',
    )
    assert scored.returncode == 0, scored.stderr
    assert "virus-like-particle" in scored.stdout


def test_mistakes_are_told_on_one_line_with_status_2(tmp_path: Path) -> None:
    job = tmp_path / "train.toml"
    job.write_text("epochz = 5\n[crops]\npatch_vox = 63\n")
    result = tomoray("train", str(job))
    assert result.returncode == 2
    assert "unknown key 'epochz'; did you mean 'epochs'?" in result.stderr
    assert "crops.patch_vox = 63" in result.stderr
    assert "Traceback" not in result.stderr

    empty = tmp_path / "empty"
    empty.mkdir()
    result = tomoray("index", "--source", str(empty), "--output", str(tmp_path / "c.parquet"))
    assert result.returncode == 2
    assert "no usable tomogram" in result.stderr
    assert not (tmp_path / "c.parquet").exists()

    result = tomoray("pick", "--catalogue", str(tmp_path / "none.parquet"), "--checkpoint", str(tmp_path))
    assert result.returncode == 2
    assert "none.parquet" in result.stderr


def test_every_verb_through_ray_job_submit(head: str, catalogue: str, checkpoint: str, tmp_path: Path) -> None:
    submit = [
        str(Path(sys.executable).with_name("ray")),
        "job",
        "submit",
        "--address",
        head,
        "--working-dir",
        ".",
        "--runtime-env",
        "jobs/runtime_env.yaml",
    ]
    data, new = tmp_path / "data", tmp_path / "new.parquet"
    verbs = (
        f"simulate jobs/simulate.toml --output {data} --tomograms 2 --shape-zyx [48,64,64] --crowding 8",
        f"index jobs/index.toml --source {data} --output {new} --validation 0 --test 0",
        f"pick jobs/pick.toml --splits [] --catalogue {new} --checkpoint {checkpoint} --output {tmp_path / 'picks'} --views 1",
        f"tune jobs/tune_thresholds.toml --catalogue {new} --splits '[\"train\"]' --threshold.candidates {tmp_path / 'picks' / 'candidates'} "
        f"--output {tmp_path / 'sweeps'} --winner {tmp_path / 'best.toml'}",
        f"train jobs/train_supervised_small.toml --dry-run --catalogue {catalogue}",
    )
    script = tmp_path / "verbs.sh"
    script.write_text("set -e\n" + "".join(f"python -m tomoray {verb}\n" for verb in verbs))
    result = subprocess.run([*submit, "--", "bash", str(script)], cwd=ROOT, capture_output=True, text=True, timeout=400)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said
    assert "2 tomograms picked (0 before), 0 failed" in said
    assert "6 trials run now, 0 of 6 failed" in said
    assert read_settings(ThresholdJob, tmp_path / "best.toml").objective in {"f1", "czii"}
    assert "would train" in said
    assert len(read_catalogue(new)) == 2

    failing = subprocess.run(
        [*submit, "--", "python", "-m", "tomoray", "pick", "--catalogue", "none"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert failing.returncode == 1, "a job that fails must be seen to fail"


def test_a_submitted_job_ends_with_the_status_of_its_command(head: str, tmp_path: Path) -> None:
    """0, 2 and 3, where Ray knows done and failed only; the package travels with the job, and so does a folder's odd name."""
    data, plain = tmp_path / "it's data", tmp_path / "plain"
    submit = ("submit", "--address", head)
    small = ("--tomograms", "1", "--shape-zyx", "[48,64,64]", "--crowding", "8")
    done = tomoray(*submit, "jobs/simulate.toml", "--output", str(data), *small, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"1 tomograms of (48, 64, 64) voxels in {data}" in done.stdout
    assert (data / "truth.csv").exists()

    wrong = tomoray(*submit, "jobs/pick.toml", "--catalogue", "/none.parquet", "--checkpoint", "/none", "--output", str(plain), cwd=ROOT)
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "tomoray pick: /none.parquet: there is no such file" in wrong.stdout

    plain.mkdir()
    write_mrc(plain / "TS_1.mrc", Tomogram("TS_1", np.random.default_rng(0).normal(size=(16, 32, 32)).astype(np.float32), (10.0,) * 3))
    (plain / "TS_2.mrc").write_bytes(b"no volume")
    index = ("jobs/index.toml", "--source", str(plain), "--output", str(tmp_path / "c.parquet"), "--contrast", "dark")
    some = tomoray(*submit, *index, cwd=ROOT)
    assert some.returncode == 3, some.stdout + some.stderr
    assert [row.run for row in read_catalogue(tmp_path / "c.parquet")] == ["TS_1"]


def test_ctrl_c_leaves_a_job_running_and_the_same_command_finds_it(head: str, tmp_path: Path) -> None:
    """Planted: a second job of the same settings beside the first."""
    many = ("jobs/simulate.toml", "--tomograms", "500", "--output", str(tmp_path))
    command = [sys.executable, "-m", "tomoray", "submit", *many, "--address", head]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert first.stdout is not None
    said, name, _, _ = first.stdout.readline().split()
    assert said == "sent:"
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130
    assert f"ray job stop {name} --address {head}" in first.stdout.read()

    second = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert second.stdout is not None
    assert second.stdout.readline() == f"runs there already, and is followed: {name} at {head}\n"
    stop = [str(Path(sys.executable).with_name("ray")), "job", "stop", name, "--address", head]
    assert subprocess.run(stop, capture_output=True, timeout=100, check=False).returncode == 0
    assert second.wait(60) == 130
    assert f"{name}: stopped, status 130" in second.stdout.read()
