# SPDX-License-Identifier: Apache-2.0
"""Asking the supervisors of a cluster: one TLS connection a request, all nodes at the same time."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pvc import codec
from pvc.channel.doorword import find_door_word
from pvc.errors import EndedError, HostError, JobError, PvcError, SuspendedError
from pvc.host.peer import keep_alive
from pvc.model.cluster import ClusterRecord, NodeEndpoint
from pvc.model.failure import Failure
from pvc.model.vm import VmStatus
from pvc.ops.jobdir import JobDir
from pvc.ops.pulse import Pulse

Result = TypeVar("Result")
# X509_V_FLAG_NO_CHECK_TIME of OpenSSL: a node whose clock is behind must not refuse a pair made just now
_NO_CHECK_TIME = 0x200000
_MAX_LINE = 64 << 20
_WORKERS = 64
# A supervisor that strangers crowd out may let go of a connection before it has seen whose it is.
_TRIES, _PAUSE_S = 6, 0.1
# Clocks are one where they are less than that apart: an answer is on its way for a while, too.
_CLOCKS_S = 3.0
# The kernel takes connections for processes that stand still, as those of a suspended job; none of them answers.
_HANDSHAKE_S = 1.0


@dataclass(frozen=True)
class NodeAnswer:
    """What one node answered: its VMs, or why there is no answer."""

    node: str
    vms: tuple[VmStatus, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class NodeReply:
    """One node's answer to any request, or why there is none."""

    node: str
    answer: dict[str, Any]
    error: str | None = None
    hint: str | None = None


