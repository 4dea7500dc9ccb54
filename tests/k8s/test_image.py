"""The image that manifests name: what its Dockerfile copies exists, what it installs is what was tested, what is packed for jobs is enough."""

import fnmatch
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from demand import IN_IMAGE, commands
from manifests import K8S, ROOT, WORLDS, of_kind, pods, world

from tomoray import __version__

DOCKERFILE = (K8S / "Dockerfile").read_text()
INSTRUCTIONS = [line.split() for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
LOCKS = {path.name: path for path in K8S.glob("requirements*.lock")}
BESIDE_CONSTRAINTS = {"setuptools"}  # which pip leaves out when it lists
SERVER = {"boto3", "psycopg2-binary"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    """Name -> version of a file of pins."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s]+)", path.read_text(), re.MULTILINE)
    return {canonical(name): version for name, version in found}


def copied() -> list[tuple[str, str]]:
    """Source and target of everything that is copied from the repository."""
    copies = [words[1:] for words in INSTRUCTIONS if words[0] == "COPY" and not words[1].startswith("--from")]
    return [(source, words[-1]) for words in copies for source in words[:-1]]


def stages() -> list[list[list[str]]]:
    starts = [number for number, words in enumerate(INSTRUCTIONS) if words[0] == "FROM"]
    return [INSTRUCTIONS[start:end] for start, end in zip(starts, [*starts[1:], len(INSTRUCTIONS)], strict=True)]


def is_sent(path: str, patterns: list[str]) -> bool:
    """Whether Docker sees a file: the last pattern that matches it, or a folder that it is in, decides."""
    parts = path.split("/")
    parents = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    sent = True
    for pattern in patterns:
        if any(fnmatch.fnmatch(parent, pattern.removeprefix("!")) for parent in parents):
            sent = pattern.startswith("!")
    return sent


def test_what_is_copied_exists_and_docker_sees_it() -> None:
    """Planted: `jobs` left out of .dockerignore's exceptions; a lock of another name."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert len(copied()) > 8
    for source, _ in copied():
        assert (ROOT / source).exists(), source
        assert is_sent(source, patterns), f"{source} is kept from Docker by .dockerignore"
    assert not is_sent("jobs/pick.toml", [pattern for pattern in patterns if pattern != "!jobs"])
    for kept in (".git/config", "data/x.mrc", ".venv/bin/python", "tests/k8s/crd.py", "k8s/README.md", "secrets.env"):
        assert not is_sent(kept, patterns), f"{kept} is sent to Docker"


def test_the_image_runs_as_nobody_in_particular_and_leaves_its_tools_behind() -> None:
    build, last = stages()
    assert ["USER", "1000:1000"] in last
    assert not any("pip" in words for words in last)
    assert [words for words in last if words[:2] == ["COPY", "--from=build"]] == [["COPY", "--from=build", "/opt/venv", "/opt/venv"]]
    users = {pod.spec["securityContext"]["runAsUser"] for name in WORLDS for pod in pods(world(name)) if _is_ours(pod.containers()[0]["image"])}
    assert users == {1000}
    installs = [words for words in build if "install" in words and "-r" in words]
    assert len(installs) == 2
    assert all({"--require-hashes", ":all:"} <= set(words) for words in installs)
    assert not any(":latest" in " ".join(words) for words in INSTRUCTIONS if words[0] in ("ARG", "FROM"))


def _is_ours(image: str) -> bool:
    return image.rpartition("/")[2].startswith("tomoray-")


def test_how_to_build_it_makes_what_manifests_name() -> None:
    named = {c["image"] for name in WORLDS if name != "base" for pod in pods(world(name)) for c in pod.containers() if _is_ours(c["image"])}
    assert set(re.findall(r"-t (\S+)", DOCKERFILE)) == named
    assert all(image.endswith(f":{__version__}") for image in named)


def test_files_that_entrypoints_name_are_in_the_image() -> None:
    """Planted: a script that is not copied."""
    into = {words[-1] for words in stages()[1] if words[0] == "COPY"}
    assert ["WORKDIR", IN_IMAGE.rstrip("/")] in INSTRUCTIONS
    entrypoints = [doc["spec"]["entrypoint"] for name in WORLDS for doc in of_kind(world(name), "RayJob")]
    named = {word.removeprefix(IN_IMAGE) for text in entrypoints for word in text.split() if word.startswith(IN_IMAGE)}
    named |= {word for text in entrypoints if text.startswith("bash") for words in commands(text) for word in words if word.startswith("jobs/")}
    assert len(named) > 5
    for path in named:
        assert any(path == target or path.startswith(f"{target}/") for target in into), f"{path} is not copied into the image"
        assert (ROOT / path).exists()
    assert not any("k8s/other.sh".startswith(target) for target in into)


def test_what_is_called_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    provided = {*project["scripts"], "ray", "mlflow"}
    commands_named = {doc["spec"]["entrypoint"].split()[0] for name in WORLDS for doc in of_kind(world(name), "RayJob")} - {"bash"}
    ours = [c for name in WORLDS for pod in pods(world(name)) for c in pod.containers() if _is_ours(c["image"])]
    commands_named |= {c["command"][0] for c in ours if "command" in c} - {"sh"}
    assert commands_named <= provided
    assert {"ray", "mlflow"} <= set(pins(LOCKS["requirements.lock"]))


def test_mlflow_has_the_driver_that_its_address_names() -> None:
    """SQLAlchemy takes another one for each `postgresql://` than it did before 2.1."""
    (server,) = [c for pod in pods(world("base")) for c in pod.containers() if c["name"] == "mlflow"]
    (address,) = [word for word in server["args"] if word.startswith("--backend-store-uri")]
    assert "postgresql+psycopg2://" in address
    assert "psycopg2-binary" in pins(LOCKS["requirements.lock"])


def test_the_locks_say_what_the_constraints_say() -> None:
    """Planted: another version of ray in the lock."""
    tested = pins(ROOT / ".ci" / "constraints.txt")
    locked = {name: pins(path) for name, path in LOCKS.items()}
    assert set(locked) == {f"requirements{part}.lock" for part in ("", "-gpu", "-cpu", "-build")}
    for name, versions in locked.items():
        assert [n for n, version in versions.items() if n in tested and version != tested[n]] == [], name
    assert set(locked["requirements.lock"]) - set(tested) <= BESIDE_CONSTRAINTS
    assert locked["requirements-cpu.lock"] == {"torch": tested["torch"]}
    assert locked["requirements-gpu.lock"]["torch"] == tested["torch"]
    assert any(name.startswith("nvidia-") for name in locked["requirements-gpu.lock"])


def test_the_locks_hold_all_that_is_asked_for_with_a_hash_each() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {canonical(re.split(r"[ \[<>=!~;]", requirement)[0]) for requirement in project["dependencies"]} | SERVER
    assert asked - set(pins(LOCKS["requirements.lock"])) == {"torch"}
    for path in LOCKS.values():
        for line in path.read_text().splitlines()[1:]:
            assert re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line), f"{path.name}: {line}"


def test_the_lock_has_all_that_the_installed_packages_need() -> None:
    """Every requirement of a locked package is locked too, so that --no-deps would do.

    Planted: pandas left out of the lock.
    """
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    def missing(locked: set[str]) -> set[str]:
        found = set()
        for name in locked:
            try:
                texts = requires(name) or []
            except PackageNotFoundError:  # what only the server needs
                continue
            needed = [Requirement(text) for text in texts]
            found |= {canonical(r.name) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})}
        return found - locked

    locked = set(pins(LOCKS["requirements.lock"])) | set(pins(LOCKS["requirements-cpu.lock"]))
    assert missing(locked) == set()
    assert missing(locked - {"pandas"}) == {"pandas"}


