"""Commands are real, and fit where they are to run."""

import pytest
from demand import commands, demand_rules, job_of
from manifests import WORLDS, Pod, of_kind, pods, quantity, ray_clusters, title, with_mistake, world

GROUP = "/spec/rayClusterSpec/workerGroupSpecs"
NODES = {"single-gpu": (16, 64, 1), "cpu-smoke": (4, 12, 0)}  # cores, GiB and GPUs, as the overlays' headers promise
FOR_THE_SYSTEM = 0.1  # of a node


@pytest.mark.parametrize("name", WORLDS)
def test_every_job_is_a_command_that_its_cluster_can_hold(name: str) -> None:
    docs = world(name)
    assert [job_of(words)[0] for doc in of_kind(docs, "RayJob") for words in commands(doc["spec"]["entrypoint"])]
    assert list(demand_rules(docs)) == []


def test_the_smoke_test_is_the_whole_journey() -> None:
    (job,) = of_kind(world("cpu-smoke"), "RayJob")
    assert [job_of(words)[0] for words in commands(job["spec"]["entrypoint"])] == ["simulate", "index", "train", "pick", "score"]


@pytest.mark.parametrize(
    ("name", "called", "path", "value", "told"),
    [
        ("base", "tomoray-train", "/spec/entrypoint", "tomoray train /opt/tomoray/jobs/train_none.toml", "train_none.toml"),
        ("base", "tomoray-train", "/spec/entrypoint", "tomoray train /opt/tomoray/jobs/pick.toml", "unknown key"),
        ("base", "tomoray-train", "/spec/entrypoint", "tomoray trian", "tomoray trian"),
        ("base", "tomoray-train", "/spec/entrypoint", "tomoray train /opt/tomoray/jobs/train_vnet.toml", "the cluster has at most"),
        ("gpu-pool", "tomoray-pick", f"{GROUP}/1/maxReplicas", 3, "the cluster has at most"),
        ("kueue", "tomoray-pick", f"{GROUP}/0/template/spec/containers/0/resources/limits/cpu", "2", "the cluster has at most"),
        ("gpu-pool", "tomoray-train", "/spec/entrypoint", "tomoray train /opt/tomoray/jobs/train_supervised.toml --workers.cpus 13", "in one pod"),
        ("gpu-pool", "tomoray-pick", "/spec/entrypoint", "tomoray pick /opt/tomoray/jobs/pick.toml --gpus-per-actor 1", "actors must be given"),
        ("gpu-pool", "tomoray-tune", f"{GROUP}/1/minReplicas", 3, "minReplicas must be enough"),
    ],
)
def test_jobs_that_do_not_fit_are_found(name: str, called: str, path: str, value: object, told: str) -> None:
    docs = with_mistake(name, "RayJob", [{"op": "replace", "path": path, "value": value}], called)
    assert any(told in text for text in demand_rules(docs)), list(demand_rules(docs))


def asked_of_one_node(name: str) -> tuple[float, float, float]:
    """CPUs, GiB and GPUs that all pods of a world request together, each as often as it is there; one job at a time."""
    docs = world(name)
    groups = {(title(doc), f"group {g['groupName']}"): g["replicas"] for doc, _, spec in ray_clusters(docs) for g in spec["workerGroupSpecs"]}
    there = [pod for pod in pods(docs) if pod.role != "submitter"]
    submitter = next(pod for pod in pods(docs) if pod.role == "submitter")

    def request(pod: Pod, resource: str) -> float:
        of_one = sum(quantity(c.get("resources", {}).get("requests", {}).get(resource, 0)) for c in pod.spec["containers"])
        return of_one * groups.get((pod.owner, pod.role), 1)

    cpus, memory, gpus = (sum(request(pod, key) for pod in [*there, submitter]) for key in ("cpu", "memory", "nvidia.com/gpu"))
    return cpus, memory / 2**30, gpus


@pytest.mark.parametrize("name", NODES)
def test_it_fits_the_one_node_that_it_is_for(name: str) -> None:
    cores, gib, gpus = NODES[name]
    asked = asked_of_one_node(name)
    assert asked[0] <= (1 - FOR_THE_SYSTEM) * cores
    assert asked[1] <= (1 - FOR_THE_SYSTEM) * gib
    assert asked[2] == gpus
