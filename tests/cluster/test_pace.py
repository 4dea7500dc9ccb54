"""Ray Data's scheduler looks at its tasks twenty times a second, and no more often."""

import inspect

import pytest
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from tomoray.cluster import pace
from tomoray.cluster.pace import STEP_S, Pace


class Clock:
    """Time that passes by sleeping, and by working as long as one says."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, list[float]()

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_it_sleeps_for_what_is_left_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: sleeping a whole step after long work, which would hold up a busy pipeline; steps counted from the first."""
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    callback = Pace()
    for work in (0.0, 0.0, 0.01, 1.0, 0.0):
        clock.now += work
        callback.on_execution_step(None)
    assert clock.slept == pytest.approx([0.0, STEP_S, STEP_S - 0.01, 0.0, STEP_S])


def test_ray_calls_it_as_it_is() -> None:
    """It has every method that Ray's own callbacks have, so that Ray's next version cannot ask for one that is missing."""
    for name, method in inspect.getmembers(ExecutionCallback, inspect.isfunction):
        if name != "__init__":
            assert list(inspect.signature(getattr(Pace, name)).parameters) == list(inspect.signature(method).parameters)
    assert hasattr(DataContext.get_current(), "custom_execution_callback_classes")
