"""ssh's way to a VM whose port is not to be reached from here: through the supervisor of the VM's node."""

from __future__ import annotations

import os
import select
import ssl
import sys

from pvc.errors import HostError
from pvc.ops.control import Control, close_quietly, send_request
from pvc.ops.status import find_endpoint

_CONNECT_S = 20.0
_CHUNK = 1 << 16


def carry(control: Control, rank: int) -> None:
    """Copy between standard input and output and a VM's ssh, until either side ends.

    :raise HostError: the VM's supervisor does not answer, or stopped to.
    :raise PvcError: the supervisor's own error.
    """
    endpoint = find_endpoint(control.record, rank)
    connection = control.connect(endpoint, _CONNECT_S)
    try:
        _, first = send_request(connection, {"op": "ssh", "vm": rank}, endpoint.node)
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
