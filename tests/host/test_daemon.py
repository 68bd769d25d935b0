# SPDX-License-Identifier: Apache-2.0
"""pvc-node's socket and hostile or clumsy callers: a real daemon in namespaces of its own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvc.state.drain import read_drain
from pvc.state.ledger import Ledger, Record
from tests.host.scenario import ROOT, WRAPPER
from tests.waits import wait_until

pytestmark = pytest.mark.host
NOBODY = 65534
GOOD = "settings:\n  etcd-servers: [e1]\n"


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that anybody may enter: pytest closes its own whenever another pytest starts."""
    with tempfile.TemporaryDirectory(prefix="pvc-test-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def said(reachable: Path) -> Path:
    """The daemon's log."""
    return reachable / "log"


@pytest.fixture
def daemon(reachable: Path, said: Path) -> Iterator[Path]:
    """The path of a serving socket that anybody may reach."""
    places = ["--conf-dir", reachable / "conf", "--state-dir", reachable / "state", "--runtime-dir", reachable / "run"]
    serve = [sys.executable, "-m", "pvc.cli.node", *map(str, places), "serve", "--node", "n1"]
    script = 'mount -t tmpfs tmpfs /run && mkdir /run/lock && exec "$@"'
    with said.open("wb") as log:
        process = subprocess.Popen([*WRAPPER, "sh", "-c", script, "sh", *serve], cwd=ROOT, stderr=log)
    path = reachable / "run" / "node.sock"
    try:
        wait_until(lambda: path.exists() and answers(path), 120, "no daemon")
        yield path
        wait_until(lambda: answers(path), 20, "the daemon does not answer any more")
    finally:
        process.kill()
        process.wait()


def answers(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return b"no virtual cluster" in talk(path, b'{"op":"attach","job":12}\n')
    return False


def talk(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(20)
        link.connect(str(path))
        with contextlib.suppress(BrokenPipeError):
            link.sendall(data)
            link.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := link.recv(65536):
                received += chunk
        return received


def as_nobody(path: Path, script: str) -> str:
    """What a Python script prints when it runs without rights; it finds the socket's path in sys.argv."""
    argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "/usr/bin/python3", "-c", script]
    return subprocess.run([*argv, str(path)], check=True, capture_output=True, text=True, timeout=60).stdout


def test_only_root_sets_up_and_tears_down(daemon: Path) -> None:
    script = """
import socket, sys
link = socket.socket(socket.AF_UNIX); link.connect(sys.argv[1])
link.sendall(b"PVC1 teardown\\nSLURM_JOB_ID=12\\n\\n"); print(link.recv(1000).decode())
"""
    assert as_nobody(daemon, script).startswith("2 only root may ask")
    assert talk(daemon, b"PVC1 teardown\nSLURM_JOB_ID=12\n\n") == b"0 nothing to undo\n"


def test_users_do_not_reach_roots_socket(daemon: Path) -> None:
    script = """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1] + ".root")
except OSError as err:
    print(type(err).__name__)
"""
    assert as_nobody(daemon, script) == "PermissionError\n"
    roots = daemon.with_name("node.sock.root")
    assert talk(roots, b"PVC1 teardown\nSLURM_JOB_ID=12\n\n") == b"0 nothing to undo\n"


def order(daemon: Path, *words: str) -> str:
    """What a command of pvc-node says beside the daemon."""
    top = daemon.parent.parent
    places = ["--conf-dir", top / "conf", "--state-dir", top / "state", "--runtime-dir", top / "run"]
    argv = [sys.executable, "-m", "pvc.cli.node", *map(str, places), *words]
    return subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_drained_node_stays_so(daemon: Path) -> None:
    """The next daemon reads the reason; nobody but root takes a node out of service or back."""
    script = """
import socket, sys
link = socket.socket(socket.AF_UNIX); link.connect(sys.argv[1])
link.sendall(b'{"op":"drain"}\\n'); print(link.recv(1000).decode())
"""
    assert "does not know this request" in as_nobody(daemon, script)
    assert "n1: new switch" in order(daemon, "drain", "--node", "n1", "new switch")
    drain = read_drain(daemon.parent.parent / "state")
    assert drain is not None
    assert drain.reason == "new switch"
    assert "set up again" in order(daemon, "undrain", "--node", "n1")


def test_a_signal_has_the_configuration_read_again(daemon: Path, said: Path) -> None:
    """Right or wrong: the daemon serves on, and says what became of it."""
    conf = daemon.parent.parent / "conf"
    conf.mkdir()
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(daemon))
        # Whoever listens, by its number in this namespace: in its own it has another
        (pid,) = struct.unpack("i8x", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    for text, words in (("settings: {}\n", "etcd-servers"), (GOOD, "the configuration was read again")):
        (conf / "batch.yaml").write_text(text)
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda words=words: words in said.read_text(), 20, f"not said: {words}")
        assert talk(daemon, b"PVC1 teardown\nSLURM_JOB_ID=12\n\n") == b"0 nothing to undo\n"


COME = """
import os, select, socket, sys
links = []
def come():
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(sys.argv[1])
    except OSError:
        return False
    links.append(link)
    return True
"""


def test_one_user_cannot_keep_the_others_out(daemon: Path) -> None:
    script = """
while len(links) < 200 and come():
    pass
print(len(links))
"""
    assert int(as_nobody(daemon, COME + script)) > 8
    assert talk(daemon, b"PVC1 teardown\nSLURM_JOB_ID=12\n\n") == b"0 nothing to undo\n"


HOLD = f"""{COME}
for uid in range(200000, 200040):
    if os.fork() == 0:
        os.setuid(uid)
        while len(links) < 8:
            come()
        os.write(1, b"x")
        # Whoever was let in stays in as long as pvc-node allows, and comes again.
        while os.getppid() != 1:
            for link in select.select(links, [], [], 0.1)[0]:
                links.remove(link)
                link.close()
                come()
        os._exit(0)
sys.stdin.read()
"""


def test_no_number_of_uids_keeps_an_owner_out(daemon: Path, reachable: Path) -> None:
    """As many uids as /etc/subuid gives a user, all the time; who owns a job here has places of their own."""
    Ledger(reachable / "state", 77).open(Record(77, NOBODY, "this boot"))
    argv = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", HOLD, str(daemon)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as crowd:
        try:
            assert crowd.stdout is not None
            assert crowd.stdout.read(40) == b"x" * 40
            script = """
import socket, sys
for _ in range(20):
    link = socket.socket(socket.AF_UNIX); link.connect(sys.argv[1])
    link.sendall(b'{"op":"attach","job":77}\\n'); print(link.recv(1000).decode())
"""
            said = as_nobody(daemon, script)
            roots = daemon.with_name("node.sock.root")
            assert talk(roots, b"PVC1 teardown\nSLURM_JOB_ID=12\n\n") == b"0 nothing to undo\n"
        finally:
            crowd.kill()
    assert said.count("is not set up") == 20


def test_no_caller_writes_the_log_at_a_pace_of_its_own(daemon: Path, said: Path) -> None:
    deep = b"[" * 60000 + b"\n"
    before = said.stat().st_size
    for data in (deep, b"\xff\n", b"x" * 70000):
        for _ in range(200):
            talk(daemon, data)
    script = """
import socket, sys
for _ in range(3000):
    link = socket.socket(socket.AF_UNIX); link.connect(sys.argv[1]); keep = [link] + keep[:20] if _ else [link]
"""
    as_nobody(daemon, script)
    assert answers(daemon)
    assert said.stat().st_size - before < 20_000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"null\n",
        b'{"op":"attach","job":"12"}\n',
        b'{"op":"attach","job":-1}\n',
        b'{"op":"attach","job":true}\n',
        b'{"op":"format"}\n',
        b'{"op":"network"}\n',
        b'{"op":"network","job":12}\n',
        b'{"op":["network"],"job":12}\n',
        b'{"op":"check","job":12}\n',
        b'{"op":"probe","job":12,"nonce":"00","window_s":1e308}\n',
        b"[" * 60000 + b"\n",
        b'{"op":"probe","job":12,"nonce":' + b"[" * 60000 + b"\n",
        b"\xff\xfe\n",
        b"{" * 60000 + b"\n",
        b"x" * 70000,
        b"PVC1 setup\n\n",
        b"PVC1 setup\nSLURM_JOB_ID=12\n\n",
        b"PVC1 " + b"A" * 70000,
    ],
)
def test_clumsy_callers_get_an_error_or_nothing(daemon: Path, data: bytes) -> None:
    received = talk(daemon, data)
    if received.startswith(b"{"):
        assert json.loads(received)["ok"] is False
    else:
        assert not received or received[:2] in (b"2 ", b"6 ")


def test_noise_does_not_end_the_service(daemon: Path) -> None:
    noise = random.Random(7)
    for _ in range(200):
        head = noise.choice([b"", b"PVC1 ", b"PVC1 setup\n", b'{"op":', b'{"op":"probe","job":12,"nonce":'])
        talk(daemon, head + noise.randbytes(noise.randrange(200)))
