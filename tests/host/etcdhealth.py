# SPDX-License-Identifier: Apache-2.0
"""Whether an etcd that was started just now serves."""

from __future__ import annotations

import http.client
import json
import ssl
from contextlib import closing

from tests.waits import wait_until

_PORT = 2379


def wait_for_etcd(host: str, scheme: str = "http") -> None:
    """Return when it answers: it listens before it has become its own leader, and until then has no answer."""
    wait_until(lambda: _is_healthy(host, scheme), lack="etcd serves nobody", bear=(OSError, http.client.HTTPException))


def _is_healthy(host: str, scheme: str) -> bool:
    if scheme == "https":
        anyone = ssl.create_default_context()
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        link: http.client.HTTPConnection = http.client.HTTPSConnection(host, _PORT, timeout=5, context=anyone)
    else:
        link = http.client.HTTPConnection(host, _PORT, timeout=5)
    with closing(link):
        link.request("GET", "/health")
        return bool(json.loads(link.getresponse().read())["health"] == "true")
