# SPDX-License-Identifier: Apache-2.0
"""Words of a command line as commands of QEMU's monitor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import GuestError, HostError, UsageError
from pvc.model.cluster import NodeEndpoint
from pvc.ops.jobdir import JobDir
from pvc.ops.monitor import dump_memory, is_complaint, parse_command, save_screenshot
from tests.unit.ops.test_control import Answer, Server, control_of, keys, serve

__all__ = ["keys", "serve"]  # fixtures


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (["info block"], {"hmp": "info block"}),
        (["info", "block"], {"hmp": "info block"}),
        (["info", "block", "-v"], {"hmp": "info block -v"}),
        (["change", "cd0", '/home/a b/x\\y"z'], {"hmp": 'change cd0 "/home/a b/x\\\\y\\"z"'}),
        (["sendkey", ""], {"hmp": 'sendkey ""'}),
        (["a", "b\nquit"], {"hmp": 'a "b\\nquit"'}),
        (['{"execute": "query-status"}'], {"qmp": {"execute": "query-status"}}),
        ([' {"execute":"x","arguments":{"a":"\'"}}'], {"qmp": {"execute": "x", "arguments": {"a": "'"}}}),
    ],
)
def test_commands(words: list[str], request_: dict[str, object]) -> None:
    assert parse_command(words) == request_


@pytest.mark.parametrize("word", ["{", "{execute: x}", '{"a":' * 5000])
def test_not_json(word: str) -> None:
    with pytest.raises(UsageError, match="not JSON"):
        parse_command([word])


@given(st.text(min_size=1))
def test_a_word_stays_one_word(word: str) -> None:
    """As get_str() of QEMU's monitor/hmp.c reads it back."""
    line = parse_command(["x", word])["hmp"].removeprefix("x ")
    if line.startswith('"'):
        found, rest = "", line[1:]
        while not rest.startswith('"'):
            if rest[0] == "\\":
                found += {"n": "\n", "r": "\r", "\\": "\\", '"': '"'}[rest[1]]
                rest = rest[2:]
            else:
                found, rest = found + rest[0], rest[1:]
        assert rest == '"'
        line = found
    else:
        assert not any(char.isspace() for char in line)
    assert line == word


def test_complaints_of_the_human_monitor() -> None:
    assert is_complaint("unknown command: 'x'\r\n")
    assert is_complaint("Error: Device 'x' not found\r\n")
    assert not is_complaint("VM status: running")
    assert not is_complaint("")


def dump(keys: JobDir, port: int, seen: list[tuple[int, int]]) -> int:
    endpoint = NodeEndpoint("n1", "127.0.0.1", port)
    return dump_memory(control_of(keys, port), endpoint, {"vm": 0}, lambda done, total: seen.append((done, total)))


@pytest.mark.allow_run
@pytest.mark.allow_sockets
def test_a_dump_tells_its_progress(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    lines = [{"done": 1, "total": 9}, {"done": 9, "total": 9}, {"ok": True, "size": 4711}]
    server = serve(lambda _request: b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    seen: list[tuple[int, int]] = []
    assert dump(keys, server.port, seen) == 4711
    assert seen == [(1, 9), (9, 9)]


@pytest.mark.allow_run
@pytest.mark.allow_sockets
def test_a_dump_that_fails(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    lines = [{"done": 1, "total": 9}, {"ok": False, "error": "no room", "exit_code": 7}]
    server = serve(lambda _request: b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    with pytest.raises(GuestError, match="n1: no room"):
        dump(keys, server.port, [])
    for nonsense in (b"", b'{"done": 1}\n', b"[]\n", b"x\n", b'{"ok": true}\n', b'{"done": 1, "total": 2}\n'):
        with pytest.raises(HostError):
            dump(keys, serve(lambda _request, text=nonsense: text).port, [])  # type: ignore[misc]


@pytest.mark.allow_run
@pytest.mark.allow_sockets
def test_a_screenshot_is_a_picture_or_nothing(keys: JobDir, serve: Callable[[Answer], Server], tmp_path: Path) -> None:
    def save(content: bytes, path: Path) -> None:
        server = serve(lambda _request: json.dumps({"ok": True, "size": len(content)}).encode() + b"\n" + content)
        endpoint = NodeEndpoint("n1", "127.0.0.1", server.port)
        save_screenshot(control_of(keys, server.port), endpoint, 0, path)

    picture = b"\x89PNG\r\n\x1a\n" + bytes(100_000)
    save(picture, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == picture
    with pytest.raises(HostError, match="sent no picture"):
        save(b"P6 640 480", tmp_path / "b.png")
    with pytest.raises(UsageError, match="cannot write"):
        save(picture, tmp_path / "no" / "c.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
