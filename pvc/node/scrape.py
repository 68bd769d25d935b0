# SPDX-License-Identifier: Apache-2.0
"""Metrics for who asks by HTTP, at the address that metrics-address of pvc-batch.yaml(5) names.

Whoever reaches that address may ask. So few are served at a time and nobody for long, and the answer is made once a
second at most, whoever asks for it.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pvc import __version__
from pvc.errors import ConfigError, HostError
from pvc.node.context import Context
from pvc.node.metrics import CONTENT_TYPE, Sample, encode
from pvc.state.ledger import Ledger, Record, UnreadableError, read_jobs

_MOST = 4
_TIMEOUT_S = 3.0
_LIMIT = 8192
_FRESH_S = 1.0


def listen(address: str) -> socket.socket:
    """A listener at a path or at ADDRESS:PORT; a socket at a path is root's alone.

    :raise HostError: it cannot be made.
    """
    family = socket.AF_UNIX if address.startswith("/") else socket.AF_INET6 if "[" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_UNIX:
            with suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.lstat(address).st_mode):
                    os.unlink(address)  # what a pvc-node has left that was killed
            mask = os.umask(0o177)
            try:
                listener.bind(address)
            finally:
                os.umask(mask)
        else:
            host, _, port = address.rpartition(":")
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host.strip("[]"), int(port)))
        listener.listen(_MOST)
        listener.setblocking(False)
    except OSError as err:
        listener.close()
        raise HostError(f"cannot serve metrics at {address}") from err
    return listener


class Scrapes:
    """Serves who asks, each in a thread; whoever comes while all places are taken is turned away."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._places = threading.Semaphore(_MOST)
        self._lock = threading.Lock()
        self._text, self._made_at = "", float("-inf")

    def admit(self, connection: socket.socket) -> bool:
        """Answer in a thread of its own; False: there is no place, and the connection is closed."""
        if self._places.acquire(blocking=False):
            try:
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()
            except RuntimeError:
                self._places.release()
            else:
                return True
        connection.close()
        return False

    def _converse(self, connection: socket.socket) -> None:
        try:
            with connection, suppress(OSError):
                words = _read_request(connection)
                connection.settimeout(_TIMEOUT_S)
                connection.sendall(self._answer(words))
        finally:
            self._places.release()

    def _answer(self, words: list[str]) -> bytes:
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _respond("400 Bad Request")
        if words[0] not in ("GET", "HEAD"):
            return _respond("405 Method Not Allowed")
        if words[1].partition("?")[0] != "/metrics":
            return _respond("404 Not Found")
        body = self._read().encode()
        return _respond("200 OK", body, CONTENT_TYPE, only_head=words[0] == "HEAD")

    def _read(self) -> str:
        with self._lock:
            if time.monotonic() - self._made_at >= _FRESH_S:
                self._text = render(self._context)
                self._made_at = time.monotonic()
            return self._text


def render(context: Context) -> str:
    """All metrics now."""
    return encode([("pvc_build_info", {"version": __version__}, 1), *context.metrics.samples(), *_collect(context)])


def _collect(context: Context) -> Iterator[Sample]:
    """What is counted when somebody asks, from the records."""
    vms = Counter({"ready": 0, "broken": 0})
    phases = Counter({"ready": 0, "refused": 0, "unfinished": 0, "unreadable": 0})
    leases = Counter({"ports": 0, "devices": 0, "uplinks": 0, "meters": 0})
    users: Counter[int] = Counter()
    for job_id in sorted({*read_jobs(context.runtime_dir), *read_jobs(context.state_dir)}):
        ledger = Ledger(context.state_dir, job_id)
        try:
            record, ready = context.read_record(job_id), ledger.read_ready()
        except (UnreadableError, OSError):
            phases["unreadable"] += 1
            continue
        refused = record is not None and record.refusal is not None
        phases["ready" if ready is not None else "refused" if refused else "unfinished"] += 1
        if record is not None:
            _count_leases(leases, record)
        if ready is not None:
            vms["broken" if ledger.read_upkeep().standing else "ready"] += len(ready.grant.vms)
            users[record.uid if record is not None else -1] += len(ready.grant.vms)
    yield from (("pvc_vms", {"state": state}, count) for state, count in vms.items())
    yield from (("pvc_ledger_records", {"phase": phase}, count) for phase, count in phases.items())
    yield from (("pvc_leases", {"kind": kind}, count) for kind, count in leases.items())
    yield "pvc_drained", {}, context.find_drain() is not None
    state = context.config_state()
    yield "pvc_config_refused", {}, state.refused_at is not None
    if state.read_at is not None:
        yield "pvc_config_read_timestamp_seconds", {}, state.read_at
    with suppress(ConfigError):
        if context.config().batch.metrics_users:
            yield from (("pvc_user_vms", {"user": _name(uid)}, count) for uid, count in sorted(users.items()))


def _count_leases(leases: Counter[str], record: Record) -> None:
    leases["ports"] += len(record.ports)
    leases["devices"] += len(record.devices)
    leases["uplinks"] += record.uplink_slot is not None
    leases["meters"] += len(record.meters)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def _read_request(connection: socket.socket) -> list[str]:
    """The words of the first line, once the head has come."""
    data = b""
    deadline = time.monotonic() + _TIMEOUT_S
    while b"\r\n\r\n" not in data and len(data) < _LIMIT:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(_LIMIT)
        if not chunk:
            break
        data += chunk
    return data.partition(b"\r\n")[0].decode("latin-1").split(" ")


def _respond(status: str, body: bytes = b"", kind: str = "text/plain", *, only_head: bool = False) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if only_head else body)


def remove(address: str) -> None:
    """Take a listener's path away."""
    if address.startswith("/"):
        Path(address).unlink(missing_ok=True)
