"""What the commands in manifests ask of a Ray cluster, and what the cluster has when all its pods are there."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from kustomize import Doc
from manifests import ROOT, of_kind, quantity, title

from tomoray import cli
from tomoray.config import Settings, read_settings
from tomoray.jobs import JOBS
from tomoray.methods import METHODS

IN_IMAGE = "/opt/tomoray/"


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs as Ray counts them."""

    cpus: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus)

    def __mul__(self, times: float) -> Resources:
        return Resources(self.cpus * times, self.gpus * times)

    def fits(self, other: Resources) -> bool:
        """Return whether `other` has as much."""
        return self.cpus <= other.cpus and self.gpus <= other.gpus


def commands(entrypoint: str) -> list[list[str]]:
    """Return the words of every tomoray command in an entrypoint: itself, or those of the script that it runs."""
    words = shlex.split(entrypoint)
    if words[0] != "bash":
        return [words]
    text = (ROOT / words[1].removeprefix(IN_IMAGE)).read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("tomoray ")]


@cache
def parser() -> ArgumentParser:
    """Return that of the command line, which takes a while to make."""
    return cli.build_parser()


def job_of(words: list[str]) -> tuple[str, Settings]:
    """Return verb and job of a command, read as the command line reads it; files of the image are those of this repository."""
    program, *arguments = [re.sub(rf"^{IN_IMAGE}", f"{ROOT}/", word) for word in words]
    assert program == "tomoray"
    options = parser().parse_args([str(ROOT / a) if a.startswith("jobs/") else a for a in arguments])
    return options.verb, read_settings(JOBS[options.verb], cli._job_file(options), cli._overrides(options))


def needs(verb: str, job: Any) -> tuple[Resources, Resources]:
    """Return what a job needs in all, and the most that must be in one pod."""
    if verb == "train":
        worker = Resources(job.workers.cpus, float(job.workers.gpu))
        readers = Resources(job.crops.readers * len(METHODS[job.method.name].streams))
        return worker * job.workers.count + readers, worker
    if verb == "pick":
        actor = Resources(1.0, job.gpus_per_actor)
        return actor * job.actors + Resources(job.readers), actor
    if verb == "tune":
        whole, worker = needs("train", job.train)
        return (whole + Resources(0.1)) * job.parallel, worker
    return Resources(), Resources()


def pod_of(group: Doc) -> Resources:
    """Return what one pod of a worker group brings."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return Resources(float(group["rayStartParams"].get("num-cpus", quantity(limits["cpu"]))), quantity(limits.get("nvidia.com/gpu", 0)))


def offer(spec: Doc, replicas: str) -> Resources:
    """Return what a Ray cluster has with as many pods as one of its fields says."""
    return sum((pod_of(group) * group[replicas] for group in spec["workerGroupSpecs"]), Resources())


def demand_rules(docs: list[Doc]) -> Iterator[str]:
    """Yield commands that are none, and jobs whose cluster cannot hold them."""
    clusters = {doc["metadata"]["name"]: doc["spec"] for doc in of_kind(docs, "RayCluster")}
    for doc in of_kind(docs, "RayJob"):
        spec = doc["spec"].get("rayClusterSpec") or clusters[doc["spec"]["clusterSelector"]["ray.io/cluster"]]
        for words in commands(doc["spec"]["entrypoint"]):
            try:
                verb, job = job_of(words)
            except (SystemExit, ValueError, OSError) as error:
                yield f"{title(doc)}: {' '.join(words[:2])}: {error}"
                continue
            yield from (f"{title(doc)}: {verb}: {text}" for text in _misfits(verb, job, spec))


def _misfits(verb: str, job: Any, spec: Doc) -> Iterator[str]:
    whole, part = needs(verb, job)
    has = offer(spec, "maxReplicas")
    if not whole.fits(has):
        yield f"needs {whole}, and the cluster has at most {has}"
    if not any(part.fits(pod_of(group)) for group in spec["workerGroupSpecs"]):
        yield f"needs {part} in one pod, which no group has"
    if verb == "pick" and not job.actors:
        yield "actors must be given: what a cluster has is counted before it has grown"
    if verb == "tune" and not whole.fits(offer(spec, "minReplicas")):
        yield "trials at a time are counted when it starts: minReplicas must be enough for all"
