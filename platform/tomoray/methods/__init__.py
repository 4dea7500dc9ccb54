"""Methods: one published way to learn a picker per module, all with the same small interface."""

from __future__ import annotations

from tomoray.methods.base import Batch, Method, Metrics
from tomoray.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {"supervised": Supervised}

__all__ = ["METHODS", "Batch", "Method", "Metrics", "Supervised"]
