"""The store in etcd 3, through etcd-sdk-python (module pyetcd).

One connection is kept; a failed call drops it and is tried once more on each server, since tokens
expire (etcd: --auth-token-ttl) and servers restart. Every call has a time limit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pvc.errors import StateError
from pvc.model.site import EtcdSettings
from pvc.state.store import Absent, Check, Delete, DeletePrefix, Put, Result, Write

T = TypeVar("T")
_TIMEOUT_S = 3.0


class EtcdStore:
    """See ``store.Store``. Thread-safe."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._client: Any = None
        self._lock = threading.Lock()

    def transact(self, checks: Sequence[Check], writes: Sequence[Write], reads: Sequence[str] = ()) -> Result:
        def call(client: Any) -> Result:
            verbs = client.transactions
            compare = [_compare(verbs, check) for check in checks]
            then = [_write(verbs, write) for write in writes] + [verbs.get(key) for key in reads]
            done, answers = client.transaction(compare=compare, success=then, failure=[])
            values: dict[str, str] = {}
            for answer in answers[len(writes) :] if done else []:
                for value, facts in answer:
                    values[facts.key.decode()] = value.decode()
            return Result(done, values)

        return self._call(call)

    def read_prefix(self, prefix: str) -> dict[str, str]:
        def call(client: Any) -> dict[str, str]:
            return {facts.key.decode(): value.decode() for value, facts in client.get_prefix(prefix)}

        return self._call(call)

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _call(self, function: Callable[[Any], T]) -> T:
        with self._lock:
            error: Exception | None = None
            for server in (None, *self._settings.servers):
                try:
                    if server is not None:
                        self._client = self._connect(server)
                    if self._client is not None:
                        return function(self._client)
                except Exception as err:  # noqa: BLE001 - grpc raises types of its own; all of them mean: no answer
                    error = err
                    self._drop()
            places = ", ".join(f"{server}:{self._settings.port}" for server in self._settings.servers)
            reason = type(error).__name__ if error and not str(error) else str(error)
            raise StateError(
                f"the state store (etcd at {places}) does not answer: {_first_line(reason)}",
                hint="ask the administrator to start etcd, then try again",
            )

    def _connect(self, server: str) -> Any:
        import pyetcd

        settings = self._settings
        secret: dict[str, str] = {}
        if settings.auth_type == "password":
            try:
                password = Path(settings.password_file).read_text().strip()
            except OSError as err:
                raise StateError(f"cannot read etcd's password in {settings.password_file}: {err.strerror}") from err
            secret = {"user": settings.user, "password": password}
        secure = {"ca_cert": settings.ca_cert} if settings.protocol == "https" else {}
        client = pyetcd.client(host=server, port=settings.port, timeout=_TIMEOUT_S, **secret, **secure)
        if not secure:
            # gRPC refuses call credentials on a plain channel; the token also travels as metadata, which it takes.
            client.call_credentials = None
        return client

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _first_line(text: str) -> str:
    # grpc puts the whole call into the text; "details" is the sentence meant for people.
    for line in text.splitlines():
        if "details = " in line:
            return line.split("details = ", 1)[1].strip('" ')
    return text.splitlines()[0] if text else "no reason given"


def _compare(verbs: Any, check: Check) -> Any:
    if isinstance(check, Absent):
        return verbs.version(check.key) == 0
    # An empty range compares as one key of version 0 (etcd: applyCompares).
    return verbs.version(check.prefix, _range_end(check.prefix)) == 0


def _write(verbs: Any, write: Write) -> Any:
    match write:
        case Put(key, value):
            return verbs.put(key, value)
        case Delete(key):
            return verbs.delete(key)
        case DeletePrefix(prefix):
            return verbs.delete(prefix, range_end=_range_end(prefix))


def _range_end(prefix: str) -> str:
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
