"""Ray Data's scheduler, kept from running hot."""

from __future__ import annotations

import time
from typing import Any

STEP_S = 0.05  # between two looks of the scheduler at its tasks: short beside reading a tomogram or taking a training step


class Pace:
    """A callback of Ray Data's execution that lets its scheduling loop turn twenty times a second and no faster.

    The loop waits for tasks that are ready. While a consumer is slower than its readers, as it should be, there is always a finished block
    that may not be passed on yet, so the loop never waits: it took a whole core beside every trainer (Ray 2.60 to 2.63).
    """

    def __init__(self) -> None:
        self.last = 0.0

    def before_execution_starts(self, executor: Any) -> None:
        """Do nothing."""

    def on_execution_step(self, executor: Any) -> None:
        """Sleep for what is left of the step."""
        time.sleep(max(0.0, self.last + STEP_S - time.perf_counter()))
        self.last = time.perf_counter()

    def after_execution_succeeds(self, executor: Any) -> None:
        """Do nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Do nothing."""
