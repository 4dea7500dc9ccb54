"""Manifests agree with each other and with what we ask of every pod. Each rule with a mistake that it must find."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kustomize import Doc
from manifests import WORLDS, pods, ray_clusters, with_mistake, world
from network import Caller, may_call
from pod_rules import memory_rules, running_rules, security_rules
from reference_rules import documented_secrets, entrypoint_rules, selector_rules, service_rules, settings_rules

Rule = Callable[[list[Doc]], Iterator[str]]
RULES: list[Rule] = [security_rules, running_rules, memory_rules, settings_rules, entrypoint_rules, service_rules, selector_rules]
TEMPLATE = "/spec/template/spec"
CONTAINER = f"{TEMPLATE}/containers/0"
HEAD = "/spec/headGroupSpec/template/spec"
PARAMETERS = "/spec/headGroupSpec/rayStartParams"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", WORLDS)
def test_manifests_keep_the_rules(name: str, rule: Rule) -> None:
    assert list(rule(world(name))) == []


def put(path: str, value: Any) -> Doc:
    return {"op": "add", "path": path, "value": value}


MISTAKES: list[tuple[Rule, str, str, Doc, str]] = [
    (security_rules, "Deployment", "mlflow", {"op": "remove", "path": f"{TEMPLATE}/automountServiceAccountToken"}, "must be false"),
    (security_rules, "RayCluster", "tomoray", put(f"{HEAD}/automountServiceAccountToken", False), "automountServiceAccountToken must be true"),
    (security_rules, "ServiceAccount", "mlflow", put("/automountServiceAccountToken", True), "pods that need a token"),
    (security_rules, "Deployment", "mlflow", put(f"{TEMPLATE}/enableServiceLinks", True), "MLFLOW_PORT"),
    (security_rules, "StatefulSet", "redis", put(f"{TEMPLATE}/securityContext/runAsUser", 0), "a user of its own"),
    (security_rules, "RayCluster", "tomoray", {"op": "remove", "path": f"{HEAD}/securityContext/seccompProfile"}, "seccompProfile"),
    (security_rules, "Deployment", "mlflow", put(f"{TEMPLATE}/hostNetwork", True), "hostNetwork"),
    (security_rules, "Deployment", "mlflow", put(f"{TEMPLATE}/volumes/-", {"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
    (security_rules, "RayCluster", "tomoray", {"op": "remove", "path": "/spec/autoscalerOptions/securityContext"}, "autoscaler: allowPrivilege"),
    (security_rules, "RayJob", "tomoray-train", put("/spec/submitterPodTemplate/spec/containers/0/securityContext/capabilities", {}), "dropped"),
    (security_rules, "StatefulSet", "postgres", put(f"{CONTAINER}/securityContext/readOnlyRootFilesystem", False), "readOnlyRoot"),
    (running_rules, "Deployment", "mlflow", {"op": "remove", "path": f"{CONTAINER}/livenessProbe"}, "no livenessProbe"),
    (running_rules, "StatefulSet", "redis", {"op": "remove", "path": f"{CONTAINER}/resources/limits/memory"}, "no limit or no request of memory"),
    (running_rules, "StatefulSet", "redis", put(f"{CONTAINER}/resources/requests/cpu", "501m"), "more cpu than its limit"),
    (running_rules, "RayCluster", "tomoray", put(f"{HEAD}/containers/0/resources/limits/nvidia.com~1gpu", "1"), "requested as they are limited"),
    (running_rules, "RayCluster", "tomoray", put("/spec/workerGroupSpecs/0/template/spec/containers/0/image", "x/tomoray-cpu:0.1.0"), "without CUDA"),
    (running_rules, "StatefulSet", "redis", put(f"{CONTAINER}/image", "redis"), "a tag that stays"),
    (running_rules, "StatefulSet", "redis", put(f"{CONTAINER}/image", "redis:latest"), "a tag that stays"),
    (running_rules, "Deployment", "mlflow", put(f"{CONTAINER}/image", "registry.example/tomoray-cpu:0.0.9"), "of version"),
    (running_rules, "Deployment", "mlflow", put(f"{CONTAINER}/image", "registry.example/tomoray:0.1.0"), "must be one of"),
    (running_rules, "Deployment", "mlflow", put(f"{CONTAINER}/volumeMounts/0/name", "temp"), "volume temp is not there"),
    (running_rules, "Deployment", "mlflow", put(f"{CONTAINER}/volumeMounts/0/mountPath", "/var/tmp"), "HOME is /tmp"),
    (running_rules, "Deployment", "mlflow", put(f"{TEMPLATE}/volumes/0/emptyDir", {}), "no sizeLimit"),
    (memory_rules, "RayCluster", "tomoray", {"op": "remove", "path": f"{HEAD}/volumes/0/emptyDir/medium"}, "emptyDir in memory"),
    (memory_rules, "RayCluster", "tomoray", put(f"{PARAMETERS}/object-store-memory", "2147483648"), "leave something"),
    (memory_rules, "RayCluster", "tomoray", put(f"{HEAD}/volumes/0/emptyDir/sizeLimit", "6Gi"), "leave half"),
    (memory_rules, "RayCluster", "tomoray", put(f"{PARAMETERS}/object-spilling-directory", "/spills"), "must be a volume"),
    (settings_rules, "RayCluster", "tomoray", put(f"{HEAD}/serviceAccountName", "head"), "service account head"),
    (settings_rules, "Deployment", "mlflow", put(f"{CONTAINER}/envFrom/0/configMapRef/name", "tomoray"), "configMapRef tomoray"),
    (settings_rules, "Deployment", "mlflow", put(f"{CONTAINER}/envFrom/1/secretRef/name", "tomoray-aws"), "secretRef tomoray-aws"),
    (settings_rules, "Deployment", "mlflow", put(f"{CONTAINER}/env/0/valueFrom/secretKeyRef/key", "pass"), "pass is not there"),
    (settings_rules, "Deployment", "mlflow", put(f"{CONTAINER}/env/0", {"name": "PGPASSWORD", "value": "x"}), "for all to read"),
    (settings_rules, "Deployment", "mlflow", put(f"{CONTAINER}/args/4", "--artifacts-destination=$(TOMORAY_DAT)/mlflow"), "TOMORAY_DAT is not set"),
    (settings_rules, "RayCluster", "tomoray", put("/spec/gcsFaultToleranceOptions/redisPassword/valueFrom/secretKeyRef/key", "x"), "secrets.example"),
    (settings_rules, "Service", "mlflow", put("/kind", "Secret"), "do not belong here"),
    (entrypoint_rules, "RayJob", "tomoray-train", put("/spec/entrypoint", "tomoray train $TOMORAY_JOB"), "$TOMORAY_JOB is not set"),
    (service_rules, "Service", "mlflow", put("/spec/selector/app.kubernetes.io~1component", "flow"), "selects nothing"),
    (service_rules, "Service", "mlflow", put("/spec/ports/0/targetPort", "web"), "has no port web"),
    (service_rules, "StatefulSet", "redis", put("/spec/serviceName", "redis-headless"), "redis-headless is not there"),
    (service_rules, "ConfigMap", "tomoray-environment", put("/data/MLFLOW_TRACKING_URI", "http://mlflow:80"), "no service mlflow with port 80"),
    (service_rules, "Deployment", "mlflow", put(f"{CONTAINER}/args/3", "--a=postgresql+psycopg2://a@db:5432/m"), "no service db with port 5432"),
    (service_rules, "RayCluster", "tomoray", put("/spec/gcsFaultToleranceOptions/redisAddress", "redis:6380"), "no service redis with port 6380"),
    (selector_rules, "Deployment", "mlflow", put("/spec/selector/matchLabels/app.kubernetes.io~1component", "x"), "not that of its pods"),
    (selector_rules, "NetworkPolicy", "ray-to-mlflow", put("/spec/podSelector/matchLabels/app.kubernetes.io~1component", "x"), "selects nothing"),
    (selector_rules, "NetworkPolicy", "ray-to-mlflow", put("/spec/ingress/0/from/0/podSelector/matchLabels/a", "b"), "selects nothing"),
    (selector_rules, "NetworkPolicy", "ray-to-mlflow", put("/spec/ingress/0/ports/0/port", 5001), "has no port 5001"),
    (selector_rules, "PodDisruptionBudget", "postgres", put("/spec/selector/matchLabels/app.kubernetes.io~1component", "pg"), "selects nothing"),
    (selector_rules, "PodDisruptionBudget", "tomoray-head", put("/spec/minAvailable", "50%"), "a number as minAvailable"),
    (selector_rules, "PodMonitor", "tomoray-ray", put("/spec/podMetricsEndpoints/0/port", "metric"), "has no port metric"),
    (selector_rules, "PodMonitor", "tomoray-ray", put("/spec/selector/matchLabels/a", "b"), "selects nothing"),
]


@pytest.mark.parametrize(("rule", "kind", "called", "operation", "told"), MISTAKES, ids=[f"{m[1]}-{m[4]}" for m in MISTAKES])
def test_mistakes_are_found(rule: Rule, kind: str, called: str, operation: Doc, told: str) -> None:
    """And nothing is said of any other object."""
    found = list(rule(with_mistake("gpu-pool", kind, [operation], called)))
    assert any(told in text for text in found), found
    assert all(called in text for text in found), found


def test_every_documented_secret_is_used_and_has_no_value() -> None:
    used: dict[str, set[str]] = {}
    for docs in map(world, WORLDS):
        for pod in pods(docs):
            for container in pod.containers():
                for source in container.get("envFrom", []):
                    if "secretRef" in source:
                        used.setdefault(source["secretRef"]["name"], set()).update(documented_secrets()[source["secretRef"]["name"]])
                for entry in container.get("env", []):
                    if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
                        used.setdefault(reference["name"], set()).add(reference["key"])
    assert documented_secrets() == used
    assert not any(key for keys in documented_secrets().values() for key in keys if "=" in key)


@pytest.mark.parametrize("name", ["base", "gpu-pool"])
def test_pods_of_jobs_are_those_of_the_long_lived_cluster(name: str) -> None:
    """There are two copies, since Kustomize cannot share a part of an object. How many there are at the start is each job's own."""
    specs = [spec for _, _, spec in ray_clusters(world(name))]
    for spec in specs:
        spec.pop("gcsFaultToleranceOptions", None)
        for group in spec["workerGroupSpecs"]:
            del group["replicas"], group["minReplicas"]
    assert len(specs) == 4
    assert all(spec == specs[0] for spec in specs)


