# SPDX-License-Identifier: Apache-2.0
"""The agent in a guest without systemd and cloud-init: Alpine, with musl, busybox and OpenRC."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests import Guest, build_agent
from reached import Reached, reached

from pvc.model.vm import Disk, Mount, Phase
from pvc.ops.agents import Agents, Collected, ask
from pvc.ops.copy import copy
from pvc.ops.loop import Loop
from tests.guests import alpine_with_agent
from tests.waits import wait_until

pytestmark = pytest.mark.vm

ANSWER_S = 120.0
GROWN = 3 << 30
SEED = "modprobe isofs; mkdir -p /mnt/seed; mount -t iso9660 -o ro /dev/vdb /mnt/seed"


@pytest.fixture(scope="module")
def alpine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    base = tmp_path_factory.mktemp("alpine")
    image = alpine_with_agent(build_agent(), base)
    disk = Disk(os.fspath(image.disk), "raw", GROWN)
    guest = Guest(image.kernel, image.initrd, image.append)
    shares = {"9p": base / "plain", "virtiofs": base / "fast"}
    for share in shares.values():
        share.mkdir()
        (share / "from-host").write_text("hello\n")
    mounts = tuple(
        Mount(os.fspath(share), f"/of the host/{kind}", read_only=kind == "9p", tag=kind, type=kind)
        for kind, share in shares.items()
    )
    with reached(base / "cluster", 1, guest, disk=disk, mounts=mounts) as found:
        yield found


def test_commands_and_files(alpine: Reached, tmp_path: Path) -> None:
    ran = alpine.run("sh", "-c", "cat /etc/alpine-release; readlink /proc/$PPID/exe; rc-service pvc-agent status 2>&1")
    release, exe, service = ran.out().splitlines()
    assert (ran.codes, release[:2], exe) == ([0], "3.", "/usr/sbin/pvc-agent")
    assert "started" in service
    (tmp_path / "there").mkdir()
    (tmp_path / "there/data").write_bytes(os.urandom(1_000_000))
    copy(alpine.control, [os.fspath(tmp_path / "there"), "vm0:/root"], "root").raise_failed()
    copy(alpine.control, ["vm0:/root/there", os.fspath(tmp_path / "back")], "root").raise_failed()
    assert (tmp_path / "back/data").read_bytes() == (tmp_path / "there/data").read_bytes()


def test_the_root_grows_with_its_disk(alpine: Reached) -> None:
    def read_size() -> int:
        blocks, size = alpine.run("stat", "-f", "-c", "%b %S", "/").out().split()
        return int(blocks) * int(size)

    # Blocks that ext4 needs for itself are not counted.
    wait_until(lambda: GROWN * 0.95 < read_size() <= GROWN, ANSWER_S, lambda: f"/ has {read_size()} bytes")
    assert alpine.run("dd", "if=/dev/zero", "of=/large", "bs=1M", "count=8").codes == [0]


def test_directories_of_the_host(alpine: Reached) -> None:
    # Nobody reads a seed in this guest: its agent mounts them, once.
    wait_until(lambda: alpine.run("cat", "/of the host/virtiofs/from-host").out() == "hello\n", ANSWER_S)
    wait_until(lambda: alpine.run("cat", "/of the host/9p/from-host").out() == "hello\n", ANSWER_S)
    assert alpine.run("touch", "/of the host/9p/x").codes == [1]
    assert alpine.run("grep", "-c", "^9p \\|^virtiofs ", "/proc/mounts").out() == "2\n"
    assert alpine.run("umount", "/of the host/9p", "/of the host/virtiofs").codes == [0]
    loop = Loop((), lambda _: None)
    agents = Agents(alpine.control, loop)
    try:
        for kind, mode in (("9p", "ro"), ("virtiofs", "rw")):
            words = [("op", "mount"), ("tag", kind), ("target", f"/mnt/of/{kind}"), ("type", kind), ("mode", mode)]
            done = ask(agents, loop, 0, words, ANSWER_S)
            assert (done.result, bytes(done.err)) == ({"exit": "0"}, b"")
            assert alpine.run("cat", f"/mnt/of/{kind}/from-host").out() == "hello\n"
        assert alpine.run("touch", "/mnt/of/9p/x", "/mnt/of/virtiofs/x").codes == [1]
        assert alpine.run("ls", "/mnt/of/9p", "/mnt/of/virtiofs").out().count("\nx\n") == 1
        words = [("op", "mount"), ("tag", "none"), ("target", "/mnt/none"), ("type", "9p")]
        failed = ask(agents, loop, 0, words, ANSWER_S)
        assert (failed.result or {})["exit"] == "1"
        assert failed.err.startswith(b"pvc-agent: cannot mount none at /mnt/none: ")
    finally:
        agents.close()
        loop.close()


def test_connections_and_file_systems_that_stand_still(alpine: Reached) -> None:
    loop = Loop((), lambda _: None)
    agents = Agents(alpine.control, loop)
    try:
        alpine.run("nc", "-l", "-p", "7000", "-e", "cat", detach=True)
        wait_until(lambda: ":1B58 " in alpine.run("sh", "-c", "cat /proc/net/tcp*").out(), ANSWER_S)
        connection = Collected()
        agents.open(0, [("op", "connect"), ("net", "tcp"), ("port", "7000")], connection)
        connection.send(b"there and back")
        connection.end()
        assert loop.run_until(lambda: connection.closed, timeout_s=ANSWER_S)
        assert (connection.notes, bytes(connection.out)) == ([{"connected": "1"}], b"there and back")

        freeze, write = Collected(), Collected()
        agents.open(0, [("op", "freeze"), ("timeout", "60")], freeze)
        assert loop.run_until(lambda: freeze.out.endswith(b"\n"), timeout_s=ANSWER_S)
        assert freeze.out == b"frozen 1\n"
        agents.open(0, [("op", "exec"), ("arg", "touch"), ("arg", "/root/late")], write)
        assert loop.run_until(lambda: bool(write.notes), timeout_s=ANSWER_S)
        wait_until(lambda: ") D " in alpine.run("cat", f"/proc/{write.notes[0]['pid']}/stat").out(), 120)
        freeze.end()
        assert loop.run_until(lambda: freeze.closed and write.closed, timeout_s=ANSWER_S)
        assert (freeze.result, write.result) == ({"exit": "0"}, {"exit": "0"})
    finally:
        agents.close()
        loop.close()


def test_the_seed_replaces_it_and_openrc_starts_it_again(alpine: Reached) -> None:
    """What cloud-init runs at each boot where it is; here it is run by hand."""
    before = alpine.wait_agents()[0].agent.since
    alpine.run("sh", "-c", f"{SEED}; exec sh /mnt/seed/pvc-agent.sh >/root/install.log 2>&1", detach=True)
    wait_since(alpine, before)
    ran = alpine.run(
        "sh", "-c", "readlink /proc/$PPID/exe; cat /etc/init.d/pvc-agent; rc-service pvc-agent status 2>&1"
    )
    lines = ran.out().splitlines()
    assert (lines[0], lines[1]) == ("/usr/local/sbin/pvc-agent", "#!/sbin/openrc-run")
    assert "started" in lines[-1]
    # OpenRC has something to say about other services of this image.
    assert "agent" not in alpine.run("cat", "/root/install.log").out()

    before = alpine.wait_agents()[0].agent.since
    alpine.run("sh", "-c", "kill -9 $PPID")
    wait_since(alpine, before)
    before = alpine.wait_agents()[0].agent.since
    alpine.run("sync")
    assert alpine.cluster.ask(op="order", order="reset", vms=[0])["ok"]
    wait_since(alpine, before)
    assert alpine.run("sh", "-c", "readlink /proc/$PPID/exe").out() == "/usr/local/sbin/pvc-agent\n"


def test_it_powers_a_guest_off_that_does_not_hear_its_button(alpine: Reached) -> None:
    """Nobody in this image listens for ACPI; the last test, for it ends the VM."""
    since = alpine.wait_agents()[0].agent.since
    loop = Loop((), lambda _: None)
    agents = Agents(alpine.control, loop)
    try:
        refused = ask(agents, loop, 0, [("op", "power"), ("how", "fast")], ANSWER_S)
        assert (refused.result or {})["exit"] == "2"
        assert refused.err == b"pvc-agent: power is off, reboot or halt\n"
        agents.open(0, [("op", "power"), ("how", "reboot")], Collected())
        wait_since(alpine, since)
    finally:
        agents.close()
        loop.close()
    with alpine.cluster.connect() as connection:
        connection.settimeout(300)
        connection.sendall(json.dumps({"op": "order", "order": "stop", "vms": [0], "grace_s": 200}).encode() + b"\n")
        (stopped,) = json.loads(connection.makefile("rb").readline())["vms"]
    assert stopped["error"] is None
    assert alpine.cluster.wait_phase(0, Phase.STOPPED).detail == "stopped on request, its guest powered down"


def wait_since(cluster: Reached, before: float | None) -> None:
    """Until another session than that of ``before`` has begun."""
    wait_until(lambda: cluster.wait_agents()[0].agent.since != before, 240)
