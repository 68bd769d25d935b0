# SPDX-License-Identifier: Apache-2.0
"""What pvc forward is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.model.forward import Forward, parse_forward


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("vm0:6443", Forward(0, 6443, "6443")),
        ("8080:vm2:80", Forward(2, 8080, "80")),
        ("0:vm12:080", Forward(12, 0, "80")),
        ("2375:vm0:/run/docker.sock", Forward(0, 2375, "/run/docker.sock")),
        ("vm0:/run/docker.sock", Forward(0, 0, "/run/docker.sock")),
    ],
)
def test_forwards(text: str, wanted: Forward) -> None:
    assert parse_forward(text) == wanted


def test_hosts_behind_a_vm() -> None:
    found = parse_forward("8080:vm1:db.internal:5432")
    assert found == Forward(1, 8080, "5432", host="db.internal")
    assert str(found) == "127.0.0.1:8080 -> vm1:db.internal:5432"
    assert parse_forward("vm0:10.0.0.5:80") == Forward(0, 80, "80", host="10.0.0.5")
    six = parse_forward("1:vm0:[fd00::1]:80")
    assert (six.host, str(six)) == ("fd00::1", "127.0.0.1:1 -> vm0:[fd00::1]:80")
    for text in ("vm0:12:13", "vm0:db:/run/socket", "vm0:-db:1", "vm0:fd00::1:80"):
        with pytest.raises(ValueError, match=r"is not|has ports"):
            parse_forward(text)
    with pytest.raises(ValueError, match="not back"):
        parse_forward("80:vm0:db:80", reverse=True)


def test_the_other_way_and_datagrams() -> None:
    assert parse_forward("5000:vm1:0", reverse=True) == Forward(1, 5000, "0", reverse=True)
    assert str(parse_forward("5000:vm1:80", reverse=True)) == "vm1:80 -> 127.0.0.1:5000"
    assert str(parse_forward("53:vm1:5353", udp=True)) == "127.0.0.1:53/udp -> vm1:5353"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vm0",
        "80",
        "vm0:",
        "vm0:http",
        "70000:vm0:80",
        "vm0:70000",
        "vm0:0",
        "80:vm0:0",
        "x:vm0:1",
        "vm0:1:2",
        "vm٣:1",
    ],
)
def test_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|no port"):
        parse_forward(text)


@pytest.mark.parametrize(("text", "options"), [("vm0:/x", {"udp": True}), ("vm0:/x", {"reverse": True})])
def test_what_cannot_be(text: str, options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="vm0"):
        parse_forward(text, **options)


@given(st.text())
def test_any_text_is_a_forward_or_refused(text: str) -> None:
    try:
        found = parse_forward(text)
    except ValueError:
        return
    assert 0 <= found.local <= 65535
