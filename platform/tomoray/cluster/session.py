"""Which Ray to use: the cluster that runs this process, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

log = logging.getLogger(__name__)

LOGICAL_CPUS = 8  # Ray counts logical CPUs; with the two of a small machine its own readers would wait for its trainers for ever

WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads make torch four to nine times slower where processes share cores
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # huge pages for large tensors: a whole volume in two thirds of the time on a CPU
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean the same on workers as on the driver
}


def on_cluster() -> bool:
    """Return whether this process belongs to a cluster: inside `ray job submit`, or with RAY_ADDRESS set."""
    return bool(os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID"))


@contextmanager
def session() -> Iterator[None]:
    """Connect to Ray for the length of a `with` block: to the cluster we run in, else to a local one that ends with the block."""
    if ray.is_initialized():
        yield
        return
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    talkative = log.isEnabledFor(logging.DEBUG)  # else Ray says on our screen whatever it and its processes find worth noting
    if not talkative:
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    options = {"runtime_env": {"env_vars": WORKER_ENVIRONMENT}, "logging_level": logging.WARNING, "log_to_driver": talkative}
    if on_cluster():
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")  # join the job's environment and ours where both name a variable
        ray.init(**options)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # with the dashboard, through which Ray Train frees what a trainer held that died
        ray.init(address="local", num_cpus=max(LOGICAL_CPUS, os.cpu_count() or 1), include_dashboard=True, **options)
    try:
        yield
    finally:
        ray.shutdown()


def threads_per_worker(workers_on_node: int) -> int:
    """Return the torch threads each of several workers on this machine should use."""
    return max(1, (os.cpu_count() or 1) // max(1, workers_on_node))
