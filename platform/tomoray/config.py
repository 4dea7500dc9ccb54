"""Job files: TOML, checked by pydantic models that refuse what they do not know."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from tomoray.credentials import has_credentials, redacted


class ConfigError(ValueError):
    """A job file or an option is wrong. The message says which, what it must be and what to do."""


class Settings(BaseModel):
    """A table of a job file: unknown keys are refused, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


Model = TypeVar("Model", bound=Settings)


def read_settings(model: type[Model], path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Model:
    """Return the settings of a job file (or the defaults) with dotted `overrides` applied.

    Raises
    ------
    ConfigError
        If the file is missing or no TOML, or a key or a value is wrong; all that is wrong is listed at once.
    """
    if path is None:
        return read_settings_text(model, "", "settings", overrides)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such job file; see the folder jobs/ for examples") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a TOML file ({error}); correct it there") from None
    return read_settings_text(model, text, str(path), overrides)


def read_settings_text(model: type[Model], text: str, where: str, overrides: Mapping[str, Any] | None = None) -> Model:
    """Return the settings that a TOML text spells; `where` names it in messages. Raises as `read_settings`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not a TOML file ({error}); correct it there") from None
    for dotted, value in (overrides or {}).items():
        _put(table, dotted, value)
    _refuse_credentials(table, where)
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise ConfigError(explain(error, model, where)) from None


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Return `{"a.b": value}` of `a.b=value` words; a value is TOML where it can be read as such, else text.

    Raises
    ------
    ConfigError
        If a word has no `=`.
    """
    parsed: dict[str, Any] = {}
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {word!r}: it must read key=value, with dots for tables, as in optimizer.learning_rate=0.001")
        parsed[key.strip()] = parse_value(text.strip())
    return parsed


def parse_value(text: str) -> Any:
    """Return the TOML value that `text` spells, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def dump_settings(settings: Settings) -> str:
    """Return the settings as TOML text that `read_settings` reads back to the same settings."""
    lines: list[str] = []
    _write_table(settings.model_dump(mode="json", exclude_none=True), "", lines)
    return "\n".join(lines).strip() + "\n"


def _refuse_credentials(table: Mapping[str, Any], where: str) -> None:
    """Stop at an address that holds a password or a token: jobs are saved, sent, logged and shown."""
    for key, value in flatten(table).items():
        if has_credentials(str(value)):
            raise ConfigError(
                f"{where}: {key} = {redacted(str(value))!r} holds credentials; job files are saved and shown, so these must come from the "
                "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD, ...): take them out of the address"
            )


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested table as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return flat


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """Return one message that lists every fault pydantic found, with near names for unknown keys."""
    lines = []
    for fault in error.errors():
        path, known = _walk(model, [str(part) for part in fault["loc"]])
        key = ".".join(path)
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(path[-1], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"
            lines.append(f"unknown key {key!r}; {hint}")
        else:
            lines.append(f"{key or 'job'} = {redacted(json.dumps(fault.get('input'), default=str))}: {fault['msg']}")
    return f"{where}: " + "; ".join(lines)


def _walk(model: type[BaseModel], location: list[str]) -> tuple[list[str], list[str]]:
    """Return a fault's place as it stands in the file, and the keys that are known where it is.

    Where a table may be one of several (as `method`), pydantic puts the one it took into the location; the file does not.
    """
    tables, path = [model], list[str]()
    for part in location:
        chosen = [table for table in tables if (name := table.model_fields.get("name")) and name.default == part]
        if len(tables) > 1 and chosen:
            tables = chosen
            continue
        path.append(part)
        fields = [table.model_fields[part] for table in tables if part in table.model_fields]
        if fields:
            tables = [t for t in _types(fields[0].annotation) if isinstance(t, type) and issubclass(t, BaseModel)] or tables
    return path, [key for table in tables for key in table.model_fields]


def _types(annotation: Any) -> list[Any]:
    return [annotation] + [inner for part in get_args(annotation) for inner in _types(part)]


def _put(table: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{dotted}: {parent!r} is a value, not a table; give the key as it stands in the job file")
    table[last] = value


def _write_table(table: Mapping[str, Any], prefix: str, lines: list[str]) -> None:
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    tables = {key: value for key, value in table.items() if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value)}
    lines += [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in table.items() if key not in inner and key not in tables]
    for key, value in inner.items():
        lines += ["", f"[{prefix}{_toml_key(key)}]"]
        _write_table(value, f"{prefix}{_toml_key(key)}.", lines)
    for key, rows in tables.items():
        for row in rows:
            lines += ["", f"[[{prefix}{_toml_key(key)}]]"]
            _write_table(row, f"{prefix}{_toml_key(key)}.", lines)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)  # names of particles may hold dots and spaces


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans are spelt alike in JSON and TOML
