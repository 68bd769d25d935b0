# SPDX-License-Identifier: Apache-2.0
"""A supervisor's life with small guests that really boot, network without privileges."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from guests import Guest, build_guest
from harness import (
    HYPERVISORS,
    Console,
    Launched,
    free_port,
    guest_template,
    is_alive,
    make_keys,
    make_spec,
    supervised,
    user_net,
)

from pvc.model.cluster import ClusterKeys
from pvc.model.event import EventKind
from pvc.model.node import VmGrant
from pvc.model.vm import Accel, Disk, Phase, VmTemplate
from tests.waits import wait_until

pytestmark = pytest.mark.vm

Start = Callable[..., Launched]


@pytest.fixture(scope="module")
def guest() -> Guest:
    return build_guest()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> ClusterKeys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    path = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    return Disk(os.fspath(path), "qcow2", 128 << 20)


@pytest.fixture
def hypervisor(request: pytest.FixtureRequest) -> str:
    """What starts QEMU."""
    found: str = getattr(request, "param", "qemu")
    return found


BOTH = pytest.mark.parametrize("hypervisor", HYPERVISORS, indirect=True)


@pytest.fixture
def start(tmp_path: Path, keys: ClusterKeys, hypervisor: str) -> Iterator[Start]:
    """Starts a supervisor for templates, with its pvc-node; everything ends with the test."""
    (tmp_path / "run").mkdir()
    with ExitStack() as stack:

        def start_one(templates: Sequence[VmTemplate], *, ports: Sequence[int] = (), **spec: Any) -> Launched:
            """``ports``: of the node, that lead to port 22 of the first VMs."""
            templates = [dataclasses.replace(each, hypervisor=hypervisor) for each in templates]
            forwards = [{"22": port} for port in ports] + [{}] * len(templates)
            vms = [VmGrant(rank, (), forwards[rank]) for rank in range(len(templates))]
            run_dir = tmp_path / "run"
            return stack.enter_context(supervised(tmp_path, *templates, vms=vms, run_dir=run_dir, keys=keys, **spec))

        yield start_one


def says_banner(cluster: Launched) -> bool:
    """Whether the guest's sshd, which serves one caller at a time, answers through the control port."""
    with cluster.connect() as carried:
        carried.sendall(json.dumps({"op": "ssh", "vm": 0}).encode() + b"\n")
        answer = carried.makefile("rb")
        assert json.loads(answer.readline()) == {"ok": True}
        return answer.readline().startswith(b"SSH-")


@BOTH
def test_a_guest_boots_and_everything_answers(start: Start, guest: Guest, disk: Disk, tmp_path: Path) -> None:
    """One boot, many questions: booting is what takes time here."""
    port = free_port()
    cluster = start([guest_template(guest, disk, custom_args=user_net(port))], ports=[port])
    cluster.wait_phase(0, Phase.REACHABLE)
    phases = [event.phase for event in cluster.events if event.kind is EventKind.VM]
    assert phases == [Phase.NETWORK, Phase.BOOTING, Phase.REACHABLE]

    (status,) = cluster.ask(op="status")["vms"]
    assert status["phase"] == "reachable"
    assert (status["name"], status["node"], status["template"], status["accel"]) == ("vm0", "n1", "tiny", "tcg")
    assert (status["ssh_host"], status["ssh_port"]) == ("127.0.0.1", port)
    assert status["started"] < status["reachable"]
    (qemu,) = cluster.qemu_pids()
    assert len(status["pinned"]) == 1
    pinned = [
        os.sched_getaffinity(int(task.name))
        for task in Path(f"/proc/{qemu}/task").iterdir()
        if "CPU 0" in (task / "comm").read_text()
    ]
    assert pinned == [set(status["pinned"])]

    # ssh of a VM through the supervisor, for whoever cannot reach the port; and to nothing else.
    wait_until(lambda: says_banner(cluster), 120)
    assert "no VM 9 runs on this node" in cluster.ask(op="ssh", vm=9)["error"]

    with cluster.connect() as one, cluster.connect() as two:
        first, second = Console(one, 0), Console(two, 0)
        assert first.answer == second.answer == {"ok": True}
        assert b"GUEST-IS vm0 1" in first.wait(b"GUEST-READY")
        assert b"GUEST-DISK 262144" in second.wait(b"GUEST-READY")
        first.wait_prompt()
        first.send(b"echo x$((40+2))x; cat /seed/meta-data | wc -l\n")
        first.wait(b"x42x")
        second.wait(b"x42x")

    with cluster.connect() as connection:
        connection.sendall(b'{"op":"console-log","vm":0}\n')
        stream = connection.makefile("rb")
        answer = json.loads(stream.readline())
        assert b"x42x" in stream.read(answer["size"])

    with cluster.connect() as connection:
        console = Console(connection, 0)
        console.wait_prompt()
        console.send(b"reboot -f\n")
        console.wait(b"Restarting system")
        console.data = b""
        again = [*phases, Phase.BOOTING, Phase.REACHABLE]
        wait_until(lambda: [e.phase for e in cluster.events if e.kind is EventKind.VM] == again, 150)
        console.wait_prompt()
        console.send(b"poweroff -f\n")
        assert cluster.wait_phase(0, Phase.STOPPED).detail == "the guest powered itself off"
    assert cluster.ask(op="status")["vms"][0]["phase"] == "stopped"
    assert cluster.ask(op="stop", grace_s=0) == {"ok": True}
    assert cluster.wait_end() == 0
    assert cluster.events[-1].kind is EventKind.ENDED
    assert os.listdir(tmp_path / "run") == []


