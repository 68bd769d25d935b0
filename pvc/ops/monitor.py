# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor of one VM, and its memory in a file, asked of the VM's supervisor."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pvc import codec, files
from pvc.errors import GuestError, HostError, UsageError
from pvc.model.cluster import NodeEndpoint
from pvc.ops.control import Control, raise_refusal
from pvc.ops.status import read_status

_COMMAND_S = 620.0
_SILENCE_S = 60.0
_MAX_LINE = 1 << 16
# monitor/hmp.c, get_str(): what may follow a backslash within quotes.
_ESCAPED = {"\n": "\\n", "\r": "\\r", "\\": "\\\\", '"': '\\"'}
_PNG = b"\x89PNG\r\n\x1a\n"
_COMPLAINTS = ("Error:", "unknown command:")


def parse_command(words: Sequence[str]) -> dict[str, Any]:
    """The request for a command line: one word beginning with "{" is QMP, anything else is for the human monitor.

    One word is the monitor's whole line, quotes included; of several, each reaches QEMU as one argument.

    :raise UsageError: it looks like JSON and is none.
    """
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            return {"qmp": json.loads(words[0])}
        except (ValueError, RecursionError) as err:
            raise UsageError(f"this is not JSON: {err}") from None
    if len(words) == 1:
        return {"hmp": words[0].strip()}
    return {"hmp": " ".join(_quote(word) for word in words)}


def _quote(word: str) -> str:
    if word and not any(char.isspace() or char in '"\\' for char in word):
        return word
    return '"' + "".join(_ESCAPED.get(char, char) for char in word) + '"'


def run_command(control: Control, endpoint: NodeEndpoint, rank: int, request: dict[str, Any]) -> Any:
    """What QEMU returned: text of the human monitor, any value of QMP.

    :raise PvcError: the VM does not run, or QEMU refused.
    """
    return control.ask(endpoint, {"op": "monitor", "vm": rank, **request}, _COMMAND_S).get("return")


def find_uri(control: Control, rank: int) -> tuple[str, str]:
    """What libvirt's clients connect to, and on which node, for a VM that libvirt runs.

    :raise GuestError: another driver runs it, or its node does not answer.
    """
    (vm,) = read_status(control, [rank])
    if vm.libvirt_uri is None:
        raise GuestError(f"{vm.name} is not run by libvirt", hint=f"hypervisor: libvirt in template {vm.template}")
    return vm.libvirt_uri, vm.node


def is_complaint(text: str) -> bool:
    """Whether the human monitor, which has no exit codes, says that a command failed."""
    return text.startswith(_COMPLAINTS)


def dump_memory(
    control: Control,
    endpoint: NodeEndpoint,
    request: dict[str, Any],
    on_progress: Callable[[int, int], None],
) -> int:
    """Let a VM's node write its memory to a file; returns the file's size.

    ``on_progress(done, total)`` is called several times a second.

    :raise PvcError: it was not written.
    """
    with control.talking(), control.connect(endpoint, _SILENCE_S) as connection:
        try:
            connection.sendall(json.dumps({"op": "dump", **request}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                while line := stream.readline(_MAX_LINE):
                    answer = codec.read_json(line)
                    if "ok" in answer:
                        raise_refusal(answer, endpoint.node)
                        return int(answer["size"])
                    on_progress(int(answer["done"]), int(answer["total"]))
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise HostError(f"the supervisor on {endpoint.node} does not answer") from err
        raise HostError(f"the supervisor on {endpoint.node} stopped answering")


def save_screenshot(control: Control, endpoint: NodeEndpoint, rank: int, path: Path) -> None:
    """Write what a VM's screen shows to a file, as PNG.

    :raise PvcError: it has no screen, or the file cannot be written.
    """
    picture = control.read_data(endpoint, {"op": "screenshot", "vm": rank}, _SILENCE_S)
    if not picture.startswith(_PNG):
        raise HostError(f"the supervisor on {endpoint.node} sent no picture")
    try:
        files.write_atomic(path, picture, mode=0o600)
    except OSError as err:
        raise UsageError(f"cannot write {path}") from err
