"""What KubeRay (and Kueue) refuse or silently ignore although the definitions allow it, and what we ask of a Ray cluster beside."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import yaml
from kustomize import Doc
from manifests import ROOT, of_kind, ray_clusters, title

DNS_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
LABEL_VALUE = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
MODES = {"K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"}
KUEUE = "kueue.x-k8s.io/queue-name"
WITH_OWN_CLUSTER = ("backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "preRunningDeadlineSeconds", "suspend", "rayClusterSpec")


def job_rules(docs: list[Doc]) -> Iterator[str]:
    """Yield what is wrong with RayJobs."""
    clusters = {doc["metadata"]["name"] for doc in of_kind(docs, "RayCluster")}
    for doc in of_kind(docs, "RayJob"):
        found = [*_name(doc, 47), *_lifetime(doc["spec"]), *_submission(doc["spec"]), *_where(doc["spec"], clusters), *_kueue(doc)]
        yield from (f"{title(doc)}: {text}" for text in found)


def cluster_rules(docs: list[Doc]) -> Iterator[str]:
    """Yield what is wrong with Ray clusters, be they jobs' or long-lived."""
    for doc, _, spec in ray_clusters(docs):
        found = [*_groups(spec), *_start_parameters(spec), *_scaling(spec), *_access(spec), *_memory_of_head(doc["kind"], spec)]
        if doc["kind"] == "RayCluster":
            found += _name(doc, 63)
        yield from (f"{title(doc)}: {text}" for text in found)


def _name(doc: Doc, longest: int) -> list[str]:
    name = doc["metadata"]["name"]
    return [] if len(name) <= longest and re.fullmatch(DNS_1035, name) else [f"its name must be a DNS-1035 label of at most {longest} letters"]


def _lifetime(spec: Doc) -> Iterator[str]:
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if shuts_down and spec.get("deletionStrategy", {}).get("deletionRules"):
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds must be positive"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit must not be negative"


def _submission(spec: Doc) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield f"submissionMode {mode} is none of {', '.join(sorted(MODES))}"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode allows no backoffLimit"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec):
        yield "SidecarMode allows no submitter of ours and no clusterSelector"
    try:
        environment = yaml.safe_load(spec.get("runtimeEnvYAML", "{}"))
    except yaml.YAMLError:
        environment = None
    if not isinstance(environment, dict):
        yield "runtimeEnvYAML must be a table in YAML"
    words = shlex.shlex(spec.get("entrypoint", ""), punctuation_chars=True)
    words.whitespace_split = True
    if any(set(word) <= set(";&|()<>") for word in words):
        yield "the entrypoint must be one command: the submitter's shell would run what follows itself"


def _where(spec: Doc, clusters: set[str]) -> Iterator[str]:
    selector = spec.get("clusterSelector")
    if selector is None:
        if "rayClusterSpec" not in spec:
            yield "one of rayClusterSpec and clusterSelector must be there"
        return
    if selector.get("ray.io/cluster") not in clusters:
        yield f"clusterSelector {selector} names no RayCluster"
    yield from (f"clusterSelector and {key} exclude each other" for key in WITH_OWN_CLUSTER if spec.get(key))


def _kueue(doc: Doc) -> Iterator[str]:
    spec = doc["spec"]
    if KUEUE not in doc["metadata"].get("labels", {}):
        return
    if spec.get("clusterSelector"):
        yield "Kueue admits no job in another's cluster"
        return
    if spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
        yield "Kueue needs enableInTreeAutoscaling false"
    if len(spec["rayClusterSpec"]["workerGroupSpecs"]) > 7:
        yield "Kueue allows seven worker groups"
    if not spec.get("suspend"):
        yield "Kueue starts jobs that are suspended"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "Kueue needs shutdownAfterJobFinishes"


def _parts(spec: Doc) -> list[tuple[str, Doc]]:
    return [("head", spec["headGroupSpec"]), *((group["groupName"], group) for group in spec["workerGroupSpecs"])]


