# SPDX-License-Identifier: Apache-2.0
"""What root tells the daemon by root's socket, beside Slurm's own requests: both ends.

An order is a line of JSON, {"op": ORDER}; to anybody else it is a request that does not exist.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from pvc import __version__
from pvc.codec import from_data, read_json, to_data
from pvc.errors import HostError
from pvc.model.failure import Failure
from pvc.model.nodeview import DaemonState
from pvc.node.context import Context

# Users can fill the backlog of a socket that they may use, so Slurm's own have another one: spank/client.c.
SOCKET, ROOTS_OWN = "node.sock", ".root"
# "state" asks, "drain" has drain.json read again, "reload" the configuration.
ORDERS = ("state", "drain", "reload")
_TIMEOUT_S = 60.0
_LIMIT = 1 << 20


def obey(context: Context, order: str) -> dict[str, Any]:
    """The daemon's side: do it; the answer has the daemon's state.

    :raise PvcError: it cannot be done.
    """
    if order == "drain":
        context.heed_drain()
    elif order == "reload":
        context.reload()
    state = DaemonState(__version__, os.getpid(), context.config_state())
    return {"ok": True, "state": to_data(state)}


def is_serving(runtime_dir: Path) -> bool:
    """Whether a daemon listens at this node's socket."""
    connection = _connect(runtime_dir)
    if connection is not None:
        connection.close()
    return connection is not None


def tell_daemon(runtime_dir: Path, order: str) -> DaemonState | None:
    """The caller's side: the state of the daemon once it has obeyed; None: none serves.

    :raise PvcError: it does not answer, or cannot do it.
    """
    connection = _connect(runtime_dir)
    if connection is None:
        return None
    try:
        with connection:
            connection.sendall(json.dumps({"op": order}).encode() + b"\n")
            answer = read_json(_read_all(connection))
        if answer["ok"]:
            return from_data(DaemonState, answer["state"])
        error = Failure.of_data(answer).rebuild()
    except OSError as err:
        raise HostError("the pvc-node that serves this node does not answer") from err
    except (ValueError, KeyError, TypeError):
        raise HostError(
            "the answer of the pvc-node that serves this node is not understood",
            hint="it is of another version: systemctl restart pvc-node",
        ) from None
    raise error


def _connect(runtime_dir: Path) -> socket.socket | None:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    client.settimeout(_TIMEOUT_S)
    try:
        client.connect(os.fspath(runtime_dir / (SOCKET + ROOTS_OWN)))
    except OSError:
        client.close()
        return None
    return client


def _read_all(connection: socket.socket) -> str:
    data = b""
    while not data.endswith(b"\n") and len(data) < _LIMIT:
        chunk = connection.recv(65536)
        if not chunk:
            break
        data += chunk
    return data.decode()
