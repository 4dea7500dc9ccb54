"""Strict JSON schemas of custom resources, made of the OpenAPI v3 schemas in their definitions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jsonschema
import yaml

KEPT = {
    *("type", "enum", "pattern", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength"),
    *("minProperties", "maxProperties", "uniqueItems", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"),
}
Validators = dict[tuple[str, str], jsonschema.Draft202012Validator]


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema that refuses what the API server would silently drop: fields that the definition does not name.

    A field with a default need not be there, since the server fills it in before it checks. Metadata is Kubernetes' own: not looked at.
    """
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    out: dict[str, Any] = {key: value for key, value in schema.items() if key in KEPT}
    properties = schema.get("properties", {})
    if properties:
        out["properties"] = {name: strict(inner) for name, inner in properties.items()}
    for key in ("items", "additionalProperties", "not"):
        if isinstance(schema.get(key), dict):
            out[key] = strict(schema[key])
    for key in ("anyOf", "allOf", "oneOf"):
        if key in schema:
            out[key] = [strict(inner) for inner in schema[key]]
    if "required" in schema:
        out["required"] = [name for name in schema["required"] if "default" not in properties.get(name, {})]
    if properties and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    return out


def validators(paths: Iterable[Path]) -> Validators:
    """Return (apiVersion, kind) -> validator of every version in some files of definitions."""
    found: Validators = {}
    for path in paths:
        spec = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
    return found


def mistakes(doc: dict[str, Any], validator: jsonschema.Draft202012Validator) -> list[str]:
    """Return what is wrong with an object, each with its place."""
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in validator.iter_errors(doc)]