def _groups(spec: Doc) -> Iterator[str]:
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    if len(set(names)) < len(names):
        yield "two worker groups of one name"
    for group in spec["workerGroupSpecs"]:
        if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0):
            yield f"{group['groupName']}: replicas must lie between minReplicas and maxReplicas"
        if group.get("suspend"):
            yield f"{group['groupName']}: suspend needs a feature gate"
    for name, part in _parts(spec):
        if not part["template"]["spec"].get("containers"):
            yield f"{name}: no container"
        for key, value in part.get("labels", {}).items():
            if not re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9][-A-Za-z0-9_.]*", key) or not re.fullmatch(LABEL_VALUE, value):
                yield f"{name}: {key}: {value} is no label"


def _start_parameters(spec: Doc) -> Iterator[str]:
    for name, part in _parts(spec):
        given = part.get("rayStartParams", {})
        if "labels" in given:
            yield f"{name}: labels go into the group's labels, not into rayStartParams"
        if part.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(given):
            yield f"{name}: resources go into rayStartParams or resources, not both"
        yield from (f"{name}: `ray start` has no option --{key}" for key in sorted(set(given) - ray_start_options() - {"labels"}))
    if spec["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        yield 'head: num-cpus must be "0", so that it does no work'


@cache
def ray_start_options() -> frozenset[str]:
    """Return the options that `ray start` knows."""
    from ray.scripts.scripts import start

    return frozenset(option.removeprefix("--") for parameter in start.params for option in parameter.opts)


def _environment(part: Doc) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in part["template"]["spec"]["containers"][0].get("env", [])}


def _scaling(spec: Doc) -> Iterator[str]:
    environment = _environment(spec["headGroupSpec"])
    if not spec.get("enableInTreeAutoscaling"):
        if environment.get("RAY_enable_autoscaler_v2") in ("1", "true"):
            yield "RAY_enable_autoscaler_v2 needs enableInTreeAutoscaling"
        if any(group["minReplicas"] < group["maxReplicas"] for group in spec["workerGroupSpecs"]):
            yield "groups have room to grow, and enableInTreeAutoscaling is not set"
        return
    version = spec.get("autoscalerOptions", {}).get("version")
    if version and "RAY_enable_autoscaler_v2" in environment:
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 exclude each other"
    if version == "v2":
        for name, part in _parts(spec):
            if part["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield f"{name}: the autoscaler v2 needs restartPolicy Never, or none"


def _access(spec: Doc) -> Iterator[str]:
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token: without it whoever reaches the dashboard runs what he likes"
    if tuple(int(part) for part in spec.get("rayVersion", "0").split(".")) < (2, 52, 0):
        yield "tokens need rayVersion 2.52.0 at least"
    if f"ray=={spec.get('rayVersion')}" not in (ROOT / ".ci" / "constraints.txt").read_text().splitlines():
        yield f"rayVersion {spec.get('rayVersion')} is not that of the image"


def _memory_of_head(kind: str, spec: Doc) -> Iterator[str]:
    """GCS fault tolerance: for long-lived clusters, and told in one place."""
    redis, environment = spec.get("gcsFaultToleranceOptions"), _environment(spec["headGroupSpec"])
    if kind == "RayJob" and redis:
        yield "gcsFaultToleranceOptions are of no use to a job, whose lost head is a new cluster"
    if kind == "RayCluster" and not redis:
        yield "gcsFaultToleranceOptions must be there: a restarted head would forget its jobs"
    if not redis and "RAY_REDIS_ADDRESS" in environment:
        yield "RAY_REDIS_ADDRESS needs gcsFaultToleranceOptions"
    if redis and {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"} & set(environment):
        yield "address, name and password of Redis go into gcsFaultToleranceOptions"
    if {"redis-password", "redis-username"} & set(spec["headGroupSpec"].get("rayStartParams", {})):
        yield "name and password of Redis do not go into rayStartParams"