class Control:
    """The control ports of one cluster."""

    def __init__(self, record: ClusterRecord, jobdir: JobDir, pulse: Pulse | None = None) -> None:
        """:raise EndedError: the cluster's keys are gone, so is the cluster.
        :raise JobError: they cannot be read.
        """
        self.record = record
        self._pulse = pulse or Pulse(record, jobdir)
        try:
            self._tls = client_context(jobdir)
            self._word = find_door_word(jobdir.tls_key.read_text())
        except FileNotFoundError:
            raise EndedError(f"cluster {record.job_id} has ended", hint="pvc ps lists those that run") from None
        except OSError as err:
            raise JobError(f"the keys of cluster {record.job_id} cannot be used") from err

    @property
    def tls(self) -> ssl.SSLContext:
        """For connections of other kinds than these."""
        return self._tls

    @property
    def door_word(self) -> str:
        """What the supervisors know this cluster's callers by: the server's name in TLS."""
        return self._word

    def check_running(self) -> None:
        """For who gets no answer: is there still somebody who could give one?

        :raise EndedError: the cluster has ended.
        :raise SuspendedError: its job is suspended.
        """
        self._pulse.check()

    @contextmanager
    def talking(self) -> Iterator[None]:
        """A supervisor that does not answer in the block is told as the cluster's end where that is the reason.

        :raise EndedError: the cluster has ended.
        :raise SuspendedError: its job is suspended.
        """
        try:
            yield
        except HostError:
            try:
                self.check_running()
            except JobError as why:
                raise why from None
            raise

    def connect(self, endpoint: NodeEndpoint, timeout_s: float) -> ssl.SSLSocket:
        """A connection to one supervisor.

        :raise EndedError: the cluster has ended.
        :raise SuspendedError: its job is suspended.
        :raise HostError: it does not answer.
        """
        with self.talking():
            return self._try_connect(endpoint, timeout_s)

    def _try_connect(self, endpoint: NodeEndpoint, timeout_s: float) -> ssl.SSLSocket:
        deadline = time.monotonic() + timeout_s
        for left in reversed(range(_TRIES)):
            try:
                return self._connect(endpoint, max(0.1, deadline - time.monotonic()), timeout_s)
            except OSError as err:
                if not left or not is_turned_away(err) or time.monotonic() >= deadline:
                    raise HostError(f"the supervisor on {endpoint.node} does not answer") from err
            time.sleep(_PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    def _connect(self, endpoint: NodeEndpoint, connect_s: float, timeout_s: float) -> ssl.SSLSocket:
        plain = socket.create_connection((endpoint.host, endpoint.port), timeout=connect_s)
        try:
            keep_alive(plain)
            # Bytes, because a text is encoded by IDNA's rules, whose import takes milliseconds.
            name = self._word.encode()
            connection = self._tls.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False)
        except BaseException:
            plain.close()
            raise
        try:
            self._shake_hands(connection, connect_s)
            connection.settimeout(timeout_s)
            return connection
        except BaseException:
            connection.close()
            raise

    def _shake_hands(self, connection: ssl.SSLSocket, timeout_s: float) -> None:
        """:raise OSError: there is no answer, or none that is understood.
        :raise JobError: the cluster has ended, or stands still.
        """
        deadline = time.monotonic() + timeout_s
        connection.settimeout(min(_HANDSHAKE_S, timeout_s))
        while True:
            try:
                connection.do_handshake()
                return
            except TimeoutError:
                self.check_running()
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError(f"no answer within {timeout_s:.0f} s") from None
                connection.settimeout(left_s)

    def ask(self, endpoint: NodeEndpoint, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """One request, one answer.

        :raise HostError: no answer.
        :raise PvcError: the supervisor's own error.
        """
        with self.talking(), self.connect(endpoint, timeout_s) as connection:
            answer, _ = send_request(connection, request, endpoint.node)
            return answer

    def read_data(self, endpoint: NodeEndpoint, request: dict[str, Any], timeout_s: float) -> bytes:
        """The bytes that follow an answer, such as all that a VM's console has said (``console-log``).

        :raise PvcError: no answer, or a refusal.
        """
        with self.talking(), self.connect(endpoint, timeout_s) as connection:
            answer, data = send_request(connection, request, endpoint.node)
            size = int(answer.get("size", 0))
            try:
                while len(data) < size:
                    chunk = connection.recv(1 << 16)
                    if not chunk:
                        break
                    data += chunk
            except OSError as err:
                raise HostError(f"the supervisor on {endpoint.node} stopped answering") from err
        return data[:size]

    def read_log(self, endpoint: NodeEndpoint, rank: int, timeout_s: float) -> bytes:
        """All that a VM's console has said.

        :raise PvcError: no answer, or no such VM.
        """
        return self.read_data(endpoint, {"op": "console-log", "vm": rank}, timeout_s)

    def ask_nodes(
        self,
        request: dict[str, Any],
        *,
        timeout_s: float,
        nodes: Sequence[str] | None = None,
        at_once: int = _WORKERS,
    ) -> list[NodeReply]:
        """The same request to every node with VMs (or those of ``nodes``), ``at_once`` at the same time.

        :raise EndedError: the cluster has ended.
        :raise SuspendedError: its job is suspended.
        """
        known = {endpoint.node: endpoint for endpoint in self.record.endpoints}
        wanted = [share.node for share in self.record.placement.shares if share.count]
        if nodes is not None:
            wanted = [node for node in wanted if node in nodes]

        def ask(node: str) -> NodeReply:
            if node not in known:
                return NodeReply(node, {}, "it never listened")
            try:
                return NodeReply(node, self.ask(known[node], request, timeout_s))
            except (EndedError, SuspendedError):
                raise
            except PvcError as err:
                return NodeReply(node, {}, str(err), err.find_hint())

        return in_parallel(ask, wanted, at_once)

    def status(self, *, timeout_s: float = 5.0, nodes: Sequence[str] | None = None) -> tuple[NodeAnswer, ...]:
        """What every node (or those of ``nodes``) says of its VMs; a silent one has its error."""
        return tuple(_read_vms(reply) for reply in self.ask_nodes({"op": "status"}, timeout_s=timeout_s, nodes=nodes))

    def stop(self, *, grace_s: float, timeout_s: float) -> dict[str, str]:
        """Shut all VMs down and let the supervisors leave; returns the errors by node.

        :raise EndedError: the cluster has ended.
        :raise SuspendedError: its job is suspended.
        """

        def ask(endpoint: NodeEndpoint) -> tuple[str, str | None]:
            try:
                self.ask(endpoint, {"op": "stop", "grace_s": grace_s}, timeout_s)
            except (EndedError, SuspendedError):
                raise
            except PvcError as err:
                return endpoint.node, str(err)
            return endpoint.node, None

        return {node: error for node, error in in_parallel(ask, self.record.endpoints) if error is not None}


def is_turned_away(err: BaseException) -> bool:
    """Whether a supervisor took a connection and let it go in the middle of the handshake."""
    return isinstance(err, ConnectionResetError | ConnectionAbortedError | BrokenPipeError | ssl.SSLEOFError)


def _read_vms(reply: NodeReply) -> NodeAnswer:
    if reply.error is not None:
        return NodeAnswer(reply.node, error=reply.error)
    try:
        vms = codec.from_data(tuple[VmStatus, ...], reply.answer["vms"])
        # A node's clock may be minutes away from ours, by which the ages of what it tells are counted. Supervisors of
        # earlier versions do not tell their time.
        ahead_s = time.time() - float(reply.answer.get("now", time.time()))
        if abs(ahead_s) >= _CLOCKS_S:
            vms = tuple(shift_times(vm, ahead_s) for vm in vms)
        return NodeAnswer(reply.node, vms)
    except (ValueError, KeyError, TypeError) as err:
        return NodeAnswer(reply.node, error=f"its answer is not understood: {err}")


def shift_times(vm: VmStatus, seconds: float) -> VmStatus:
    """The same by a clock that is ``seconds`` ahead of the one that its times were taken from."""

    def shift(moment: float | None) -> float | None:
        return None if moment is None else moment + seconds

    agent = replace(vm.agent, since=shift(vm.agent.since))
    times = shift(vm.started), shift(vm.reachable), shift(vm.since)
    return replace(vm, started=times[0], reachable=times[1], since=times[2], agent=agent)


def client_context(jobdir: JobDir) -> ssl.SSLContext:
    """TLS that trusts the cluster's own pair and nobody else, and shows it.

    :raise OSError: the files are gone.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= _NO_CHECK_TIME
    context.load_verify_locations(cafile=jobdir.tls_cert)
    context.load_cert_chain(jobdir.tls_cert, jobdir.tls_key)
    return context


def send_request(connection: ssl.SSLSocket, request: dict[str, Any], node: str) -> tuple[dict[str, Any], bytes]:
    """Send a request; returns the answer and what came right behind it.

    :raise HostError: the supervisor closed the connection or answers nonsense.
    :raise PvcError: the supervisor's own error.
    """
    try:
        connection.sendall(json.dumps(request).encode() + b"\n")
        data = b""
        while b"\n" not in data:
            chunk = connection.recv(1 << 16)
            if not chunk or len(data) > _MAX_LINE:
                raise HostError(f"the supervisor on {node} gave no answer")
            data += chunk
        line, _, rest = data.partition(b"\n")
        answer = codec.read_json(line)
    except (OSError, ValueError) as err:
        raise HostError(f"the supervisor on {node} does not answer") from err
    if not isinstance(answer, dict):
        raise HostError(f"the supervisor on {node} answers nonsense")
    raise_refusal(answer, node)
    return answer, rest


def raise_refusal(answer: dict[str, Any], node: str) -> None:
    """:raise PvcError: the answer is a refusal; text, hint and exit code are the supervisor's."""
    if not answer.get("ok"):
        try:
            failure = Failure.of_data(answer)
        except ValueError:
            raise HostError(f"the supervisor on {node} answers nonsense") from None
        raise failure.about(node).rebuild()


def in_parallel(work: Callable[[Any], Result], items: Sequence[Any], at_once: int = _WORKERS) -> list[Result]:
    """``work`` of each item, in order, by at most ``at_once`` threads; the first error of one is raised at the end."""
    if len(items) == 1:
        return [work(items[0])]
    results: dict[int, Result] = {}
    errors: list[BaseException] = []
    todo = list(enumerate(items))
    lock = threading.Lock()

    def serve() -> None:
        while True:
            with lock:
                if not todo:
                    return
                index, item = todo.pop()
            try:
                results[index] = work(item)
            except BaseException as err:  # noqa: BLE001  it is the caller's
                errors.append(err)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(at_once, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(items))]


def close_quietly(connection: ssl.SSLSocket) -> None:
    """Close without waiting for the peer's part of TLS' farewell."""
    with suppress(OSError):
        connection.close()
