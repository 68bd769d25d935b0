# SPDX-License-Identifier: Apache-2.0
"""What a cluster's own callers say first at a control port, so that a supervisor knows them before it works for them.

It is the server's name in TLS' first message. It proves nothing, for it can be read on the way, and it opens nothing:
the handshake does. But who cannot have it is let go at the cost of a socket, and not of a handshake.
"""

from __future__ import annotations

from hashlib import sha256

_HEAD = b"pvc control port\0"


def find_door_word(tls_key: str) -> str:
    """A host name that follows from the cluster's private key, and from which the key does not follow."""
    return "pvc-" + sha256(_HEAD + tls_key.strip().encode()).hexdigest()[:40]
