# SPDX-License-Identifier: Apache-2.0
"""The control client against a real TLS server in this process."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pvc.codec import to_data
from pvc.errors import EndedError, GuestError, HostError, JobError, SuspendedError
from pvc.model.cluster import NodeEndpoint
from pvc.model.vm import AgentStatus, Order, Phase
from pvc.ops import status
from pvc.ops.control import Control, in_parallel
from pvc.ops.jobdir import JobDir
from pvc.ops.keys import KeyMaker
from pvc.ops.logs import LogWish, read_log
from pvc.ops.orders import give_order
from pvc.ops.pulse import Pulse
from pvc.slurm.job import JobState
from tests.unit.ops.worlds import make_record, make_status

pytestmark = [pytest.mark.allow_run, pytest.mark.allow_sockets]
Answer = Callable[[dict[str, Any]], bytes]


class Server:
    """A supervisor's control port as the contract describes it; ``answer`` makes the bytes of an answer."""

    def __init__(self, jobdir: JobDir, answer: Answer) -> None:
        self._answer = answer
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(cafile=jobdir.tls_cert)
        self._context.load_cert_chain(jobdir.tls_cert, jobdir.tls_key)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    line = connection.makefile("rb").readline()
                    if line:
                        # A record for each line: they come one by one
                        for part in self._answer(json.loads(line)).splitlines(keepends=True):
                            connection.sendall(part)
            except OSError:
                continue

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> JobDir:
    """The directory of a cluster with fresh keys."""
    jobdir = JobDir(tmp_path_factory.mktemp("keys"))
    jobdir.write_keys(KeyMaker(jobdir.path, "test").finish())
    return jobdir


