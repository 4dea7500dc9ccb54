"""Registered models in jobs: `models:/NAME@ALIAS` or `models:/NAME/VERSION` where a checkpoint's folder may stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tomoray.config import ConfigError, Settings

PREFIX = "models:/"
KEYS = ("checkpoint", "start_from")


@dataclass(frozen=True)
class Model:
    """A model as an address names it: by the number of its version, or by an alias that moves from one to the next."""

    name: str
    alias: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


def parse_model(address: str) -> Model:
    """Return the model that an address names.

    Raises
    ------
    ConfigError
        If it names none.
    """
    match = re.fullmatch(rf"{PREFIX}([^/@]+)(?:@([^/@]+)|/(\d+))", address)
    if match is None:
        raise ConfigError(f"{address}: no registered model; it must read {PREFIX}NAME@ALIAS or {PREFIX}NAME/3: correct it, or give a folder")
    name, alias, version = match.groups(default="")
    return Model(name, alias, version)


def is_model(address: object) -> bool:
    """Return whether an address is that of a registered model."""
    return isinstance(address, str) and address.startswith(PREFIX)


def with_checkpoints(job: Any, find: Callable[[str], str]) -> Any:
    """Return a job in which every registered model is replaced by the folder that `find` returns for it, in jobs within it too."""
    changes: dict[str, Any] = {}
    for key, value in job:
        if isinstance(value, Settings):
            new = with_checkpoints(value, find)
        elif key in KEYS:
            new = tuple(_found(part, find) for part in value) if isinstance(value, tuple) else _found(value, find)
        else:
            continue
        if new != value:
            changes[key] = new
    return job.model_copy(update=changes) if changes else job


def _found(address: Any, find: Callable[[str], str]) -> Any:
    return find(address) if is_model(address) else address
