"""Asking the supervisors of a cluster: one TLS connection a request, all nodes at the same time."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from pvc import codec
from pvc.errors import GuestError, HostError, JobError, PvcError, StateError, UsageError
from pvc.host.peer import keep_alive
from pvc.model.cluster import ClusterRecord, NodeEndpoint
from pvc.model.vm import VmStatus
from pvc.ops.jobdir import JobDir

Result = TypeVar("Result")
# X509_V_FLAG_NO_CHECK_TIME of OpenSSL: a node whose clock is behind must not refuse a pair made just now
_NO_CHECK_TIME = 0x200000
_MAX_LINE = 64 << 20
_WORKERS = 64
_ERRORS: dict[int, type[PvcError]] = {
    error.exit_code: error for error in (UsageError, JobError, StateError, HostError, GuestError)
}


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

    def __init__(self, record: ClusterRecord, jobdir: JobDir) -> None:
        """:raise JobError: the cluster's keys are gone, so is the cluster."""
        self.record = record
        try:
            self._tls = client_context(jobdir)
        except (OSError, ssl.SSLError) as err:
            raise JobError(f"the keys of cluster {record.job_id} cannot be used") from err

    @property
    def tls(self) -> ssl.SSLContext:
        """For connections of other kinds than these."""
        return self._tls

    def connect(self, endpoint: NodeEndpoint, timeout_s: float) -> ssl.SSLSocket:
        """A connection to one supervisor.

        :raise HostError: it does not answer.
        """
        try:
            plain = socket.create_connection((endpoint.host, endpoint.port), timeout=timeout_s)
            try:
                keep_alive(plain)
                return self._tls.wrap_socket(plain)
            except BaseException:
                plain.close()
                raise
        except OSError as err:
            raise HostError(f"the supervisor on {endpoint.node} does not answer") from err

    def ask(self, endpoint: NodeEndpoint, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """One request, one answer.

        :raise HostError: no answer.
        :raise PvcError: the supervisor's own error.
        """
        with self.connect(endpoint, timeout_s) as connection:
            answer, _ = send_request(connection, request, endpoint.node)
            return answer

    def read_data(self, endpoint: NodeEndpoint, request: dict[str, Any], timeout_s: float) -> bytes:
        """The bytes that follow an answer, such as all that a VM's console has said (``console-log``).

        :raise PvcError: no answer, or a refusal.
        """
        with self.connect(endpoint, timeout_s) as connection:
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
        """The same request to every node with VMs (or those of ``nodes``), ``at_once`` at the same time."""
        known = {endpoint.node: endpoint for endpoint in self.record.endpoints}
        wanted = [share.node for share in self.record.placement.shares if share.count]
        if nodes is not None:
            wanted = [node for node in wanted if node in nodes]

        def ask(node: str) -> NodeReply:
            if node not in known:
                return NodeReply(node, {}, "it never listened")
            try:
                return NodeReply(node, self.ask(known[node], request, timeout_s))
            except PvcError as err:
                return NodeReply(node, {}, str(err), err.find_hint())

        return in_parallel(ask, wanted, at_once)

    def status(self, *, timeout_s: float = 5.0, nodes: Sequence[str] | None = None) -> tuple[NodeAnswer, ...]:
        """What every node (or those of ``nodes``) says of its VMs; a silent one has its error."""
        return tuple(_read_vms(reply) for reply in self.ask_nodes({"op": "status"}, timeout_s=timeout_s, nodes=nodes))

    def stop(self, *, grace_s: float, timeout_s: float) -> dict[str, str]:
        """Shut all VMs down and let the supervisors leave; returns the errors by node."""

        def ask(endpoint: NodeEndpoint) -> tuple[str, str | None]:
            try:
                self.ask(endpoint, {"op": "stop", "grace_s": grace_s}, timeout_s)
            except PvcError as err:
                return endpoint.node, str(err)
            return endpoint.node, None

        return {node: error for node, error in in_parallel(ask, self.record.endpoints) if error is not None}


def _read_vms(reply: NodeReply) -> NodeAnswer:
    if reply.error is not None:
        return NodeAnswer(reply.node, error=reply.error)
    try:
        return NodeAnswer(reply.node, codec.from_data(tuple[VmStatus, ...], reply.answer["vms"]))
    except (ValueError, KeyError) as err:
        return NodeAnswer(reply.node, error=f"its answer is not understood: {err}")


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
        answer = json.loads(line)
    except (OSError, ValueError) as err:
        raise HostError(f"the supervisor on {node} does not answer") from err
    if not isinstance(answer, dict):
        raise HostError(f"the supervisor on {node} answers nonsense")
    raise_refusal(answer, node)
    return answer, rest


def raise_refusal(answer: dict[str, Any], node: str) -> None:
    """:raise PvcError: the answer is a refusal; text, hint and exit code are the supervisor's."""
    if not answer.get("ok"):
        kind = _ERRORS.get(answer.get("exit_code", 6), HostError)
        raise kind(f"{node}: {answer.get('error', 'refused')}", hint=answer.get("hint"))


def in_parallel(work: Callable[[Any], Result], items: Sequence[Any], at_once: int = _WORKERS) -> list[Result]:
    """``work`` of each item, in order, by at most ``at_once`` threads."""
    if len(items) == 1:
        return [work(items[0])]
    results: dict[int, Result] = {}
    todo = list(enumerate(items))
    lock = threading.Lock()

    def serve() -> None:
        while True:
            with lock:
                if not todo:
                    return
                index, item = todo.pop()
            results[index] = work(item)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(min(at_once, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(items))]


def close_quietly(connection: ssl.SSLSocket) -> None:
    """Close without waiting for the peer's part of TLS' farewell."""
    with suppress(OSError):
        connection.close()
