# SPDX-License-Identifier: Apache-2.0
"""Why etcd did not do what it was asked: in words of an administrator's, with the next step.

What tells is gRPC's code and what etcd or the TLS library said: etcd's texts are those of its rpctypes, the same since
3.3.
"""

from __future__ import annotations

from typing import Any

from pvc.model.site import EtcdSettings

_AGAIN = "ask the administrator to start etcd, then try again"
# (a part of what was said, in lower case; what it means; the next step)
_SAID = (
    ("database space exceeded", "has no space left for changes", "on a member: etcdctl compact, defrag, alarm disarm"),
    ("invalid user id or password", "refuses user {user}: wrong password", "see etcd-user and {password_file}"),
    ("user name is empty", "wants a password", "etcd-auth-type: password in batch.yaml"),
    ("invalid auth token", "does not know this session any more", _AGAIN),
    ("authentication is not enabled", "knows no passwords", "etcd-auth-type: none, or etcdctl auth enable"),
    ("permission denied", "does not let user {user} write below /{prefix}/", "etcdctl role grant-permission"),
    ("compacted", "has compacted what was asked for", _AGAIN),
    ("no leader", "has no leader: most of its members do not answer", "etcdctl endpoint status --cluster"),
    ("request timed out", "is too slow, or most of its members do not answer", "etcdctl endpoint status --cluster"),
    ("too many requests", "is too slow for what it is asked", "etcdctl endpoint status --cluster"),
    (
        "certificate_verify_failed",
        "has a certificate that the authority in {ca_cert} did not sign",
        "see etcd-ca-cert in batch.yaml",
    ),
    ("wrong_version_number", "does not speak TLS", "etcd-protocol: http in batch.yaml, or TLS in etcd"),
    (
        "handshake",
        "does not agree on TLS: it speaks none, or another",
        "see etcd-protocol and etcd-ca-cert in batch.yaml",
    ),
    ("expected settings frame", "is no etcd: another service has that port", "see etcd-client-port in batch.yaml"),
    ("http1.x server", "is no etcd: another service has that port", "see etcd-client-port in batch.yaml"),
    ("connection refused", "does not run: nobody listens there", _AGAIN),
    ("resolution failed", "cannot be found: its name has no address", "see etcd-servers in batch.yaml"),
    ("lookup failed", "cannot be found: its name has no address", "see etcd-servers in batch.yaml"),
)


def explain(error: Exception | None, settings: EtcdSettings) -> tuple[str, str]:
    """(what is wrong, the next step)."""
    code, said = _read(error)
    facts = {
        "user": settings.user,
        "password_file": settings.password_file,
        "prefix": settings.prefix,
        "ca_cert": settings.ca_cert or "the system's list",
    }
    for part, meaning, step in _SAID:
        if part in said.lower():
            return meaning.format(**facts), step.format(**facts)
    if isinstance(error, OSError):
        return f"cannot be asked: {error}", "see batch.yaml"
    if code == "DEADLINE_EXCEEDED":
        return "does not answer in time", "is it overloaded, or its disk slow? etcdctl endpoint status --cluster"
    if code == "UNAVAILABLE" and settings.protocol == "http":
        # Its words differ by release of gRPC: a server of TLS just hangs up.
        return f"does not answer: {said}", "does it speak https? see etcd-protocol in batch.yaml; else start it"
    return f"does not answer: {said}", _AGAIN


def _read(error: BaseException | None) -> tuple[str, str]:
    """The code of gRPC and the words, of whichever error in the chain has them: the client's own have none."""
    each: Any = error
    while each is not None:
        if callable(getattr(each, "code", None)) and callable(getattr(each, "details", None)):
            return str(getattr(each.code(), "name", "")), _one_line(str(each.details()))
        each = each.__cause__ or each.__context__
    return "", _one_line(str(error) or type(error).__name__)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300] or "no reason given"
