# SPDX-License-Identifier: Apache-2.0
"""A cluster as programs have it: real agents behind the supervisor's relay, this process as the program."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet

from pvc import Cluster
from pvc.errors import EndedError, GuestError, GuestTimeoutError, HostError, UsageError
from pvc.model.cluster import ClusterRecord, NodeEndpoint
from pvc.model.vm import Order
from pvc.ops import forwards
from pvc.ops.execute import Command
from pvc.ops.jobdir import JobDir
from pvc.ops.remote import check_port

pytestmark = [
    pytest.mark.allow_run,  # agents are programs, and run others
    pytest.mark.allow_sockets,  # their ports, the control port, and what is forwarded
]
COUNT = 3


@pytest.fixture
def cluster(many: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr("pvc.ops.jobdir.find_jobs_dir", lambda: tmp_path)
    jobdir = JobDir.of(many.control.record.job_id)
    os.close(jobdir.create())
    jobdir.write_keys(many.keys)
    jobdir.write_record(many.control.record)
    return Cluster.find(many.control.record.job_id)


def test_commands(cluster: Cluster) -> None:
    assert cluster.vms == ("vm0", "vm1", "vm2")
    results = cluster.exec(["sh", "-c", "cat; echo $GREETING >&2"], "vm[0-1]", stdin="in", env={"GREETING": "hi"})
    assert [(each.vm, each.code, each.text, each.stderr) for each in results] == [
        ("vm0", 0, "in", b"hi\n"),
        ("vm1", 0, "in", b"hi\n"),
    ]
    assert cluster.exec(["cat"], "vm0")[0].stdout == b""
    with pytest.raises(GuestError, match=r"sh ended with 3 in vm1, vm2: sorry"):
        cluster.exec(["sh", "-c", "echo sorry >&2; exit 3"], ["vm1", "vm2"])
    assert [each.code for each in cluster.exec(["sh", "-c", "kill -9 $$"], check=False)] == [-9] * COUNT
    assert cluster.exec([Path("/bin/echo"), Path("/x")], "vm0", cwd=Path("/"))[0].text == "/x"
    with pytest.raises(UsageError, match="a list of words"):
        cluster.exec("true")
    big = os.urandom(3 << 20)
    assert [each.stdout for each in cluster.exec(["cat"], stdin=big)] == [big] * COUNT


def test_a_time_that_runs_out_is_pythons_own_and_keeps_what_there_was(cluster: Cluster) -> None:
    line = "echo begun; if test $1 = 1; then exec sleep 1000; fi"
    hosts = {name: ["sh", "-c", line, "sh", name.removeprefix("vm")] for name in cluster.vms}
    assert cluster.exec(hosts["vm0"], "vm0", timeout_s=60)[0].text == "begun"
    with pytest.raises(TimeoutError, match=r"^sh did not end within 2 s$") as caught:
        cluster.exec(hosts["vm1"], "vm[0-1]", timeout_s=2)
    assert isinstance(caught.value, GuestTimeoutError)
    assert [(each.vm, each.late, each.code, each.text) for each in caught.value.gathered] == [
        ("vm0", True, 124, "begun"),
        ("vm1", True, 124, "begun"),
    ]
    assert str(caught.value).startswith("sh did not end")


def test_a_copy_whose_time_runs_out_says_what_came(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(64 << 20))
    with pytest.raises(TimeoutError, match="the copy did not end within 0 s") as caught:
        cluster.copy(tmp_path / "big", f"vm0:{tmp_path}/in", timeout_s=0)
    assert isinstance(caught.value, GuestTimeoutError)
    assert [each.error for each in caught.value.gathered.vms] == ["the time ran out"]
    assert not (tmp_path / "in").exists()


def test_an_empty_choice_is_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvc.ops.stop.cancel_job", lambda _: pytest.fail("the cluster was ended"))
    assert cluster.exec(["true"], []) == []
    assert cluster.status(()) == ()
    assert cluster.ranks(iter(())) == ()
    assert cluster.order(Order.RESET, []) == ()
    cluster.wait([], timeout_s=0)
    cluster.wait([], until="agent", timeout_s=0)
    cluster.stop([])
    for words in ("", "vm0!vm0", ["vm1", "vm[0-2]!vm[0-2]"]):
        with pytest.raises(UsageError):
            cluster.exec(["true"], words)


@pytest.mark.parametrize(
    "wrong",
    [
        {"slurm": "--time=1"},
        {"slurm": [1]},
        {"memory": 64},
        {"cpus": "2"},
        {"cpus": 0},
        {"cpus": True},
        {"nodes": 2.5},
        {"image": 7},
        {"mounts": "/a:/b"},
        {"user_data": 5},
        {"name": None},
        {"timeout_s": "1m"},
        {"timeout_s": float("nan")},
        {"resource_set": b"nat"},
    ],
)
def test_what_a_program_gives_is_looked_at_before_slurm_is_asked(wrong: dict[str, Any]) -> None:
    (key,) = wrong
    with pytest.raises(UsageError, match=rf"^{key}(\[0\])? is .*, but .* is wanted$"):
        Cluster.allocate("debian", **wrong)
    with pytest.raises(UsageError, match="definition is 7"):
        Cluster.allocate(7)  # type: ignore[arg-type]


def test_what_a_program_gives_a_running_cluster_is_looked_at(cluster: Cluster) -> None:
    calls: list[Callable[[], object]] = [
        lambda: cluster.exec([1]),  # type: ignore[list-item]
        lambda: cluster.exec([]),
        lambda: cluster.exec(["a\0b"]),
        lambda: cluster.exec(["true"], 0),  # type: ignore[arg-type]
        lambda: cluster.exec(["true"], [0]),  # type: ignore[list-item]
        lambda: cluster.exec(["true"], stdin=5),  # type: ignore[arg-type]
        lambda: cluster.exec(["true"], env={"A": 1}),  # type: ignore[dict-item]
        lambda: cluster.exec(["true"], env=["A=1"]),  # type: ignore[arg-type]
        lambda: cluster.exec(["true"], timeout_s="1m"),  # type: ignore[arg-type]
        lambda: cluster.copy(b"x", "vm0:/"),  # type: ignore[arg-type]
        lambda: cluster.wait(until=5),  # type: ignore[arg-type]
        lambda: cluster.stop(["vm0"], grace_s="1m"),  # type: ignore[arg-type]
        lambda: Cluster.find("7"),  # type: ignore[arg-type]
        lambda: Cluster.find(name=7),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()


def test_commands_whose_output_comes_as_it_is_said(cluster: Cluster) -> None:
    came: list[tuple[int, bytes, bool]] = []
    (outcome,) = cluster.run(Command(("echo", "x")), "vm2", on_output=lambda *each: came.append(each))
    assert (outcome.code, came) == (0, [(2, b"x\n", False)])


def test_who_does_not_answer_is_named(cluster: Cluster, many: Fleet) -> None:
    many.paused.add(1)
    try:
        with pytest.raises(GuestError, match=r"^vm1 is paused") as caught:
            cluster.exec(["true"])
        assert caught.value.find_hint() == "let it go on: pvc resume vm1"
        with pytest.raises(GuestError, match=r"^vm0: cannot write /no/such/: No such file or directory; vm1 is paused"):
            cluster.copy(__file__, "vm[0-1]:/no/such/")
    finally:
        many.paused.discard(1)


def test_beside_a_loop_of_the_program(cluster: Cluster) -> None:
    async def program() -> str:
        return cluster.exec(["echo", "x"], "vm0")[0].text

    assert asyncio.run(program()) == "x"


def test_copies(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(os.urandom(100_000))
    (tmp_path / "in").mkdir()
    done = cluster.copy(tmp_path / "data", f"vm0:{tmp_path}/in")
    assert [(each.rank, each.error) for each in done.vms] == [(0, None)]
    (result,) = cluster.copy(f"vm0:{tmp_path}/in/data", tmp_path / "back").vms
    assert (result.files, result.bytes) == (1, 100_000)
    assert (tmp_path / "back").read_bytes() == (tmp_path / "data").read_bytes()
    with pytest.raises(GuestError, match=r"^vm0: none: No such file"):
        cluster.copy(f"vm0:{tmp_path}/none", tmp_path)
    assert cluster.copy(f"vm0:{tmp_path}/none", tmp_path, check=False).failed


def test_a_forward_lasts_as_long_as_its_block(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as guest:
        port = guest.getsockname()[1]
        with cluster.forward(f"0:vm0:{port}", f"0:vm1:{port}") as (first, second):
            assert first.local != second.local
            with socket.create_connection(("127.0.0.1", first.local)) as near:
                far, _ = guest.accept()
                with far:
                    near.sendall(b"question")
                    near.shutdown(socket.SHUT_WR)
                    assert far.recv(100, socket.MSG_WAITALL) == b"question"
                    far.sendall(b"answer")
                assert near.recv(100, socket.MSG_WAITALL) == b"answer"
            shown = forwards.list_running(cluster.jobdir)
            assert [(each.pid, each.program, each.forwards) for each in shown] == [(os.getpid(), True, (first, second))]
            assert forwards.stop(cluster.jobdir, []) == []
            with pytest.raises(HostError, match="the program"):
                forwards.stop(cluster.jobdir, ["vm0"])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", first.local))
        assert forwards.list_running(cluster.jobdir) == ()


def test_what_a_server_says_before_it_closes_is_not_lost(cluster: Cluster) -> None:
    """As a web server does that refuses an upload after its first bytes."""
    with socket.create_server(("127.0.0.1", 0)) as guest:
        port = guest.getsockname()[1]

        def refuse() -> None:
            connection, _ = guest.accept()
            with connection:
                connection.recv(10)
                connection.sendall(b"413" * 100_000)

        thread = threading.Thread(target=refuse)
        thread.start()
        with cluster.forward(f"0:vm0:{port}") as (wish,), socket.create_connection(("127.0.0.1", wish.local)) as near:
            near.settimeout(60)
            sending = threading.Thread(target=upload, args=(near,))
            sending.start()
            said = b""
            with suppress(ConnectionResetError):
                while part := near.recv(1 << 16):
                    said += part
            sending.join()
        thread.join()
    assert said.startswith(b"413")


def upload(near: socket.socket) -> None:
    with suppress(OSError):
        near.sendall(bytes(8 << 20))


def test_many_datagrams_come_back(cluster: Cluster) -> None:
    """More than a window holds, one by one and of any size; each has its answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        guest.bind(("127.0.0.1", 0))

        def echo() -> None:
            while True:
                data, peer = guest.recvfrom(1 << 16)
                if data == b"end":
                    return
                guest.sendto(data, peer)

        thread = threading.Thread(target=echo)
        thread.start()
        with (
            cluster.forward(f"0:vm0:{guest.getsockname()[1]}", udp=True) as (wish,),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        ):
            near.connect(("127.0.0.1", wish.local))
            near.settimeout(60)
            for number in range(50):
                data = bytes([number]) * (1 + 1200 * number)
                near.send(data)
                assert near.recv(1 << 16) == data
            near.send(b"end")
            thread.join()


