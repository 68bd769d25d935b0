# SPDX-License-Identifier: Apache-2.0
"""Texts to values: what people write is understood, everything else is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc import parse

PARSERS: list[Callable[[str], Any]] = [
    parse.parse_size,
    parse.parse_bool,
    parse.parse_duration,
    parse.parse_name,
    parse.parse_mac,
    parse.parse_mac_prefix,
    parse.parse_network,
    parse.parse_cpu_list,
    parse.parse_cpus_per_node,
]


@pytest.mark.parametrize(
    ("parser", "text", "value"),
    [
        (parse.parse_size, "4096", 4096),
        (parse.parse_size, "1.5G", 3 << 29),
        (parse.parse_size, "2 MiB", 2 << 20),
        (parse.parse_size, "8kb", 8 << 10),
        (parse.parse_bool, "Yes", True),
        (parse.parse_bool, "off", False),
        (parse.parse_duration, "90", 90.0),
        (parse.parse_duration, "200ms", 0.2),
        (parse.parse_duration, "2h", 7200.0),
        (parse.parse_name, "k8s_1.2-x", "k8s_1.2-x"),
        (parse.parse_mac, "52:54:00:AB:cd:ef", "52:54:00:ab:cd:ef"),
        (parse.parse_mac_prefix, "52:54:00", "52:54:00"),
        (parse.parse_network, "10.0.0.0/8", IPv4Network("10.0.0.0/8")),
        (parse.parse_cpu_list, "0-3,8,2", (0, 1, 2, 3, 8)),
        (parse.parse_cpu_list, "", ()),
        (parse.parse_cpus_per_node, "3(x2),1", (3, 3, 1)),
    ],
)
def test_values(parser: Callable[[str], Any], text: str, value: object) -> None:
    assert parser(text) == value


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        (parse.parse_size, "-1"),
        (parse.parse_size, "4X"),
        (parse.parse_size, "٣"),
        (parse.parse_bool, "maybe"),
        (parse.parse_duration, "1w"),
        (parse.parse_name, ""),
        (parse.parse_name, "-x"),
        (parse.parse_name, "a/b"),
        (parse.parse_name, "a\n"),
        (parse.parse_name, "x" * 64),
        (parse.parse_mac, "53:54:00:00:00:00"),
        (parse.parse_mac, "52:54:00:00:00:00\n"),
        (parse.parse_mac_prefix, "52:54"),
        (parse.parse_network, "10.0.0.1/8"),
        (parse.parse_network, "fe80::/64"),
        (parse.parse_cpu_list, "3-1"),
        (parse.parse_cpu_list, "0-999999999"),
        (parse.parse_cpus_per_node, "3(x999999)"),
        (parse.parse_cpus_per_node, "3(x2"),
    ],
)
def test_refusals(parser: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parser(text)


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
@given(text=st.one_of(st.text(max_size=40), st.text(alphabet="0123456789-,:.()xkKgGms/", max_size=20)))
def test_any_text_gives_a_value_or_a_value_error(parser: Callable[[str], Any], text: str) -> None:
    try:
        parser(text)
    except ValueError as err:
        message = str(err)
    else:
        return
    assert message


@given(st.sets(st.integers(0, 4096), max_size=50))
def test_cpu_lists_round_trip(cpus: set[int]) -> None:
    assert parse.parse_cpu_list(",".join(map(str, cpus))) == tuple(sorted(cpus))


@given(st.lists(st.tuples(st.integers(1, 999), st.integers(1, 50)), min_size=1, max_size=20))
def test_cpus_per_node_round_trip(runs: list[tuple[int, int]]) -> None:
    text = ",".join(f"{cores}(x{times})" if times > 1 else str(cores) for cores, times in runs)
    assert list(parse.parse_cpus_per_node(text)) == [cores for cores, times in runs for _ in range(times)]


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True))
def test_names_are_safe_as_file_names(text: str) -> None:
    name = parse.parse_name(text)
    assert name == text
    assert name not in {".", ".."}
