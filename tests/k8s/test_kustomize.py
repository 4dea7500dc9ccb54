"""The overlays are what Kustomize makes of them, and leave nothing out."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from kustomize import Doc, render, used_files
from manifests import FOLDERS, K8S, rendered
from reference_rules import documented_secrets

TOOL = next((command for command in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(command[0])), None)


def by_name(docs: list[Doc]) -> dict[tuple[str, str, str], Doc]:
    named = {(doc["kind"], doc["metadata"].get("namespace", ""), doc["metadata"]["name"]): doc for doc in docs}
    assert len(named) == len(docs), "two objects of one name"
    return named


def test_there_are_overlays() -> None:
    """Without this, an empty folder would pass the tests below by having nothing to check."""
    assert {folder.name for folder in FOLDERS} >= {"base", "single-gpu", "gpu-pool", "cpu-smoke", "kueue"}


@pytest.mark.skipif(TOOL is None, reason="neither kustomize nor kubectl is installed; manifests are checked as our own renderer makes them")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(K8S)))
def test_kustomize_renders_the_same(folder: Path) -> None:
    """Planted: images are not replaced in init containers."""
    assert TOOL is not None
    done = subprocess.run([*TOOL, str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert by_name(list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))) == by_name(rendered(folder))


def test_every_file_is_in_some_overlay() -> None:
    used = {path for folder in FOLDERS for path in used_files(folder)}
    assert set(K8S.rglob("*.yaml")) - used == set()


def test_the_readme_names_what_is_there() -> None:
    """Every folder and every secret. Planted: a secret of another name."""
    text = (K8S / "README.md").read_text()
    for path in {
        *re.findall(r"(?<!tests/)k8s/([\w./-]+\w)", text),
        *re.findall(r"\]\(([\w./-]+)\)", text),
        *re.findall(r"^    (\w[\w/-]+)/ +", text, re.MULTILINE),
    }:
        assert (K8S / path).exists(), path
    loop = re.search(r"for name in ([\w ]+); do", text)
    assert loop is not None
    made = {f"tomoray-{name}" for name in loop[1].split()} | set(re.findall(r"create secret generic (tomoray-\w+)", text))
    assert made == set(documented_secrets())
    assert set(re.findall(r"--from-literal=(\w+)=", text)) == {key for keys in documented_secrets().values() for key in keys}


@pytest.mark.parametrize(
    ("kustomization", "told"),
    [
        ("namePrefix: x-\n", "namePrefix is not known here"),
        ("images: [{name: a, digest: sha256:0}]\n", "digest of images"),
        ("patches: [{target: {kind: A, labelSelector: x=y}, patch: '[]'}]\n", "labelSelector"),
        ("patches: [{target: {kind: A}, patch: '[{op: replace, path: /spec/none, value: 1}]'}]\n", "none"),
        ("resources: [b.yaml]\n", "b.yaml"),
    ],
)
def test_what_it_cannot_do_is_told(kustomization: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{apiVersion: v1, kind: A, metadata: {name: a}, spec: {}}")
    (tmp_path / "kustomization.yaml").write_text(kustomization if "resources" in kustomization else f"resources: [a.yaml]\n{kustomization}")
    with pytest.raises(Exception, match=told):
        render(tmp_path)