@BOTH
def test_panic_is_told_apart(start: Start, guest: Guest) -> None:
    cluster = start([guest_template(guest)])
    with_detail = cluster.wait_phase(0, Phase.BOOTING)
    assert "no port" in with_detail.detail
    with cluster.connect() as connection:
        console = Console(connection, 0)
        console.wait_prompt()
        console.send(b"echo c > /proc/sysrq-trigger\n")
        assert cluster.wait_phase(0, Phase.FAILED).detail == "the guest's kernel panicked"
        assert b"sysrq triggered crash" in console.data or console.wait(b"sysrq triggered crash")


@BOTH
def test_kill_9_of_qemu_fails_that_vm_only(start: Start, guest: Guest) -> None:
    cluster = start([guest_template(guest), guest_template(guest, name="other")])
    for rank in range(2):
        cluster.wait_phase(rank, Phase.BOOTING)
    victim = next(p for p in cluster.qemu_pids() if "vm1" in Path(f"/proc/{p}/cmdline").read_text().split("\0")[2])
    os.kill(victim, signal.SIGKILL)
    failed = cluster.wait_phase(1, Phase.FAILED)
    assert failed.detail.startswith("QEMU was killed by SIGKILL")
    assert "memory" in (failed.hint or "")
    phases = [vm["phase"] for vm in cluster.ask(op="status")["vms"]]
    assert phases == ["booting", "failed"]
    assert len(cluster.qemu_pids()) == 1


@BOTH
def test_kill_9_of_the_supervisor_takes_qemu_along(start: Start, guest: Guest, hypervisor: str) -> None:
    cluster = start([guest_template(guest), guest_template(guest, name="other")])
    for rank in range(2):
        cluster.wait_phase(rank, Phase.BOOTING)
    pids = cluster.children()
    assert len(pids) == 2 + (hypervisor == "libvirt")
    cluster.process.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


@pytest.mark.parametrize(
    ("how", "hypervisor"),
    [("eof", "qemu"), ("SIGTERM", "qemu"), ("SIGINT", "qemu"), ("eof", "libvirt")],
    indirect=["hypervisor"],
)
def test_the_launchers_end_is_the_supervisors(start: Start, guest: Guest, tmp_path: Path, how: str) -> None:
    cluster = start([guest_template(guest), guest_template(guest, name="other")])
    for rank in range(2):
        cluster.wait_phase(rank, Phase.BOOTING)
    pids = cluster.children()
    if how == "eof":
        assert cluster.process.stdin is not None
        cluster.process.stdin.close()
    else:
        cluster.process.send_signal(signal.Signals[how])
    assert cluster.wait_end(30) == 0
    assert not any(is_alive(pid) for pid in pids)
    assert [event.kind for event in cluster.events][-1] is EventKind.ENDED
    cluster.wait_phase(0, Phase.STOPPED)
    assert os.listdir(tmp_path / "run") == []


def test_strangers_and_garbage_at_the_control_port(start: Start, guest: Guest, tmp_path: Path) -> None:
    cluster = start([guest_template(guest)])
    cluster.wait_phase(0, Phase.BOOTING)
    listening = cluster.wait_event(EventKind.LISTENING)
    address = (str(listening.host), int(listening.port or 0))

    # With TLS 1.3 a client learns only when it reads that its certificate, or its lack of one, was refused.
    for pair in (make_keys(tmp_path / "stranger"), None):
        heard = b""
        with cluster.connect_with(pair) as connection, suppress(OSError):
            connection.sendall(b'{"op":"status"}\n')
            heard = connection.recv(100)
        assert heard == b""
    for garbage in (b"", b"GET / HTTP/1.0\r\n\r\n", os.urandom(5000), b"\x16\x03\x01" + os.urandom(300)):
        with socket.create_connection(address) as plain:
            plain.sendall(garbage)
    idle = [socket.create_connection(address) for _ in range(200)]

    for text, message in {
        b"{}\n": "no request None",
        b"[1]\n": "JSON object",
        b"\xff\xfe\n": "one line of JSON",
        b"[" * 60000 + b"\n": "one line of JSON",
        b'{"op":"console","vm":9}\n': "no VM 9 runs",
        b'{"op":"console","vm":{}}\n': "no VM {} runs",
        b'{"op":"stop","grace_s":"x"}\n': "grace_s",
        b'{"op":"stop","grace_s":-1}\n': "grace_s",
    }.items():
        with cluster.connect() as connection:
            connection.sendall(text)
            answer = json.loads(connection.makefile("rb").readline())
        assert answer["ok"] is False
        assert message in answer["error"]
        assert answer["exit_code"] in {2, 7}
    with cluster.connect() as connection:
        connection.sendall(b"x" * 100_000)
        assert b"at most 65536 bytes" in connection.recv(1000)
    for each in idle:
        each.close()
    assert cluster.ask(op="status")["ok"] is True
    assert cluster.process.poll() is None


