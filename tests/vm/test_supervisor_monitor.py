# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor, memory in files, and what a screen shows: with a small guest that really runs."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from guests import build_guest
from harness import HYPERVISORS, Console, Launched, guest_template, supervised

from pvc.model.vm import Phase
from tests.waits import wait_until

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module", params=HYPERVISORS)
def cluster(short_path: Path, request: pytest.FixtureRequest) -> Iterator[Launched]:
    hypervisor: str = request.param
    path = short_path / hypervisor
    path.mkdir()
    guest = build_guest()
    templates = [
        guest_template(guest, hypervisor=hypervisor),
        guest_template(guest, name="noqemu", qemu_bin="qemu-system-nothing", hypervisor=hypervisor),
        guest_template(guest, name="vnc", remote_display="vnc", hypervisor=hypervisor),
        guest_template(guest, name="spice", remote_display="spice", machine_type="pc", hypervisor=hypervisor),
    ]
    with supervised(path, *templates) as cluster:
        for rank, started in enumerate((Phase.BOOTING, Phase.FAILED, Phase.BOOTING, Phase.BOOTING)):
            cluster.wait_phase(rank, started)
        with cluster.connect() as connection:
            Console(connection, 0).wait_prompt()
        yield cluster


def phase(cluster: Launched) -> str:
    found: str = cluster.ask(op="status")["vms"][0]["phase"]
    return found


def test_commands(cluster: Launched) -> None:
    assert cluster.ask(op="monitor", vm=0, qmp={"execute": "query-status"})["return"]["status"] == "running"
    assert "VM status: running" in cluster.ask(op="monitor", vm=0, hmp="info status")["return"]
    assert cluster.ask(op="monitor", vm=0, hmp="no-such")["return"].startswith("unknown command: 'no-such'")
    refused = cluster.ask(op="monitor", vm=0, qmp={"execute": "no-such"})
    assert (refused["ok"], refused["exit_code"]) == (False, 7)
    assert "The command no-such has not been found" in refused["error"]
    # Whoever stops the guest by the monitor sees it in the phase.
    assert cluster.ask(op="monitor", vm=0, hmp="stop")["ok"]
    wait_until(lambda: phase(cluster) == "paused")
    assert cluster.ask(op="monitor", vm=0, qmp={"execute": "cont", "arguments": {}})["ok"]
    wait_until(lambda: phase(cluster) == "booting")
    assert "it is failed" in cluster.ask(op="monitor", vm=1, hmp="info status")["error"]


def test_nonsense(cluster: Launched) -> None:
    for request in (
        {},
        {"hmp": 1},
        {"hmp": "info", "qmp": {"execute": "quit"}, "vm": 5},
        {"qmp": "quit"},
        {"qmp": {"exec-oob": "quit"}},
        {"qmp": {"execute": ["quit"]}},
        {"qmp": {"execute": "quit", "id": 7}},
        {"qmp": {"execute": "quit", "arguments": []}},
    ):
        answer = cluster.ask(**{"op": "monitor", "vm": 0} | request)
        assert answer["ok"] is False, request
    assert phase(cluster) == "booting"


def dump(cluster: Launched, path: object, **more: Any) -> list[dict[str, Any]]:
    with cluster.connect() as connection:
        connection.sendall(json.dumps({"op": "dump", "vm": 0, "path": path, **more}).encode() + b"\n")
        return [json.loads(line) for line in connection.makefile("rb")]


def test_memory_in_a_file(cluster: Launched, tmp_path: Path) -> None:
    target = tmp_path / "memory.elf"
    *steps, last = dump(cluster, os.fspath(target))
    assert last == {"ok": True, "size": target.stat().st_size}
    assert steps[-1]["done"] == steps[-1]["total"] > 100 << 20
    assert target.read_bytes()[:4] == b"\x7fELF"
    assert target.stat().st_mode & 0o777 == 0o600
    wait_until(lambda: phase(cluster) == "booting")

    (refused,) = dump(cluster, os.fspath(target))
    assert (refused["exit_code"], refused["hint"]) == (2, "--force replaces it")
    assert dump(cluster, os.fspath(target), force=True, format="kdump-zlib")[-1]["ok"] is True
    assert target.read_bytes()[:12] == b"makedumpfile"
    assert os.listdir(tmp_path) == ["memory.elf"]


def test_dumps_that_fail_leave_nothing(cluster: Launched, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc/passwd")
    for path, more in (
        ("relative", {}),
        (7, {}),
        (f"{tmp_path}/a\0b", {}),
        (f"{tmp_path}/x", {"format": "zip"}),
        (f"{tmp_path}/x", {"force": 1}),
        (f"{tmp_path}/no/such/directory", {}),
        (os.fspath(link), {}),
        ("/proc/x", {}),
        (f"{tmp_path}/{'x' * 300}", {}),
    ):
        assert dump(cluster, path, **more)[-1]["ok"] is False, path
    assert os.listdir(tmp_path) == ["link"]
    # Whoever leaves has nothing.
    with cluster.connect() as connection:
        target = os.fspath(tmp_path / "left")
        connection.sendall(json.dumps({"op": "dump", "vm": 0, "path": target}).encode() + b"\n")
        first = json.loads(connection.makefile("rb").readline())
    # What was written whole before anybody could leave is a dump; never is there a part of one.
    whole = ["left"] if first["done"] == first["total"] else []
    wait_until(lambda: sorted(set(os.listdir(tmp_path)) - set(whole)) == ["link"], 120)
    wait_until(lambda: phase(cluster) == "booting", 120)


def screenshot(cluster: Launched, rank: int) -> tuple[dict[str, Any], bytes]:
    with cluster.connect() as connection:
        connection.sendall(json.dumps({"op": "screenshot", "vm": rank}).encode() + b"\n")
        stream = connection.makefile("rb")
        answer = json.loads(stream.readline())
        return answer, stream.read(answer.get("size", 0))


def test_screens(cluster: Launched) -> None:
    for rank, protocol, greeting in ((2, "vnc", b"RFB 003."), (3, "spice", b"REDQ")):
        found = cluster.ask(op="display", vm=rank)
        assert (found["protocol"], found["node"]) == (protocol, "n1")
        place = Path(found["socket"])
        assert place.parent.stat().st_mode & 0o077 == 0
        with socket.socket(socket.AF_UNIX) as viewer:
            viewer.settimeout(30)
            viewer.connect(os.fspath(place))
            if protocol == "spice":  # the client speaks first: magic, version, size, and a link message to the main
                viewer.sendall(b"REDQ" + struct.pack("<IIIIBBIII", 2, 2, 18, 0, 1, 0, 0, 0, 18))
            assert viewer.recv(8).startswith(greeting[:4])
        answer, picture = screenshot(cluster, rank)
        assert answer["ok"], answer
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", picture[16:24])
        assert (width, height) > (300, 200)
        assert not list(place.parent.glob("*.png"))
    for request in ({"op": "display", "vm": 0}, {"op": "screenshot", "vm": 0}):
        refused = cluster.ask(**request)
        assert refused["error"] == "vm0 has no screen"
        assert "remote-display: vnc in template tiny" in refused["hint"]
    # A screen is there again after another start.
    assert cluster.ask(op="order", order="stop", vms=[2])["ok"]
    assert "it is stopped" in cluster.ask(op="display", vm=2)["error"]
    assert cluster.ask(op="order", order="start", vms=[2])["vms"][0]["error"] is None
    with socket.socket(socket.AF_UNIX) as viewer:
        viewer.settimeout(30)
        viewer.connect(cluster.ask(op="display", vm=2)["socket"])
        assert viewer.recv(8).startswith(b"RFB")
