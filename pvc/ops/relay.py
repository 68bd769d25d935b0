"""ssh's way to a VM whose port only the job's owner reaches, on the VM's node: through that node's supervisor."""

from __future__ import annotations

import os
import select
import ssl
import sys

from pvc.errors import HostError
from pvc.ops.control import Control, close_quietly, send_request

_CONNECT_S = 20.0
_CHUNK = 1 << 16


def carry(control: Control, host: str, port: int) -> None:
    """Copy between standard input and output and a forwarded port of the node at ``host``, until either side ends.

    :raise HostError: no supervisor of the cluster is there, or it stopped answering.
    :raise PvcError: the supervisor's own error.
    """
    endpoint = next((each for each in control.record.endpoints if each.host == host), None)
    if endpoint is None:
        raise HostError(f"no supervisor of the cluster listens at {host}")
    connection = control.connect(endpoint, _CONNECT_S)
    try:
        _, first = send_request(connection, {"op": "ssh", "port": port}, endpoint.node)
        _write(first)
        # TLS reads whole records: what is decrypted already is not seen by select(2).
        connection.settimeout(None)
        _copy(connection)
    except (OSError, ssl.SSLError) as err:
        raise HostError(f"the supervisor on {endpoint.node} stopped answering") from err
    finally:
        close_quietly(connection)


def _copy(connection: ssl.SSLSocket) -> None:
    stdin, peer = sys.stdin.fileno(), connection.fileno()
    while True:
        ready = [peer] if connection.pending() else select.select([stdin, peer], [], [])[0]
        if peer in ready:
            data = connection.recv(_CHUNK)
            if not data:
                return
            _write(data)
        if stdin in ready:
            typed = os.read(stdin, _CHUNK)
            if not typed:
                return
            connection.sendall(typed)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]
