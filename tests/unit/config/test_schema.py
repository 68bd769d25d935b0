# SPDX-License-Identifier: Apache-2.0
"""The quick check and jsonschema agree on every schema that pvc has."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pvc.cli.mandoc import FILES
from pvc.config.schema import ANNOTATIONS, KEYWORDS, find_faults, is_valid, show

SCHEMAS = [table.schema for tables in FILES.values() for _, table in tables]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 70000),
    st.sampled_from([0, 1, 22, 1500, 65535, 65536, 2.0, 2.5, 1500.0, -0.0, float("inf"), float("nan"), 1e300]),
    st.text(max_size=8),
    st.sampled_from(["L3", "auto", "eth", "nat", "10.0.0.0/8", "yes", "a.b", "a.b\n", "slurm", "host", "1.2.3.4", ""]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


def valid_values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values near what a schema wants: mostly right, each part sometimes wrong."""
    if "enum" in schema:
        right: st.SearchStrategy[Any] = st.sampled_from(schema["enum"])
    else:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        right = st.one_of([_by_type(kind, schema) for kind in kinds])
    return st.one_of(right, right, right, values)


def _by_type(kind: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if kind == "string":
        return st.from_regex(schema["pattern"]) if "pattern" in schema else st.text(max_size=10)
    if kind == "integer":
        return st.integers(schema["minimum"] - 1, schema["maximum"] + 1)
    if kind == "boolean":
        return st.booleans()
    if kind == "null":
        return st.none()
    if kind == "array":
        return st.lists(valid_values(schema["items"]), max_size=3)
    properties = {key: valid_values(value) for key, value in schema.get("properties", {}).items()}
    required = {key: properties.pop(key) for key in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=properties)


def _schemas_within(schema: dict[str, Any]) -> list[dict[str, Any]]:
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return [schema, *(each for part in inner for each in _schemas_within(part))]


def test_schemas_use_the_keywords_that_the_quick_check_knows() -> None:
    for schema in SCHEMAS:
        for each in _schemas_within(schema):
            assert each.keys() <= KEYWORDS | ANNOTATIONS
            assert each["description"]
            Draft202012Validator.check_schema(each)


@settings(max_examples=30, deadline=None)
@given(st.data())
@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_both_checks_agree(schema: dict[str, Any], data: st.DataObject) -> None:
    value = data.draw(st.one_of(valid_values(schema), values))
    assert is_valid(schema, value) == Draft202012Validator(schema).is_valid(value)


@settings(max_examples=15, deadline=None)
@given(st.data())
@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_what_does_not_fit_has_a_fault(schema: dict[str, Any], data: st.DataObject) -> None:
    value = data.draw(valid_values(schema))
    faults = find_faults(schema, value)
    assert bool(faults) != is_valid(schema, value)
    assert all(fault.text and "\n" not in fault.text for fault in faults)


def test_an_unknown_key_names_the_nearest() -> None:
    schema = FILES["networks"][1][1].schema
    faults = find_faults(schema, {"dev-prefix": "a", "mtuu": 3, "quite-other": 1})
    texts = {fault.path[-1]: fault.text for fault in faults}
    assert texts["mtuu"] == "unknown key; did you mean 'mtu'?"
    assert texts["quite-other"].startswith("unknown key; known here: dev-prefix, ")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "yes"),
        (None, "nothing"),
        ([], "an empty list"),
        ([1], "a list"),
        ({}, "a mapping"),
        (3, "3"),
        ("a", "'a'"),
    ],
)
def test_values_are_shown_as_they_were_written(value: object, shown: str) -> None:
    assert show(value) == shown


def test_a_long_value_is_cut() -> None:
    assert len(show("x" * 1000)) < 70
