# SPDX-License-Identifier: Apache-2.0
"""Scenarios of test_node.py: what is wrong with an etcd, or with how a site names it, each in its own words."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import StateError
from pvc.model.site import EtcdSettings
from pvc.state.etcd import EtcdStore
from pvc.state.store import Put
from pvc.testbed.etcdauth import setup_root
from tests.host.etcdhealth import wait_for_etcd
from tests.waits import wait_until

WHERE = Path("/tmp/etcd-world")
PLAIN = EtcdSettings(("127.0.0.1",), 2379, "http", "none", "root", str(WHERE / "password"), None)
TLS = replace(PLAIN, protocol="https", ca_cert=str(WHERE / "ca.pem"))


@contextmanager
def serving(*more: str, scheme: str = "http") -> Iterator[subprocess.Popen[bytes]]:
    data = WHERE / f"data-{len(list(WHERE.iterdir()))}"
    url = f"{scheme}://127.0.0.1:2379"
    argv = ["etcd", "--data-dir", str(data), "--listen-client-urls", url, "--advertise-client-urls", url, *more]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_etcd("127.0.0.1", scheme)
        yield server
    finally:
        server.kill()
        server.wait()


def complaint(settings: EtcdSettings, *, write: bool = False) -> tuple[str, str]:
    """(what is said, the next step) of a store that cannot do what it is asked."""
    store = EtcdStore(settings)
    try:
        with pytest.raises(StateError) as found:
            store.transact([], [Put("a", "1" * 4096)]) if write else store.read_prefix("")
    finally:
        store.close()
    return str(found.value), found.value.find_hint() or ""


def make_authority(name: str) -> None:
    """A certificate for 127.0.0.1, its own authority."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    argv += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*argv, "-keyout", WHERE / f"{name}.key", "-out", WHERE / f"{name}.pem"], check=True, capture_output=True
    )


def transport() -> None:
    """Nobody there, somebody else there, TLS on one side only, and an authority that signed nothing."""
    assert "does not run: nobody listens there" in complaint(PLAIN)[0]
    said, _ = complaint(replace(PLAIN, servers=("no-such-host.invalid",)))
    assert "its name has no address" in said, said
    web = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "2380"], stderr=subprocess.DEVNULL
    )
    wait_until(lambda: socket.create_connection(("127.0.0.1", 2380), timeout=1).close() is None, bear=(OSError,))
    said, step = complaint(replace(PLAIN, port=2380))
    web.kill()
    web.wait()
    assert "is no etcd: another service has that port" in said, said
    assert "etcd-client-port" in step
    make_authority("ca")
    make_authority("stranger")
    with serving():
        said, step = complaint(TLS)
        assert "does not speak TLS" in said or "does not agree on TLS: it speaks none" in said, said
        assert "etcd-protocol" in step
    with serving("--cert-file", str(WHERE / "ca.pem"), "--key-file", str(WHERE / "ca.key"), scheme="https"):
        store = EtcdStore(TLS)
        assert store.read_prefix("") == {}
        store.close()
        said, step = complaint(replace(TLS, ca_cert=str(WHERE / "stranger.pem")))
        assert f"the authority in {WHERE}/stranger.pem did not sign" in said, said
        said, step = complaint(PLAIN)
        assert "https" in step, (said, step)
        said, step = complaint(replace(TLS, ca_cert=str(WHERE / "nowhere.pem")))
        assert "nowhere.pem" in said, said


def fill(store: EtcdStore) -> None:
    # It looks at its size now and then.
    for _ in range(4096):
        store.transact([], [Put("b", "1" * 4096)])


def service() -> None:
    """Passwords, rights, room, and a member that does not get on."""
    with serving("--quota-backend-bytes", "65536", "--auto-compaction-retention", "0") as server:
        store = EtcdStore(PLAIN)
        with pytest.raises(StateError, match="has no space left for changes"):
            fill(store)
        store.close()
        server.send_signal(19)  # SIGSTOP: it listens, and says nothing
        said, _ = complaint(PLAIN)
        assert "does not answer in time" in said, said
        server.send_signal(18)
    with serving("--bcrypt-cost", "4"):
        asked = replace(PLAIN, auth_type="password")
        (WHERE / "password").write_text("right\n")
        said, step = complaint(asked)
        assert "knows no passwords" in said, said
        setup_root("right")
        store = EtcdStore(asked)
        store.transact([], [Put("c", "1")])
        store.close()
        said, step = complaint(PLAIN)
        assert "wants a password" in said, said
        (WHERE / "password").write_text("wrong\n")
        said, step = complaint(asked)
        assert "refuses user root: wrong password" in said, said
        assert str(WHERE / "password") in step
        (WHERE / "password").unlink()
        assert "cannot read etcd's password" in complaint(asked)[0]
        env = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints=http://127.0.0.1:2379", "--user=root:right"]
        for words in (["role", "add", "few"], ["user", "add", "few:right"], ["user", "grant-role", "few", "few"]):
            subprocess.run([*env, *words], check=True, capture_output=True)
        (WHERE / "password").write_text("right\n")
        said, step = complaint(replace(asked, user="few"), write=True)
        assert "does not let user few write below /pvc/" in said, said


SCENARIOS = (transport, service)

if __name__ == "__main__":
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/tmp"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    WHERE.mkdir()
    next(each for each in SCENARIOS if each.__name__ == sys.argv[1])()
