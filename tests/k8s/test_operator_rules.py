"""KubeRay would take these manifests: its own rules, beyond the definitions. Each rule with a mistake that it must find."""

from typing import Any

import pytest
from kustomize import Doc
from manifests import WORLDS, with_mistake, world
from operator_rules import cluster_rules, job_rules

CLUSTER = "/spec/rayClusterSpec"
HEAD = f"{CLUSTER}/headGroupSpec"
HEAD_ENVIRONMENT = f"{HEAD}/template/spec/containers/0/env"
SCALER_V2 = [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]
GROUP = f"{CLUSTER}/workerGroupSpecs/0"


def add(path: str, value: Any) -> Doc:
    return {"op": "add", "path": path, "value": value}


def remove(path: str) -> Doc:
    return {"op": "remove", "path": path}


@pytest.mark.parametrize("name", WORLDS)
def test_kuberay_would_take_the_jobs_and_the_clusters(name: str) -> None:
    docs = world(name)
    assert list(job_rules(docs)) == []
    assert list(cluster_rules(docs)) == []


JOB_MISTAKES = [
    ("base", [add("/metadata/name", "t" * 48)], "at most 47 letters"),
    ("base", [add("/metadata/name", "1tomoray")], "DNS-1035"),
    ("base", [add("/spec/suspend", True), remove("/spec/shutdownAfterJobFinishes")], "suspend needs"),
    ("base", [remove("/spec/shutdownAfterJobFinishes")], "ttlSecondsAfterFinished needs"),
    ("base", [add("/spec/deletionStrategy", {"deletionRules": [{}]})], "exclude each other"),
    ("base", [add("/spec/activeDeadlineSeconds", 0)], "must be positive"),
    ("base", [add("/spec/backoffLimit", -1)], "must not be negative"),
    ("base", [add("/spec/submissionMode", "K8sJob")], "is none of"),
    ("base", [add("/spec/submissionMode", "InteractiveMode")], "InteractiveMode allows no backoffLimit"),
    ("base", [add("/spec/submissionMode", "SidecarMode")], "SidecarMode allows no"),
    ("base", [add("/spec/runtimeEnvYAML", "a: [")], "runtimeEnvYAML"),
    ("base", [add("/spec/entrypoint", "tomoray index a.toml && tomoray train b.toml")], "must be one command"),
    ("base", [add("/spec/entrypoint", "tomoray index a.toml; tomoray train b.toml")], "must be one command"),
    ("base", [remove(CLUSTER)], "one of rayClusterSpec and clusterSelector"),
    ("single-gpu", [add("/spec/clusterSelector", {"ray.io/cluster": "x"})], "names no RayCluster"),
    ("single-gpu", [add("/spec/backoffLimit", 1)], "clusterSelector and backoffLimit"),
    ("single-gpu", [add("/spec/shutdownAfterJobFinishes", True)], "clusterSelector and shutdownAfterJobFinishes"),
    ("kueue", [add(f"{CLUSTER}/enableInTreeAutoscaling", True)], "Kueue needs enableInTreeAutoscaling false"),
    ("kueue", [add(f"{CLUSTER}/workerGroupSpecs/-", {})] * 7, "seven worker groups"),
    ("kueue", [remove("/spec/suspend")], "are suspended"),
    ("kueue", [remove("/spec/shutdownAfterJobFinishes")], "Kueue needs shutdownAfterJobFinishes"),
]


@pytest.mark.parametrize(("name", "operations", "told"), JOB_MISTAKES, ids=[told for _, _, told in JOB_MISTAKES])
def test_mistakes_in_jobs_are_found(name: str, operations: list[Doc], told: str) -> None:
    assert any(told in text for text in job_rules(with_mistake(name, "RayJob", operations)))


CLUSTER_MISTAKES = [
    ("base", [add(f"{GROUP}/replicas", 2)], "between minReplicas and maxReplicas"),
    ("base", [add(f"{GROUP}/minReplicas", 2)], "between minReplicas and maxReplicas"),
    ("base", [add(f"{GROUP}/suspend", True)], "feature gate"),
    ("gpu-pool", [add(f"{CLUSTER}/workerGroupSpecs/1/groupName", "gpu")], "two worker groups of one name"),
    ("base", [add(f"{GROUP}/template/spec/containers", [])], "no container"),
    ("base", [add(f"{GROUP}/labels", {"ray-subcluster": "a b"})], "is no label"),
    ("base", [add(f"{GROUP}/rayStartParams/labels", "a=b")], "not into rayStartParams"),
    ("base", [add(f"{HEAD}/resources", {"CPU": "1"})], "not both"),
    ("base", [add(f"{HEAD}/rayStartParams/object-spill-directory", "/spill")], "has no option"),
    ("base", [remove(f"{HEAD}/rayStartParams/num-cpus")], "does no work"),
    ("base", [add(HEAD_ENVIRONMENT, SCALER_V2)], "needs enableInTreeAutoscaling"),
    ("base", [add(f"{GROUP}/maxReplicas", 3)], "room to grow"),
    ("gpu-pool", [add(HEAD_ENVIRONMENT, SCALER_V2)], "autoscalerOptions.version and"),
    ("gpu-pool", [add(f"{GROUP}/template/spec/restartPolicy", "Always")], "restartPolicy Never"),
    ("base", [add(f"{CLUSTER}/authOptions/mode", "disabled")], "must be token"),
    ("base", [add(f"{CLUSTER}/rayVersion", "2.50.0")], "2.52.0 at least"),
    ("base", [add(f"{CLUSTER}/rayVersion", "2.59.0")], "not that of the image"),
    ("base", [add(f"{CLUSTER}/gcsFaultToleranceOptions", {"redisAddress": "redis:6379"})], "of no use to a job"),
    ("base", [add(HEAD_ENVIRONMENT, [{"name": "RAY_REDIS_ADDRESS", "value": "x"}])], "needs gcsFaultToleranceOptions"),
    ("base", [add(f"{HEAD}/rayStartParams/redis-password", "x")], "do not go into rayStartParams"),
]


@pytest.mark.parametrize(("name", "operations", "told"), CLUSTER_MISTAKES, ids=[told for _, _, told in CLUSTER_MISTAKES])
def test_mistakes_in_clusters_are_found(name: str, operations: list[Doc], told: str) -> None:
    assert any(told in text for text in cluster_rules(with_mistake(name, "RayJob", operations)))


def test_the_long_lived_cluster_remembers() -> None:
    """Planted: no Redis; its password in the environment; a name that no service may have."""
    head = "/spec/headGroupSpec/template/spec/containers/0/env"
    for operation, told in [
        (remove("/spec/gcsFaultToleranceOptions"), "would forget"),
        (add(head, [{"name": "REDIS_PASSWORD", "value": "x"}]), "go into gcsFaultToleranceOptions"),
        (add("/metadata/name", "Tomoray"), "at most 63 letters"),
    ]:
        assert any(told in text for text in cluster_rules(with_mistake("base", "RayCluster", [operation])))
