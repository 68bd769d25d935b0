# SPDX-License-Identifier: Apache-2.0
"""Values survive the way to JSON and back; anything else is refused."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import json
import pkgutil
import types
import typing
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pvc.model
import pvc.plan.actions
from pvc import codec
from pvc.model.cluster import NodeShare, Placement
from pvc.model.event import Event, EventKind
from pvc.model.node import Nic


def types_of(module: types.ModuleType) -> list[type]:
    """The dataclasses that a module defines."""
    found = [each for each in vars(module).values() if inspect.isclass(each) and dataclasses.is_dataclass(each)]
    return [each for each in found if each.__module__ == module.__name__]


def sendable(kind: Any) -> bool:
    """Whether values of this type are made of what JSON has, all the way down."""
    if dataclasses.is_dataclass(kind):
        return all(sendable(each) for each in typing.get_type_hints(kind).values())
    if typing.get_args(kind):
        return all(sendable(each) for each in typing.get_args(kind) if each is not Ellipsis)
    return kind not in (IPv4Network, Any)  # Any: what a file says, which stays in its process


MODULES = [importlib.import_module(f"pvc.model.{info.name}") for info in pkgutil.iter_modules(pvc.model.__path__)]
TYPES = [each for module in [*MODULES, pvc.plan.actions] for each in types_of(module) if sendable(each)]


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type, built from its annotations."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(each) for each in arguments])
    if origin is tuple and arguments[1:] == (Ellipsis,):
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(each) for each in arguments))
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=2)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{field.name: values(hints[field.name]) for field in dataclasses.fields(kind)})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: st.text(max_size=6),
        int: st.integers(-(2**40), 2**40),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
        type(None): st.none(),
    }
    return simple[kind]


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_values_come_back(kind: type, data: st.DataObject) -> None:
    value = data.draw(values(kind))
    text = codec.dumps(value)
    assert "\n" not in text
    assert codec.loads(kind, text) == value


def test_most_types_can_be_sent() -> None:
    names = {kind.__name__ for kind in TYPES}
    assert {"ClusterSpec", "ClusterRecord", "NodeGrant", "Event", "VmStatus"} <= names


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=8, deadline=None)
@given(data=json_values)
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_anything_else_is_refused_with_a_reason(kind: type, data: Any) -> None:
    try:
        value = codec.from_data(kind, data)
    except ValueError as err:
        message = str(err)
    else:
        assert isinstance(value, kind)
        return
    assert message


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=50))
def test_no_text_does_more_than_raise_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        codec.loads(Nic, text)


def test_deep_json_is_refused() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        codec.loads(Nic, "[" * 200_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown ['extra']"),
        ({"first_rank": None}, "first_rank: expected int, got NoneType"),
        ({"first_rank": True}, "first_rank: expected int, got bool"),
        ({"count": 1.0}, "count: expected int, got float"),
        ({"node": 3}, "node: expected str, got int"),
    ],
)
def test_messages_name_the_place(change: dict[str, Any], message: str) -> None:
    data = {"node": "n1", "first_rank": 0, "count": 1, **change}
    with pytest.raises(ValueError, match=r".+") as caught:
        codec.from_data(NodeShare, data)
    assert message in str(caught.value)


def test_places_within_lists() -> None:
    data = {"sizes": [], "shares": [{"node": "a", "first_rank": 0, "count": 1, "component": 0}, {"node": "b"}]}
    with pytest.raises(ValueError, match=r"shares\[1\]: missing \['count', 'first_rank'\]"):
        codec.from_data(Placement, data)


def test_missing_keys_take_their_defaults() -> None:
    event = codec.from_data(Event, {"kind": "ended", "node": "n1", "time": 3})
    assert event == Event(EventKind.ENDED, "n1", 3.0)
    assert json.loads(codec.dumps(event))["kind"] == "ended"


@dataclasses.dataclass(frozen=True)
class _Ranges:
    four: IPv4Network
    six: IPv6Network | None = None


def test_networks_travel_as_text() -> None:
    value = _Ranges(IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/64"))
    assert codec.to_data(value) == {"four": "10.0.0.0/8", "six": "fd00::/64"}
    assert codec.loads(_Ranges, codec.dumps(value)) == value
    for wrong in ('{"four": "10.0.0.1/8"}', '{"four": 10}', '{"four": "fd00::/64"}'):
        with pytest.raises(ValueError, match="four"):
            codec.loads(_Ranges, wrong)
