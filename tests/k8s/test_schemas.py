"""Every object has the fields that its kind knows, and no other.

Ray's kinds against the definitions of KubeRay (from TOMORAY_SHARED_DATA), all others and every pod against those of Kubernetes, and one
small list of our own that is always there.
"""

from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
from crd import Validators, mistakes, strict, validators
from jsonschema import Draft202012Validator
from kustomize import Doc
from manifests import FOLDERS, K8S, Pod, of_kind, pods, ray_clusters, rendered, title, world

KUBERNETES = "1.32"
RAY = "ray.io/v1"
OTHERS = {"monitoring.coreos.com/v1"}  # has a list of ours below

FIELDS = {  # what we use of kinds whose definitions may not be at hand
    "RayCluster": {
        *("rayVersion", "authOptions", "gcsFaultToleranceOptions", "enableInTreeAutoscaling"),
        *("autoscalerOptions", "headGroupSpec", "workerGroupSpecs"),
    },
    "RayJob": {
        *("entrypoint", "submissionMode", "submitterConfig", "submitterPodTemplate", "rayClusterSpec", "clusterSelector", "suspend"),
        *("backoffLimit", "activeDeadlineSeconds", "preRunningDeadlineSeconds", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
    },
    "PodMonitor": {"selector", "podMetricsEndpoints"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
    "autoscalerOptions": {"version", "idleTimeoutSeconds", "resources", "securityContext", "envFrom", "volumeMounts"},
    "podMetricsEndpoints": {"port", "interval", "relabelings"},
}


@pytest.fixture(scope="session")
def definitions(shared_data: Path) -> Validators:
    """KubeRay's definitions, read once: a megabyte each."""
    folder = shared_data / "kuberay_crds"
    if not folder.is_dir():
        pytest.skip(f"KubeRay's definitions not found at {folder}; set TOMORAY_SHARED_DATA")
    return validators(folder / f"ray.io_{kind}.yaml" for kind in ("rayclusters", "rayjobs"))


def ray_mistakes(docs: list[Doc], definitions: Validators) -> list[str]:
    return [f"{title(doc)}: {text}" for doc in docs if doc["apiVersion"] == RAY for text in mistakes(doc, definitions[RAY, doc["kind"]])]


def pod_object(pod: Pod) -> Doc:
    """A pod as the API server would get it; of StatefulSets with the volumes that their claims make."""
    spec = {**pod.spec, "volumes": [*pod.spec.get("volumes", []), *({"name": claim, "emptyDir": {}} for claim in pod.claims)]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "labels": pod.labels}, "spec": spec}


def kubernetes_mistakes(docs: list[Doc]) -> Iterator[str]:
    plain = [(title(doc), doc) for doc in docs if doc["apiVersion"] != RAY and doc["apiVersion"] not in OTHERS]
    for name, doc in [*plain, *((pod.name, pod_object(pod)) for pod in pods(docs))]:
        try:
            kubernetes_validate.validate(doc, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{name}: {'/'.join(map(str, error.path))}: {error.message[:200]}"


def unlisted(docs: list[Doc]) -> Iterator[str]:
    """Fields of custom resources that are not on our list, which is of those that were looked up."""
    for doc in of_kind(docs, *FIELDS):
        yield from (f"{title(doc)}: {key}" for key in set(doc["spec"]) - FIELDS[doc["kind"]])
        for endpoint in doc["spec"].get("podMetricsEndpoints", []):
            yield from (f"{title(doc)}: {key}" for key in set(endpoint) - FIELDS["podMetricsEndpoints"])
    for doc, _, spec in ray_clusters(docs):
        parts = [("RayCluster", spec), ("headGroupSpec", spec["headGroupSpec"]), ("autoscalerOptions", spec.get("autoscalerOptions", {}))]
        for kind, part in [*parts, *(("workerGroupSpecs", group) for group in spec["workerGroupSpecs"])]:
            yield from (f"{title(doc)}: {kind}: {key}" for key in set(part) - FIELDS[kind])


every_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(K8S)))


@every_folder
def test_ray_objects_have_the_fields_of_their_definitions(folder: Path, definitions: Validators) -> None:
    assert ray_mistakes(rendered(folder), definitions) == []


@every_folder
def test_other_objects_and_all_pods_are_what_kubernetes_knows(folder: Path) -> None:
    assert list(kubernetes_mistakes(rendered(folder))) == []


@every_folder
def test_custom_resources_use_the_fields_on_our_list(folder: Path) -> None:
    assert list(unlisted(rendered(folder))) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("spec", "entrypont"), "x", "'entrypont' was unexpected"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplica"), 1, "'maxReplica' was unexpected"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), "1", "minReplicas: '1' is not of type 'integer'"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0, "num-cpus: 0 is not of type 'string'"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens", "'tokens' is not one of"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "port"), [], "'port' was unexpected"),
        (("spec", "submitterPodTemplate", "spec", "serviceAccount_name"), "x", "'serviceAccount_name' was unexpected"),
    ],
)
def test_mistakes_in_ray_objects_are_found(path: tuple[str | int, ...], value: object, told: str, definitions: Validators) -> None:
    docs = world("base")
    node = of_kind(docs, "RayJob")[0]
    for key in path[:-1]:
        node = node[key]  # type: ignore[index]
    node[path[-1]] = value  # type: ignore[index]
    found = ray_mistakes(docs, definitions)
    assert len(found) == 1
    assert told in found[0]


def test_mistakes_in_other_objects_and_in_pods_are_found() -> None:
    docs = world("single-gpu")
    of_kind(docs, "Service")[0]["spec"]["port"] = 1
    of_kind(docs, "RayCluster")[0]["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["securityContext"]["runAsRoot"] = False
    of_kind(docs, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["period"] = 1
    found = list(kubernetes_mistakes(docs))
    assert all(any(key in text for text in found) for key in ("'port'", "'runAsRoot'", "'period'")), found


def test_fields_that_are_not_on_our_list_are_found() -> None:
    docs = world("gpu-pool")
    of_kind(docs, "RayCluster")[0]["spec"]["workerGroupSpecs"][1]["maxReplica"] = 2
    of_kind(docs, "PodMonitor")[0]["spec"]["podMetricEndpoints"] = []
    assert len(list(unlisted(docs))) == 2


def test_a_definition_made_strict() -> None:
    """Defaults need not be given, numbers may be texts where both are allowed, and free-form tables stay free."""
    schema = strict(
        {
            "type": "object",
            "required": ["a", "b"],
            "properties": {
                "a": {"type": "string"},
                "b": {"type": "integer", "default": 1},
                "port": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}]},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"x": {"type": "string"}}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        }
    )
    validator = Draft202012Validator(schema)
    assert mistakes({"a": "x", "port": "http", "free": {"y": 1}, "labels": {"k": "v"}}, validator) == []
    wrong = mistakes({"port": 1.5, "labels": {"k": 1}, "c": 1}, validator)
    assert len(wrong) == 4, wrong