def test_what_cannot_be_forwarded(cluster: Cluster, many: Fleet) -> None:
    for text, error in (("vm9:80", UsageError), ("nonsense", UsageError)):
        with pytest.raises(error), cluster.forward(text):
            pass
    many.paused.add(2)
    try:
        with pytest.raises(GuestError, match="vm2 is paused"), cluster.forward("0:vm2:80"):
            pass
    finally:
        many.paused.discard(2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = f"{taken.getsockname()[1]}:vm0:80"
        with pytest.raises(UsageError, match="cannot listen"), cluster.forward(text):
            pass


def test_a_cluster_that_has_ended(cluster: Cluster) -> None:
    """Whether it was spoken to before, or not, each call says the same at once."""
    cluster.exec(["true"])
    cluster.jobdir.remove()
    for found in (cluster, Cluster(cluster.record)):
        for call in (
            lambda each: each.exec(["true"]),
            lambda each: each.status(),
            lambda each: each.wait(),
            lambda each: each.wait(until="agent"),
            lambda each: each.copy(__file__, "vm0:/tmp"),
            lambda each: each.logs("vm0"),
            lambda each: each.reset("vm0"),
            lambda each: each.forward("0:vm0:80").__enter__(),
        ):
            if found is cluster:
                found.control.record = replace(found.record, endpoints=closed_ports(found.record))
            with pytest.raises(EndedError, match=r"^cluster 1 has ended"):
                call(found)


def closed_ports(record: ClusterRecord) -> tuple[NodeEndpoint, ...]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return tuple(replace(each, port=port) for each in record.endpoints)


def test_a_port_that_nobody_listens_at(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as guest:
        port = guest.getsockname()[1]
        check_port(cluster.control, 0, port)
    # The text names no VM, so that those which lack the same are told of together
    with pytest.raises(GuestError, match=r"^cannot connect: Connection refused$"):
        check_port(cluster.control, 0, port)


def test_a_detached_command_that_is_not_there(cluster: Cluster) -> None:
    (outcome,) = cluster.run(Command((), attach=99), "vm1", on_output=lambda *_: None)
    assert (outcome.code, outcome.error) == (7, "no detached command has this number")
    assert outcome.hint == "pvc exec -w vm1 --list shows those that there are"
