"""The shape of the package: layers, what may be imported where, and that every shipped job file is real."""

import ast
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import tomoray
from tomoray.checkpoint import Card, save_checkpoint
from tomoray.config import dump_settings, read_settings, read_settings_text
from tomoray.jobs import JOBS
from tomoray.tomogram import Particle

PACKAGE = Path(tomoray.__file__).parent
SOURCE_ROOT = PACKAGE.parent
REPOSITORY = SOURCE_ROOT.parent
JOB_FILES = sorted((REPOSITORY / "jobs").glob("*.toml"))

LAYERS = [
    ["config", "credentials", "provenance", "tomogram"],
    [
        *("formats", "storage", "storage_errors", "simulate", "catalogue", "index", "ingest", "preprocessing", "crops", "patches", "targets"),
        *("augment", "losses", "matching", "networks", "peaks", "risks", "score_table", "scoring", "soft_f1", "suppression", "threshold_curves"),
        *("thresholds", "tiles", "views"),
    ],
    ["methods"],
    ["training", "picking", "inference", "memory"],
    [
        *("jobs", "recipes", "spaces", "checkpoint", "report", "study", "comparison", "ensemble", "results"),
        *("demo", "held_out", "models", "search", "submission", "sweep", "sweep_report", "validation"),
    ],
    ["cluster"],
    ["cli", "commands", "__main__"],
]
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}
MODULES = sorted(PACKAGE.rglob("*.py"))
CORE = [
    f"tomoray.{name}" for name in ("augment", "checkpoint", "losses", "methods", "networks", "patches", "peaks", "picking", "targets", "training")
]