OPERATOR = Caller({"app.kubernetes.io/name": "kuberay-operator"}, "kuberay-system")
PROMETHEUS = Caller({"app.kubernetes.io/name": "prometheus"}, "monitoring")
STRANGER = Caller({"app.kubernetes.io/name": "shell"})
STRANGER_ELSEWHERE = Caller({"app.kubernetes.io/name": "tomoray", "app.kubernetes.io/component": "ray"}, "default")


def calls(docs: list[Doc]) -> set[tuple[str, str]]:
    """Who may call what, of callers and ports that matter."""
    there = {pod.name: pod for pod in pods(docs)}
    head = there["RayCluster tomoray: head"]
    callers = {"operator": OPERATOR, "prometheus": PROMETHEUS, "stranger": STRANGER, "elsewhere": STRANGER_ELSEWHERE, "head": Caller(head.labels)}
    owners = {"mlflow": "Deployment mlflow: pod", "postgres": "StatefulSet postgres: pod", "redis": "StatefulSet redis: pod"}
    owners |= {"job": "RayJob tomoray-train: head", "worker": "RayJob tomoray-train: group gpu", "submitter": "RayJob tomoray-train: submitter"}
    callers |= {name: Caller(there[owner].labels) for name, owner in owners.items()}
    ports = {"dashboard": (head.labels, 8265), "metrics": (head.labels, 8080), "gcs": (head.labels, 6379)}
    ports |= {name: (there[owners[name]].labels, port) for name, port in (("mlflow", 5000), ("postgres", 5432), ("redis", 6379))}
    return {(who, what) for who, caller in callers.items() for what, (labels, port) in ports.items() if may_call(docs, caller, labels, port)}


