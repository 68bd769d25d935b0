# SPDX-License-Identifier: Apache-2.0
"""The structure of configuration: JSON schemas, and what is told when a value does not fit one.

Every schema carries its own ``description`` ("an integer from 1 to 10"), from which error texts are made.
jsonschema is asked when something is wrong; ``is_valid`` answers the usual case, that nothing is, without
its import (some 100 ms). Both agree on the keywords in ``KEYWORDS``, which is a property test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pvc.config.yamlmarks import KeyPath

Schema = Mapping[str, Any]
ANNOTATIONS = frozenset({"description", "foreign", "idle"})
KEYWORDS = frozenset(
    {
        "type",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "items",
        "minItems",
        "properties",
        "required",
        "additionalProperties",
    }
)
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}
_SHOWN = 60


@dataclass(frozen=True)
class Fault:
    """A value that does not fit: where, and why. ``fatal`` is whether the value at ``path`` is unusable."""

    path: KeyPath
    text: str
    fatal: bool = True


def find_faults(schema: Schema, value: Any) -> list[Fault]:
    """All that is wrong with the structure of ``value``."""
    if is_valid(schema, value):
        return []
    from jsonschema import Draft202012Validator

    faults: dict[tuple[KeyPath, str], Fault] = {}
    for error in Draft202012Validator(schema).iter_errors(value):
        for fault in _explain(error):
            faults[fault.path, fault.text] = fault
    return list(faults.values())


def is_valid(schema: Schema, value: Any) -> bool:
    """Whether ``value`` fits ``schema``, which uses no other keywords than KEYWORDS."""
    if "type" in schema and not _has_type(schema["type"], value):
        return False
    if "enum" in schema and not any(type(value) is type(each) and value == each for each in schema["enum"]):
        return False
    if isinstance(value, str):
        return "pattern" not in schema or re.search(schema["pattern"], value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        too_low = "minimum" in schema and value < schema["minimum"]
        return not too_low and not ("maximum" in schema and value > schema["maximum"])
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            return False
        return "items" not in schema or all(is_valid(schema["items"], item) for item in value)
    if isinstance(value, dict):
        return _is_valid_object(schema, value)
    return True


def strip(schema: Schema, value: Any, path: KeyPath, tell: Callable[[KeyPath, str], None]) -> Any:
    """``value`` without what says nothing: keys of ``schema`` that have no value, and those that are idle.

    A key without a value is one that is not set. ``tell`` gets the places of idle keys that have one, and the reason.
    """
    if isinstance(value, list) and "items" in schema:
        return [strip(schema["items"], item, (*path, index), tell) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    properties: Mapping[str, Schema] = schema.get("properties", {})
    others, idle = schema.get("additionalProperties"), schema.get("idle", {})
    found: dict[str, Any] = {}
    for key, item in value.items():
        known = properties.get(key, others if isinstance(others, Mapping) else None)
        if key in idle:
            if item is not None:
                tell((*path, key), f"has no effect: {idle[key]}")
        elif known is None:
            found[key] = item
        elif item is not None or key not in properties or "null" in known.get("type", ()):
            found[key] = strip(known, item, (*path, key), tell)
    return found


def show(value: Any) -> str:
    """A value as it is quoted in an error text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _has_type(wanted: str | list[str], value: Any) -> bool:
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if name == "integer":
            # JSON knows one kind of number: 2.0 is an integer (JSON Schema core, 4.2.3).
            fits = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            if fits and not isinstance(value, bool):
                return True
        elif name == "number":
            if isinstance(value, int | float) and not isinstance(value, bool):
                return True
        elif isinstance(value, _TYPES[name]):
            return True
    return False


def _is_valid_object(schema: Schema, value: dict[str, Any]) -> bool:
    properties: Mapping[str, Schema] = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    if any(key not in value for key in schema.get("required", ())):
        return False
    for key, item in value.items():
        if key in properties:
            if not is_valid(properties[key], item):
                return False
        elif others is False or (others is not True and not is_valid(others, item)):
            return False
    return True


def _explain(error: Any) -> Iterator[Fault]:
    """Faults of one error of jsonschema."""
    path: KeyPath = tuple(error.absolute_path)
    schema, value = error.schema, error.instance
    if error.validator == "additionalProperties":
        known = list(schema["properties"])
        for key in value:
            if key not in known:
                yield Fault((*path, key), _unknown(key, known, schema.get("foreign", {})))
    elif error.validator == "required":
        for key in schema["required"]:
            if key not in value:
                expected = schema["properties"][key]["description"]
                yield Fault((*path, key), f"is missing: {expected}")
    else:
        yield Fault(path, f"{show(value)} is not {schema['description']}")


def _unknown(key: str, known: list[str], foreign: Mapping[str, str]) -> str:
    if key in foreign:
        return f"is not supported: {foreign[key]}"
    from difflib import get_close_matches

    near = get_close_matches(key, known, n=1)
    if near:
        return f"unknown key; did you mean {near[0]!r}?"
    return f"unknown key; known here: {', '.join(known)}"
