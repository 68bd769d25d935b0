# SPDX-License-Identifier: Apache-2.0
"""Turn on etcd's password authentication, so that the nodes' users have no access."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from pvc.errors import StateError

LOG = logging.getLogger(__name__)

_TIMEOUT_S = 10.0


def start_setup(password_file: Path) -> int:
    """Do it in a child of the caller and return the child's pid; its exit code is 0 when it is done."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            setup_root(password_file.read_text().strip())
            code = 0
        except (OSError, StateError) as err:
            LOG.error("etcd: %s", err)
        finally:
            os._exit(code)
    return pid


def setup_root(password: str) -> None:
    """Give etcd on this machine a root user and demand authentication; done already is fine.

    Speaks the JSON gateway of etcd 3.4 and later: names and passwords go as plain text, keys would be base64.

    :raise StateError: etcd refused, or has no leader for longer than 10 s.
    """
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        status, answer = _post("auth/user/add", {"name": "root", "password": password})
        if status == 200 or "already exists" in str(answer):
            break
        if "user name is empty" in str(answer) or status == 401:
            return  # authentication is on: a node that was booted again
        if time.monotonic() > deadline:
            raise StateError(f"etcd does not add a user: {answer}")
        time.sleep(0.02)
    for path, data in (
        ("auth/role/add", {"name": "root"}),
        ("auth/user/grant", {"user": "root", "role": "root"}),
        ("auth/enable", {}),
    ):
        status, answer = _post(path, data)
        if status != 200 and "already" not in str(answer):
            raise StateError(f"etcd refuses {path}: {answer}")


def _post(path: str, data: dict[str, str]) -> tuple[int, Any]:
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", 2379, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", f"/v3/{path}", json.dumps(data))
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    finally:
        connection.close()
