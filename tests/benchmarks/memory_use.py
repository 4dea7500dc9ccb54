"""What the processes of a local Ray hold over time, sampled beside a benchmark."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

import numpy as np
import ray

import psutil  # type: ignore[import-untyped]  # isort: skip, ray brings it

KINDS = ("driver_mb", "workers_mb", "largest_worker_mb", "ray_mb", "object_store_mb")


class MemoryWatch:
    """A line every second for the length of a `with` block: the seconds since its start, how much is done by then, and each kind of memory."""

    def __init__(self, done: Callable[[], int]) -> None:
        self.done = done
        self.samples: list[dict[str, float]] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "MemoryWatch":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()
        self.thread.join()

    def _sample(self) -> None:
        began = time.perf_counter()
        while not self.over.wait(1.0):
            self.samples.append({"seconds": time.perf_counter() - began, "done": self.done(), **memory()})

    def report(self, of: str) -> None:
        """Print for each kind of memory its peak, and its slope per thousand of what is done over the second half."""
        late = self.samples[len(self.samples) // 2 :]
        for kind in KINDS:
            peak = max((sample[kind] for sample in self.samples), default=0.0)
            slope = np.polyfit([s["done"] for s in late], [s[kind] for s in late], 1)[0] * 1000 if len(late) > 2 else float("nan")
            print(f"  {kind:18} peak {peak:8.0f}, {slope:+8.1f} per 1,000 {of} in the second half")


def memory() -> dict[str, float]:
    """Return megabytes of this process, of Ray's workers together and the largest of them, of Ray's own servers, and of the object store.

    What processes share is left out: it is the object store, and code.
    """
    workers, servers = [0.0], 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            used = process.memory_info()
            if process.name().startswith("ray::"):
                workers.append((used.rss - used.shared) / 1e6)
            else:
                servers += (used.rss - used.shared) / 1e6
        except psutil.NoSuchProcess:  # ended while we looked
            continue
    store = ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0)
    own = psutil.Process().memory_info()
    return dict(zip(KINDS, ((own.rss - own.shared) / 1e6, sum(workers), max(workers), servers, store / 1e6), strict=True))