def test_ray_packs_the_package_jobs_and_spaces_and_no_data(tmp_path: Path) -> None:
    """By what Ray itself would upload with `--working-dir .`. Planted: data beside the code."""
    from ray._private.runtime_env.packaging import create_package

    tree = ["platform/tomoray/cli.py", "jobs/pick.toml", "jobs/runtime_env.yaml", "tune_spaces/thresholds.toml", "pyproject.toml"]
    data = ["data/x.zarr/0", "runs/a/picker/picker.pt", "a.mrc", "deep/b.mrc", "picks/picks.csv", "mlflow.db", "tests/k8s/crd.py", ".venv/bin/python"]
    for path in [*tree, *data]:
        (tmp_path / "project" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / path).write_text("x")
    (tmp_path / "project" / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    create_package(str(tmp_path / "project"), tmp_path / "package.zip", include_gitignore=False)
    with ZipFile(tmp_path / "package.zip") as package:
        assert sorted(name for name in package.namelist() if not name.endswith("/")) == sorted(tree)


@pytest.mark.slow
def test_the_lock_installs_in_a_clean_environment(tmp_path: Path) -> None:
    """What the CPU image installs, and that it works: a few minutes, with a package index that has PyTorch's CPU wheels."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    files = [word for name in ("", "-cpu", "-build") for word in ("-r", str(K8S / f"requirements{name}.lock"))]
    done = subprocess.run([*pip, "--require-hashes", *files], capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"no index has PyTorch's CPU wheels: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", str(ROOT)], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    program = "import tomoray.commands, tomoray.cluster.train, tomoray.cluster.pick, psycopg2, boto3"
    subprocess.run([python, "-c", program], check=True, cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    shown = subprocess.run([str(Path(python).with_name("tomoray")), "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == f"tomoray {__version__}"
    assert sys.version_info[:2] == (3, 11), "the lock is for Python 3.11"
