"""The manifests as tests look at them: what is applied together, and the pods that come of it, as KubeRay completes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonpatch
from kustomize import Doc, render

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
NAMESPACE = "tomoray"
FOLDERS = sorted(path.parent for path in K8S.rglob("kustomization.yaml") if "components" not in path.parts)
WORLDS = {  # the platform, and the jobs that are applied to it
    "single-gpu": ("overlays/single-gpu", "overlays/single-gpu/jobs"),
    "gpu-pool": ("overlays/gpu-pool", "overlays/gpu-pool/jobs"),
    "kueue": ("overlays/gpu-pool", "overlays/kueue"),
    "cpu-smoke": ("overlays/cpu-smoke", "overlays/cpu-smoke/jobs"),
    "base": ("base", "jobs/train", "jobs/tune", "jobs/pick"),
}
OF_AUTOSCALER = {"version", "idleTimeoutSeconds", "upscalingMode"}  # its other options are fields of its container
TEMPLATED = {"Deployment", "StatefulSet", "Job"}
UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


@dataclass(frozen=True)
class Pod:
    """One pod template, with the labels and containers that its pods will have."""

    owner: str
    role: str
    labels: dict[str, str]
    spec: Doc
    claims: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of what it is, and which part."""
        return f"{self.owner}: {self.role}"

    def containers(self) -> list[Doc]:
        """Return all of them, initial ones first."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def ports(self) -> dict[int, str]:
        """Return number -> name of its ports."""
        return {port["containerPort"]: port.get("name", "") for c in self.spec["containers"] for port in c.get("ports", [])}


@cache
def rendered(folder: Path) -> list[Doc]:
    """Return the objects of a folder, which nobody may change."""
    return render(folder)


def world(name: str) -> list[Doc]:
    """Return all objects of a world, to change at will."""
    return deepcopy([doc for folder in WORLDS[name] for doc in rendered(K8S / folder)])


def with_mistake(name: str, kind: str, operations: list[Doc], called: str = "") -> list[Doc]:
    """Return a world of which one object was patched: the first of a kind, or the one that is called so."""
    docs = world(name)
    number = next(n for n, doc in enumerate(docs) if doc["kind"] == kind and called in ("", doc["metadata"]["name"]))
    docs[number] = jsonpatch.apply_patch(docs[number], operations)
    return docs


def of_kind(docs: list[Doc], *kinds: str) -> list[Doc]:
    """Return the objects of some kinds."""
    return [doc for doc in docs if doc["kind"] in kinds]


def title(doc: Doc) -> str:
    """`Kind name` of an object."""
    return f"{doc['kind']} {doc['metadata']['name']}"


def ray_clusters(docs: list[Doc]) -> Iterator[tuple[Doc, str, Doc]]:
    """Yield object, name and specification of every Ray cluster, be it one of its own or a job's."""
    for doc in of_kind(docs, "RayCluster"):
        yield doc, doc["metadata"]["name"], doc["spec"]
    for doc in of_kind(docs, "RayJob"):
        if "rayClusterSpec" in doc["spec"]:
            yield doc, f"{doc['metadata']['name']}-xxxxx", doc["spec"]["rayClusterSpec"]


def pods(docs: list[Doc]) -> Iterator[Pod]:
    """Yield every pod template; those of Ray with what KubeRay adds to them."""
    for doc in docs:
        if doc["kind"] in TEMPLATED:
            template = doc["spec"]["template"]
            claims = tuple(claim["metadata"]["name"] for claim in doc["spec"].get("volumeClaimTemplates", []))
            yield Pod(title(doc), "pod", template["metadata"].get("labels", {}), template["spec"], claims)
        if doc["kind"] == "RayJob" and (template := doc["spec"].get("submitterPodTemplate")):
            yield Pod(title(doc), "submitter", template["metadata"].get("labels", {}), template["spec"])
    for doc, cluster, spec in ray_clusters(docs):
        groups = [(spec["headGroupSpec"], "head", "headgroup"), *((g, "worker", g["groupName"]) for g in spec["workerGroupSpecs"])]
        for group, kind, name in groups:
            added = {"ray.io/node-type": kind, "ray.io/cluster": cluster, "ray.io/group": name, "ray.io/is-ray-node": "yes"}
            template = deepcopy(group["template"])
            if kind == "head" and spec.get("enableInTreeAutoscaling"):
                options = {k: v for k, v in spec.get("autoscalerOptions", {}).items() if k not in OF_AUTOSCALER}
                image = template["spec"]["containers"][0]["image"]
                template["spec"]["containers"].append({"name": "autoscaler", "image": image, **options})
            labels = {"app.kubernetes.io/name": "kuberay", **template["metadata"].get("labels", {}), **added}
            yield Pod(title(doc), kind if kind == "head" else f"group {name}", labels, template["spec"])


def quantity(text: Any) -> float:
    """Return the number that Kubernetes reads: 500m, 2, 16Gi."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    assert match, f"{text} is no quantity"
    return float(match[1]) * UNITS[match[2]]


def selects(labels: dict[str, str], selector: Doc) -> bool:
    """Return whether a label selector picks a pod with these labels."""
    operators = {"In": lambda value, values: value in values, "NotIn": lambda value, values: value not in values}
    expressions = selector.get("matchExpressions", [])
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        operators[e["operator"]](labels.get(e["key"]), e["values"]) for e in expressions
    )
