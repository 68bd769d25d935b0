# SPDX-License-Identifier: Apache-2.0
"""The store in etcd 3, through etcd-sdk-python (module pyetcd). All keys are below the site's prefix.

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
from pvc.state.etcderrors import explain
from pvc.state.store import Absent, Check, Delete, DeletePrefix, Put, Result, Write

T = TypeVar("T")
_TIMEOUT_S = 3.0


class EtcdStore:
    """See ``store.Store``. Thread-safe."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._top = f"/{settings.prefix}/"
        self._client: Any = None
        self._lock = threading.Lock()

    def transact(self, checks: Sequence[Check], writes: Sequence[Write], reads: Sequence[str] = ()) -> Result:
        def call(client: Any) -> Result:
            verbs = client.transactions
            compare = [self._compare(verbs, check) for check in checks]
            then = [self._write(verbs, write) for write in writes] + [verbs.get(self._top + key) for key in reads]
            done, answers = client.transaction(compare=compare, success=then, failure=[])
            values: dict[str, str] = {}
            for answer in answers[len(writes) :] if done else []:
                for value, facts in answer:
                    values[self._name(facts.key)] = value.decode()
            return Result(done, values)

        return self._call(call)

    def read_prefix(self, prefix: str) -> dict[str, str]:
        def call(client: Any) -> dict[str, str]:
            found = client.get_prefix(self._top + prefix)
            return {self._name(facts.key): value.decode() for value, facts in found}

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
            if isinstance(error, StateError):
                raise error
            text, hint = explain(error, self._settings)
            # gRPC's own words are in the text as far as they say more than it.
            raise StateError(f"the state store (etcd at {places}) {text}", hint=hint) from None

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

    def _name(self, key: bytes) -> str:
        return key.decode().removeprefix(self._top)

    def _compare(self, verbs: Any, check: Check) -> Any:
        if isinstance(check, Absent):
            return verbs.version(self._top + check.key) == 0
        # An empty range compares as one key of version 0 (etcd: applyCompares).
        return verbs.version(self._top + check.prefix, _range_end(self._top + check.prefix)) == 0

    def _write(self, verbs: Any, write: Write) -> Any:
        match write:
            case Put(key, value):
                return verbs.put(self._top + key, value)
            case Delete(key):
                return verbs.delete(self._top + key)
            case DeletePrefix(prefix):
                return verbs.delete(self._top + prefix, range_end=_range_end(self._top + prefix))

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _range_end(prefix: str) -> str:
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