@pytest.fixture
def serve(keys: JobDir) -> Iterator[Callable[[Answer], Server]]:
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(keys, answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def reply(**fields: Any) -> Answer:
    return lambda _request: json.dumps(fields).encode() + b"\n"


def vms_of(*vms: Any) -> Answer:
    return reply(ok=True, vms=to_data(list(vms)))


def control_of(keys: JobDir, *ports: int) -> Control:
    endpoints = (NodeEndpoint(f"n{index}", "127.0.0.1", port) for index, port in enumerate(ports, start=1))
    return Control(make_record(*endpoints), keys)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_keys_are_private_and_complete(keys: JobDir) -> None:
    files = {path.name: path.stat().st_mode & 0o777 for path in keys.path.iterdir()}
    assert files == dict.fromkeys(("tls.pem", "tls.key", "id_ed25519", "id_ed25519.pub", "known_hosts"), 0o600)
    assert keys.known_hosts.read_text().startswith("vm* ssh-ed25519 ")


def test_status_of_all_nodes(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    one = serve(vms_of(make_status(0, Phase.REACHABLE), make_status(1, Phase.BOOTING)))
    two = serve(vms_of(make_status(2, Phase.NETWORK)))
    control = control_of(keys, one.port, two.port)
    found = status.read_status(control, (0, 1, 2))
    assert [vm.phase for vm in found] == [Phase.REACHABLE, Phase.BOOTING, Phase.NETWORK]
    assert [vm.rank for vm in status.read_status(control, (1,))] == [1]


@pytest.mark.parametrize("ahead_s", [-240.0, 240.0])
def test_a_node_with_another_clock(keys: JobDir, serve: Callable[[Answer], Server], ahead_s: float) -> None:
    """What it tells of a minute ago is a minute old for whoever asks."""
    there = time.time() + ahead_s
    vm = replace(make_status(0, Phase.REACHABLE), started=there - 90, reachable=there - 70, since=there - 60)
    one = serve(reply(ok=True, now=there, vms=to_data([replace(vm, agent=AgentStatus(True, "1", there - 50))])))
    (found,) = status.read_status(control_of(keys, one.port), (0,))
    times = (found.started, found.reachable, found.since, found.agent.since)
    ages = [time.time() - moment for moment in times if moment is not None]
    assert [round(age / 10) for age in ages] == [9, 7, 6, 5]


def test_a_silent_node_is_told(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    one = serve(vms_of(make_status(0, Phase.REACHABLE)))
    found = status.read_status(control_of(keys, one.port, closed_port()), (0, 1, 2))
    assert [vm.phase for vm in found] == [Phase.REACHABLE, Phase.WAITING, Phase.FAILED]
    assert found[2].detail.startswith("the supervisor on n2 does not answer")


@pytest.mark.parametrize("answer", [b"nonsense\n", b"[]\n", b"", b'{"ok": true}\n', b'{"ok": true, "vms": [{}]}\n'])
def test_nonsense_is_a_silent_node(keys: JobDir, serve: Callable[[Answer], Server], answer: bytes) -> None:
    control = control_of(keys, serve(lambda _request: answer).port, closed_port())
    (found,) = status.read_status(control, (0,))
    assert found.phase is Phase.FAILED


def test_a_supervisors_own_error(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    server = serve(reply(ok=False, error="vm9 has no console", exit_code=7, hint="look"))
    control = control_of(keys, server.port)
    with pytest.raises(GuestError, match="n1: vm9 has no console") as caught:
        control.read_log(control.record.endpoints[0], 9, 5.0)
    assert caught.value.hint == "look"


def test_console_log(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    asked: list[dict[str, Any]] = []
    text = bytes(range(256)) * 1000

    def answer(request: dict[str, Any]) -> bytes:
        asked.append(request)
        return json.dumps({"ok": True, "size": len(text)}).encode() + b"\n" + text

    control = control_of(keys, serve(answer).port)
    assert control.read_log(control.record.endpoints[0], 1, 5.0) == text
    assert asked == [{"op": "console-log", "vm": 1}]


def test_stop_tells_who_did_not(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    control = control_of(keys, serve(reply(ok=True)).port, closed_port())
    assert list(control.stop(grace_s=1.0, timeout_s=5.0)) == ["n2"]


def test_a_stranger_with_other_keys_is_refused(tmp_path: Path, keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    server = serve(vms_of(make_status(0, Phase.REACHABLE)))
    other = JobDir(tmp_path)
    other.write_keys(KeyMaker(tmp_path, "other").finish())
    with pytest.raises(HostError, match="does not answer"):
        control_of(other, server.port).ask(NodeEndpoint("n1", "127.0.0.1", server.port), {"op": "status"}, 5.0)


def test_without_keys_there_is_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^cluster 7 has ended$"):
        control_of(JobDir(tmp_path), 1)


def test_waiting_ends_when_all_answer(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    phases = iter([Phase.BOOTING, Phase.REACHABLE])

    def answer(request: dict[str, Any]) -> bytes:
        return vms_of(make_status(0, next(phases)))(request)

    server = serve(answer)
    assert status.wait_reachable(control_of(keys, server.port), (0,), 20.0)[0].phase is Phase.REACHABLE


def test_waiting_gives_up_on_what_never_will(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    server = serve(vms_of(make_status(0, Phase.FAILED, detail="QEMU died"), make_status(1, Phase.BOOTING, port=None)))
    with pytest.raises(GuestError) as caught:
        status.wait_reachable(control_of(keys, server.port), (0, 1), 60.0)
    assert str(caught.value) == "vm0 has failed (QEMU died); vm1 runs, but no port leads to its ssh"


def test_waiting_has_an_end(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    server = serve(vms_of(make_status(0, Phase.BOOTING)))
    with pytest.raises(GuestError, match=r"vm0 does not answer after 0\.1 s"):
        status.wait_reachable(control_of(keys, server.port), (0,), 0.1)


def test_waiting_is_patient_with_a_silent_node(keys: JobDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_PATIENCE_S", 0.6)
    pauses: list[float] = []
    sleep = time.sleep
    monkeypatch.setattr(status.time, "sleep", lambda pause_s: (pauses.append(pause_s), sleep(pause_s)))
    with pytest.raises(GuestError, match="vm0 has failed"):
        status.wait_reachable(control_of(keys, closed_port()), (0,), 60.0)
    assert pauses


def test_in_parallel_keeps_the_order() -> None:
    assert in_parallel(lambda item: item * 2, list(range(200))) == list(range(0, 400, 2))
    assert in_parallel(lambda item: item, []) == []


def test_a_log_that_is_empty_yet_is_waited_for(keys: JobDir, serve: Callable[[Answer], Server]) -> None:
    server = serve(lambda _: b'{"ok": true}\nlater\nand later\n')
    said: list[bytes] = []
    read_log(control_of(keys, server.port), 0, LogWish("hooks", follow=True), said.append)
    assert said == [b"later\n", b"and later\n"]


def test_who_stands_still_behind_an_open_port_is_asked_for_at_slurm(
    keys: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the supervisors of a suspended job: the kernel takes connections for them."""
    monkeypatch.setattr("pvc.ops.control._HANDSHAKE_S", 0.01)
    record = make_record()
    state = "SUSPENDED"
    pulse = Pulse(record, keys, lambda _: (JobState(7, state, (), None),))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoints = [NodeEndpoint(node, "127.0.0.1", silent.getsockname()[1]) for node in ("n1", "n2")]
        control = Control(make_record(*endpoints), keys, pulse)
        for call in (
            lambda: control.status(timeout_s=600),
            lambda: control.stop(grace_s=0, timeout_s=600),
            lambda: control.connect(endpoints[0], 600),
            lambda: control.read_log(endpoints[0], 0, 600),
            lambda: give_order(control, Order.RESET, (0, 1, 2)),
        ):
            with pytest.raises(SuspendedError, match=r"^job 7 is suspended, and so are its VMs$"):
                call()
        state = "RUNNING"
        with pytest.raises(HostError, match=r"^the supervisor on n1 does not answer: no answer within 0 s$"):
            control.connect(endpoints[0], 0.1)
    state = "CANCELLED"
    control = Control(make_record(*endpoints), keys, Pulse(record, keys, lambda _: (JobState(7, state, (), None),)))
    with pytest.raises(EndedError, match=r"^cluster 7 has ended; Slurm says of its job: CANCELLED$"):
        control.status(timeout_s=600)
    with pytest.raises(EndedError):
        read_log(control, 0, LogWish(), lambda _: None)


def test_an_error_of_one_thread_is_the_callers() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three"):
        in_parallel(work, range(6))
    assert in_parallel(work, (1, 2)) == [1, 2]
    assert in_parallel(work, ()) == []


def test_no_file_of_pythons_own_is_in_a_message() -> None:
    for error in (
        TimeoutError("_ssl.c:1015: The handshake operation timed out"),
        ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1007)"),
        ssl.SSLEOFError(8, "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:992)"),
    ):
        told = HostError("the supervisor on n1 does not answer")
        told.__cause__ = error
        assert "_ssl" not in str(told)
        assert "[" not in str(told)
        assert len(str(told)) > len(told.message) + 10
