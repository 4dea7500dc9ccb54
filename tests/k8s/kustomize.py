"""What `kubectl kustomize` makes of a folder, for the part of Kustomize that k8s/ keeps to; so no binary is needed to test manifests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Doc = dict[str, Any]
KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "patches", "images"}
WITHOUT_NAMESPACE = {"Namespace"}
FILE = "kustomization.yaml"


def render(folder: Path) -> list[Doc]:
    """Return the objects that a folder stands for.

    Raises
    ------
    ValueError
        If it uses a part of Kustomize that is not known here, a file is missing, or a patch fits nothing.
    """
    return _apply(folder, [])


def read_documents(path: Path) -> list[Doc]:
    """Return the objects in a YAML file."""
    return [doc for doc in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader) if doc]


def _apply(folder: Path, before: list[Doc]) -> list[Doc]:
    """Add a folder's resources to those that there are, then do to all of them what it says."""
    (settings,) = read_documents(folder / FILE)
    if unknown := set(settings) - KNOWN:
        raise ValueError(f"{folder / FILE}: {', '.join(sorted(unknown))} is not known here; do it with resources, components, patches and images")
    docs = list(before)
    for name in settings.get("resources", []):
        docs += render(folder / name) if (folder / name).is_dir() else read_documents(folder / name)
    for name in settings.get("components", []):
        docs = _apply(folder / name, docs)
    for patch in settings.get("patches", []):
        docs = _patched(docs, patch, folder)
    if namespace := settings.get("namespace"):
        docs = [_in_namespace(doc, namespace) for doc in docs]
    images = {image["name"]: image for image in settings.get("images", [])}
    if unknown := {key for image in images.values() for key in image} - {"name", "newName", "newTag"}:
        raise ValueError(f"{folder / FILE}: {', '.join(sorted(unknown))} of images is not known here; give newName and newTag")
    return [_with_images(doc, images) for doc in docs]


def _patched(docs: list[Doc], patch: Doc, folder: Path) -> list[Doc]:
    operations = yaml.safe_load(patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text())
    return [jsonpatch.apply_patch(doc, operations) if _is_target(doc, patch["target"]) else doc for doc in docs]


def _is_target(doc: Doc, target: Doc) -> bool:
    if unknown := set(target) - {"kind", "name"}:
        raise ValueError(f"a patch's target names {', '.join(sorted(unknown))}, which is not known here; name kind and name")
    has = {"kind": doc["kind"], "name": doc["metadata"]["name"]}
    return all(re.fullmatch(wanted, has[key]) for key, wanted in target.items())


def _in_namespace(doc: Doc, namespace: str) -> Doc:
    return doc if doc["kind"] in WITHOUT_NAMESPACE else {**doc, "metadata": {**doc["metadata"], "namespace": namespace}}


def _with_images(node: Any, images: dict[str, Doc], key: str = "") -> Any:
    """Return a copy in which containers, wherever they are, have the image that is to take the place of theirs."""
    if isinstance(node, list):
        return [_with_images(item, images, key) for item in node]
    if not isinstance(node, dict):
        return node
    copy = {name: _with_images(value, images, name) for name, value in node.items()}
    if key in ("containers", "initContainers") and "image" in copy:
        name, _, tag = copy["image"].partition(":")
        new = images.get(name, {})
        copy["image"] = f"{new.get('newName', name)}:{new.get('newTag', tag)}"
    return copy


def used_files(folder: Path) -> Iterator[Path]:
    """Yield every file that a folder's objects are made of."""
    (settings,) = read_documents(folder / FILE)
    yield folder / FILE
    for name in [*settings.get("resources", []), *settings.get("components", [])]:
        path = (folder / name).resolve()
        yield from used_files(path) if path.is_dir() else [path]
    yield from ((folder / patch["path"]).resolve() for patch in settings.get("patches", []) if "path" in patch)