RAY_PORTS = {(who, what) for who in ("head", "job", "worker") for what in ("dashboard", "metrics", "gcs", "mlflow")}
WANTED = RAY_PORTS | {
    ("operator", "dashboard"),
    ("submitter", "dashboard"),
    ("prometheus", "metrics"),
    ("head", "redis"),
    ("mlflow", "postgres"),
}


def test_who_may_call_whom() -> None:
    """Neither dashboard nor job API is open, nor anything else: exactly this is allowed."""
    assert calls(world("gpu-pool")) == WANTED


@pytest.mark.parametrize("policy", ["nobody-by-default", "ray-to-mlflow", "jobs-to-ray-head", "ray-among-itself", "mlflow-to-postgres"])
def test_without_a_policy_others_may_call(policy: str) -> None:
    """Planted: each policy left out. Without the first, pods that no other selects would be open: here a new one."""
    docs = [doc for doc in world("gpu-pool") if doc["metadata"]["name"] != policy]
    new = {"app.kubernetes.io/component": "new"}
    assert (calls(docs) != WANTED) or may_call(docs, STRANGER, new, 80)
    assert not may_call(world("gpu-pool"), STRANGER, new, 80)


@pytest.mark.parametrize("name", ["single-gpu", "cpu-smoke"])
def test_the_store_is_for_ray_and_mlflow(name: str) -> None:
    docs = world(name)
    there = {pod.name: pod for pod in pods(docs)}
    store = there["StatefulSet store: pod"].labels
    assert may_call(docs, Caller(there["RayCluster tomoray: head"].labels), store, 7070)
    assert may_call(docs, Caller(there["Deployment mlflow: pod"].labels), store, 7070)
    assert not any(may_call(docs, caller, store, 7070) for caller in (STRANGER, STRANGER_ELSEWHERE, PROMETHEUS))