@BOTH
def test_each_vm_says_what_it_lacks(start: Start, guest: Guest, disk: Disk, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.qcow2"
    corrupt.write_bytes(os.urandom(4096))
    unreadable = dataclasses.replace(disk, path="/nonexistent/base.qcow2")
    templates = [
        guest_template(guest, unreadable, name="missing"),
        guest_template(guest, Disk(os.fspath(corrupt), "qcow2", 1 << 30), name="corrupt"),
        guest_template(guest, name="noqemu", qemu_bin="qemu-system-nothing"),
        guest_template(guest, name="args", custom_args=("-device", "no-such-device")),
        guest_template(guest, disk, name="cache", disk_cache="fast"),
        guest_template(guest, disk, name="good"),
    ]
    cluster = start(templates)
    cluster.wait_phase(5, Phase.BOOTING)
    said = [
        "its image cannot be read on this node: No such file or directory (/nonexistent/base.qcow2)",
        "corrupt.qcow2 is refused: it has no qcow2 header",
        "there is no qemu-system-nothing on this node",
        "no-such-device",
        "disk_cache 'fast'",
    ]
    for rank, words in enumerate(said):
        assert words in cluster.wait_phase(rank, Phase.FAILED).detail
    assert len(cluster.qemu_pids()) == 1
    with cluster.connect() as connection:
        assert Console(connection, 0).answer["error"] == "vm0 has not started, so it has no console"


def test_too_little_memory_is_refused(start: Start, guest: Guest) -> None:
    cluster = start([guest_template(guest)], memory_mib=200)
    error = cluster.wait_event(EventKind.ERROR)
    assert "200 MiB for a VM" in error.detail
    assert error.exit_code == 7
    assert "-m" in (error.hint or "")
    assert cluster.wait_end() == 7


def test_kvm_demanded_where_there_is_none(start: Start, guest: Guest) -> None:
    """On a machine with KVM, the guest simply boots with it."""
    cluster = start([guest_template(guest)], accel=Accel.KVM)
    wait_until(lambda: any(e.kind is EventKind.ERROR or e.phase is Phase.BOOTING for e in cluster.events), 120)
    errors = [event for event in cluster.events if event.kind is EventKind.ERROR]
    if errors:
        assert "KVM is demanded" in errors[0].detail
        assert cluster.wait_end() == 7
    else:
        assert cluster.ask(op="status")["vms"][0]["accel"] == "kvm"


def test_auto_without_kvm_is_told_once(start: Start, guest: Guest) -> None:
    cluster = start([guest_template(guest), guest_template(guest, name="other")], accel=Accel.AUTO)
    cluster.wait_phase(1, Phase.BOOTING)
    notices = [event.detail for event in cluster.events if event.kind is EventKind.NOTICE]
    accels = {vm["accel"] for vm in cluster.ask(op="status")["vms"]}
    assert len(notices) == (1 if accels == {"tcg"} else 0)
    assert all("\n" not in notice for notice in notices)


def test_a_second_supervisor_of_the_job_is_refused(
    start: Start, guest: Guest, keys: ClusterKeys, tmp_path: Path
) -> None:
    first = start([guest_template(guest)])
    first.wait_phase(0, Phase.BOOTING)
    second = Launched(make_spec([guest_template(guest)], keys), tmp_path / "sock", home=tmp_path)
    try:
        assert "runs already in this job" in second.wait_event(EventKind.ERROR).detail
        assert second.wait_end() == 7
        assert len(first.qemu_pids()) == 1
    finally:
        second.close()


def test_no_cluster_on_standard_input() -> None:
    import sys

    from harness import ROOT

    done = subprocess.run(
        [sys.executable, "-c", "from pvc.cli.main import main; main()", "supervise"],
        input="{}\n",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.fspath(ROOT)},
    )
    assert done.returncode == 2
    assert "not understood" in done.stderr