def module_name(path: Path) -> str:
    """`tomoray.formats.mrc` of a file."""
    parts = path.relative_to(SOURCE_ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ALL_NAMES = {module_name(path) for path in MODULES}


def imports_of(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Every module that a file imports, the line, and whether inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, id(node) in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are written out from tomoray on"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name if name in ALL_NAMES else str(node.module), node.lineno, id(node) in inner) for name in names)


def part_of(name: str) -> str:
    """The second part of a module's name, which has a layer; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def run_python(program: str, *arguments: str, cwd: Path) -> str:
    """Run a program in a process of its own and return what it printed."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if key in os.environ}  # nothing that this process set
    environment = {**kept, "PYTHONPATH": str(SOURCE_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_standard_library_keeps_its_platform(tmp_path: Path) -> None:
    """`platform/` is a source root: with an `__init__.py` it shadows the module of that name for whoever starts Python beside it."""
    assert SOURCE_ROOT.name == "platform"
    assert not (SOURCE_ROOT / "__init__.py").exists()
    assert Path(str(platform.__file__)).parent == Path(sysconfig.get_path("stdlib"))
    program = "import platform, sys; print(platform.python_version() == sys.version.split()[0])"
    assert run_python(program, cwd=REPOSITORY) == "True\n"
    assert [path.name for path in SOURCE_ROOT.iterdir() if not path.name.startswith((".", "__"))] == ["tomoray"]


def test_every_module_has_a_layer() -> None:
    parts = {part_of(name) for name in ALL_NAMES} - {""}
    assert parts - set(LAYER_OF) == set(), "give it a layer in LAYERS"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_its_own_layer_and_those_below(path: Path) -> None:
    own = LAYER_OF.get(part_of(module_name(path)), -1)
    assert list(upward(path, own)) == []


def upward(path: Path, own: int) -> Iterator[str]:
    for name, line, _ in imports_of(path):
        if name.split(".")[0] == "tomoray" and LAYER_OF.get(part_of(name), -1) > own:
            yield f"{path.name}:{line}: layer {own} imports {name} of layer {LAYER_OF[part_of(name)]}"


def test_imports_upward_are_found(tmp_path: Path) -> None:
    """The guard itself: whatever way an import is written."""
    wrong = [
        "import tomoray.training",
        "from tomoray import cluster",
        "from tomoray.training import fit",
        "def f():\n    from tomoray.picking import pick",
    ]
    for text in wrong:
        (tmp_path / "m.py").write_text(text)
        assert len(list(upward(tmp_path / "m.py", 2))) == 1, text
    (tmp_path / "m.py").write_text("import tomoray\nfrom tomoray import storage\nfrom tomoray.methods import METHODS\nimport torch")
    assert list(upward(tmp_path / "m.py", 2)) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_ray_and_mlflow_are_imported_in_cluster_only(path: Path) -> None:
    """`commands` reaches `cluster` from within functions, so that scoring and indexing need no Ray."""
    inside = part_of(module_name(path)) == "cluster"
    for name, line, in_function in imports_of(path):
        assert inside or name.split(".")[0] not in ("ray", "mlflow"), f"{path}:{line}"
        if part_of(name) == "cluster" and name.startswith("tomoray."):
            assert inside or (path.name == "commands.py" and in_function), f"{path}:{line}"


IMPORT_WITHOUT = """
import importlib, json, sys, warnings
warnings.simplefilter("error")
for name in json.loads(sys.argv[2]):
    sys.modules[name] = None
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
"""


def test_all_but_cluster_is_imported_without_ray_and_mlflow(tmp_path: Path) -> None:
    names = sorted(name for name in ALL_NAMES if part_of(name) not in ("cluster", "__main__"))
    assert len(names) > 30
    run_python(IMPORT_WITHOUT, json.dumps(names), json.dumps(["ray", "mlflow"]), cwd=tmp_path)


def test_torch_and_numpy_are_enough_to_train_and_to_pick(tmp_path: Path) -> None:
    """On a bare machine with a GPU: nothing else is imported, not even to read a checkpoint from disk."""
    card = Card((Particle("x", 60.0),), 10.0, "dark", network={"name": "asymmetric_unet", "width": 2, "blocks": [1]})
    save_checkpoint(tmp_path, card, card.build())
    absent = [
        "ray",
        "mlflow",
        "pydantic",
        "pyarrow",
        "monai",
        "zarr",
        "mrcfile",
        "s3fs",
        "scipy",
        "matplotlib",
        "tqdm",
        "aiohttp",
        "botocore",
        "pandas",
    ]
    program = (
        IMPORT_WITHOUT
        + """
import numpy as np
from tomoray.checkpoint import load_picker
from tomoray.picking import pick
from tomoray.preprocessing import prepare
from tomoray.tomogram import Tomogram
picker, card = load_picker(sys.argv[3])
noise = np.random.default_rng(0).normal(size=(20, 24, 28))
volume, voxel = prepare(Tomogram("TS_1", noise, (8.0,) * 3), contrast="bright", to_voxel_angstrom=card.voxel_angstrom)
print(len(pick(picker, volume, card.particles, voxel, run="TS_1", floor=0.0)) > 0)
"""
    )
    assert run_python(program, json.dumps(CORE), json.dumps(absent), str(tmp_path), cwd=tmp_path) == "True\n"


UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe_reads(path: Path) -> Iterator[str]:
    """Calls by which a file could run code of its own."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        told = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        owner = getattr(node.func.value, "id", "")
        if (owner in UNSAFE and node.func.attr in ("load", "loads", "Unpickler")) or told.get("allow_pickle"):
            yield f"{path.name}:{node.lineno}: {owner}.{node.func.attr}"
        if (owner, node.func.attr) == ("torch", "load") and told.get("weights_only") is not True:
            yield f"{path.name}:{node.lineno}: torch.load without weights_only=True"


def test_nothing_that_is_read_can_run_code(tmp_path: Path) -> None:
    """Weights come from strangers; torch's default is not relied upon."""
    assert [fault for path in MODULES for fault in unsafe_reads(path)] == []
    for line in ("torch.load(f)", "torch.load(f, weights_only=False)", "pickle.loads(b)", "np.load(f, allow_pickle=True)"):
        (tmp_path / "m.py").write_text(line)
        assert len(list(unsafe_reads(tmp_path / "m.py"))) == 1, line


def test_importing_changes_nothing(tmp_path: Path) -> None:
    """Nothing is read or created at import, and torch is left as it was found; only the command line quiets its threads."""
    program = """
import importlib, json, os, sys
import torch
before = (dict(os.environ), torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), torch.random.get_rng_state().tolist())
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
after = (dict(os.environ), torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), torch.random.get_rng_state().tolist())
print(before == after, os.listdir())
"""
    names = sorted(name for name in ALL_NAMES if part_of(name) not in ("cluster", "__main__", "cli"))
    assert run_python(program, json.dumps(names), cwd=tmp_path) == "True []\n"


def test_there_are_job_files() -> None:
    """Without this, an empty folder would pass the test below by having nothing to check."""
    assert {path.name.split(".")[0].split("_")[0] for path in JOB_FILES} >= {"simulate", "index", "train", "study", "tune", "pick", "score", "demo"}


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda path: path.name)
def test_every_job_file_is_one(path: Path) -> None:
    """The verb is the name up to the first underscore or dot."""
    model = JOBS[path.name.split(".")[0].split("_")[0]]
    job = read_settings(model, path)
    assert read_settings_text(model, dump_settings(job), "again") == job
    assert job.model_fields_set, "a job file that sets nothing shows nothing"
