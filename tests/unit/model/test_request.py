# SPDX-License-Identifier: Apache-2.0
"""What users ask for, and the line of it that root reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.model.request import (
    MAX_CPUS,
    MAX_SIZES,
    MAX_VMS,
    DefinitionItem,
    Request,
    SetRequest,
    Size,
    decode_request,
    parse_definition,
)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
requests = st.builds(
    Request,
    st.lists(st.builds(SetRequest, names, st.integers(1, 1000)), min_size=1, max_size=10).map(tuple),
    st.one_of(st.none(), st.integers(1, MAX_CPUS)),
    gres=st.booleans(),
)


@given(requests)
def test_requests_come_back(request: Request) -> None:
    assert decode_request(request.encode()) == request


@given(
    st.one_of(
        st.text(max_size=60),
        st.text(alphabet="1;cpus=:,nat-09._\n ", max_size=40),
        st.builds("1;cpus={};{}:{}".format, st.integers(), st.text(max_size=5), st.integers()),
    )
)
def test_hostile_text_is_bounded_or_refused(text: str) -> None:
    try:
        request = decode_request(text)
    except ValueError as err:
        message = str(err)
    else:
        assert 1 <= request.count <= MAX_VMS
        assert request.cpus is None or 1 <= request.cpus <= MAX_CPUS
        assert request.encode().count("\n") == 0
        return
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1;",
        "2;nat:4",
        "1;nat:0",
        "1;nat:65536,nat:1",
        "1;nat:99999",
        "1;nat:1000000",
        "1;nat",
        "1;nat:-1",
        "1;nat:4\n",
        "1;nat:٤",
        "1;.:4",
        "1;cpus=0;nat:1",
        "1;cpus=4097;nat:1",
        "1;cpus=2;cpus=3;nat:1",
        "1;nat:1,,nat:1",
        "1;" + "n" * 64 + ":1",
        "1;" + ",".join(["nat:1"] * 200),
        "1;sizes=1:1,1:1;nat:3",
        "1;sizes=0:1,2:1;nat:2",
        "1;sizes=2:4097;nat:2",
        "1;sizes=2;nat:2",
        "1;sizes=1:1,,1:1;nat:2",
        "1;cpus=2;sizes=1:1,1:1;nat:2",
        "1;sizes=" + ",".join(["1:1"] * 65) + ";nat:65",
    ],
)
def test_refused_requests(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_request(text)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("debian", [("debian", 1)]),
        ("debian:4", [("debian", 4)]),
        ("web:2, db:1", [("web", 2), ("db", 1)]),
        ("a:1,a:2", [("a", 1), ("a", 2)]),
        (f"a:{MAX_VMS}", [("a", MAX_VMS)]),
    ],
)
def test_definitions(text: str, items: list[tuple[str, int]]) -> None:
    assert parse_definition(text) == tuple(DefinitionItem(*item) for item in items)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a definition"),
        (",", "is not a definition"),
        ("a:", "is not a number of VMs"),
        ("a:x", "is not a number of VMs"),
        ("a:²", "is not a number of VMs"),
        ("a:0", "a cluster has 1 to 65536 VMs"),
        ("a:1000000", "a cluster has 1 to 65536 VMs"),
        ("a:65536,b", "at most 65536 VMs"),
        ("a/b:1", "is not a template's name"),
        (":3", "is not a definition"),
    ],
)
def test_refused_definitions(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_definition(text)


@given(st.text(max_size=40))
def test_any_definition_is_bounded_or_refused(text: str) -> None:
    try:
        items = parse_definition(text)
    except ValueError as err:
        message = str(err)
    else:
        assert 1 <= sum(item.count for item in items) <= MAX_VMS
        return
    assert message


@given(st.lists(st.tuples(st.integers(1, 99), st.none() | st.integers(1, MAX_CPUS)), min_size=1, max_size=MAX_SIZES))
def test_sizes_come_back(sizes: list[tuple[int, int | None]]) -> None:
    count = sum(each for each, _ in sizes)
    request = Request((SetRequest("nat", count),), None, tuple(Size(each, cpus) for each, cpus in sizes))
    text = request.encode()
    assert decode_request(text) == request
    assert len(text) < 1024  # PVC_LINE_SIZE of the plug-in
