"""Spaces: which keys of a job a sweep may change, and between which values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from tomoray.config import ConfigError, Settings, read_settings, read_settings_text

Value = bool | int | float | str

TRIALS = {"train": "trains a picker", "pick": "picks with one", "threshold": "chooses thresholds"}  # verb of a trial's job -> what it does


class ParameterSettings(Settings):
    """The values that one key of the job may take: a range, or one of some choices."""

    low: int | float | None = Field(None, description="least value of a range; whole numbers at both ends make a range of whole numbers")
    high: int | float | None = Field(None, description="greatest value, which may be taken too")
    log: bool = Field(False, description="as likely between 1 and 10 as between 10 and 100")
    step: int | float | None = Field(None, description="distance of the values that may be taken; any by default")
    choices: tuple[Value, ...] = Field((), description="values to choose from, instead of a range")

    @model_validator(mode="after")
    def _one_or_the_other(self) -> ParameterSettings:
        if self.choices:
            if self.low is not None or self.high is not None or self.log or self.step is not None:
                raise ValueError("choices and a range are given; it must be one of them: remove the other")
            if len(set(self.choices)) < max(2, len(self.choices)):
                raise ValueError(f"choices are {list(self.choices)}; there must be two or more, all different: add one, or remove the key")
            return self
        if self.low is None or self.high is None:
            raise ValueError("neither choices nor both of low and high are given; give choices = [...], or low = ... and high = ...")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low must be less: exchange them")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"log, with low {self.low} and step {self.step}; low must be above 0 and no step be given: correct it, or leave out log")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step is {self.step}; it must be above 0 and at most high - low: correct it")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the range is one of whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    @property
    def ends(self) -> tuple[Value, ...]:
        """The values that stand for all when a job is checked: the ends of a range, or every choice."""
        if self.choices:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high

    def grid(self) -> tuple[Value, ...]:
        """Return all values; none for a range without steps."""
        if self.choices:
            return self.choices
        low, high = self.ends
        step = self.step or (1 if self.is_whole and not self.log else 0)
        if not step:
            return ()
        count = math.floor((float(high) - float(low)) / step + 1e-9) + 1
        return tuple(low + k * step for k in range(count))  # type: ignore[operator]

    def __str__(self) -> str:
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        return f"{self.low} to {self.high}" + (" (log)" if self.log else "") + (f" in steps of {self.step}" if self.step else "")


class SpaceSettings(Settings):
    """What a file of `tune_spaces/` says."""

    base: str = Field(description="job file that the keys are of; its verb (train, pick or threshold) says what a trial does")
    space: dict[str, ParameterSettings] = Field(min_length=1, description="keys of that job, dotted, and the values they may take")

    @field_validator("base")
    @classmethod
    def _of_a_trial(cls, base: str) -> str:
        if _verb_of(base) not in TRIALS:
            files = ", ".join(f"{verb}_*.toml" for verb in TRIALS)
            raise ValueError(f"its verb is {_verb_of(base)!r}; it must be a job that a trial can be, {files}: name such a file")
        return base

    @field_validator("space", mode="before")
    @classmethod
    def _dotted(cls, space: Any) -> Any:
        """TOML makes tables of bare dotted keys."""
        return dict(_parameters(space)) if isinstance(space, dict) else space

    @property
    def verb(self) -> str:
        """What a trial does: train, pick or threshold."""
        return _verb_of(self.base)


def read_space(space: str | Mapping[str, Any]) -> SpaceSettings:
    """Return the space of a file, or of a table that says the same.

    Raises
    ------
    ConfigError
        If there is no such file, or a key or a value in it is wrong.
    """
    if not isinstance(space, str):
        return read_settings_text(SpaceSettings, "", "space", dict(space))
    if not Path(space).is_file():
        raise ConfigError(f"{space}: there is no such space; see the folder tune_spaces/ for examples, or give a table with base and space")
    return read_settings(SpaceSettings, space)


def _verb_of(file: str) -> str:
    return Path(file).name.partition(".")[0].partition("_")[0]


def _parameters(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and table of each parameter; a table of tables is a part of a key."""
    for key, value in table.items():
        if isinstance(value, dict) and value and all(isinstance(inner, dict) for inner in value.values()):
            yield from _parameters(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
