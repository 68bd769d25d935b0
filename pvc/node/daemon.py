"""pvc-node serve: the resident root side, behind one Unix socket.

Slurm's prolog and epilog (root) send "PVC1 setup" and "PVC1 teardown"; supervisors (users) send one
line of JSON and are served for jobs of their own only. Each connection has a thread, a time limit and
a bounded request. Nothing is kept in memory that the ledger does not have, so the daemon may be killed
at any point.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import selectors
import signal
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from pvc import log
from pvc.codec import to_data
from pvc.errors import HostError, PvcError
from pvc.host import ethernet
from pvc.model.node import Tap
from pvc.node import netcheck, netview, probing, requests
from pvc.node.apply import ensure_run_parent
from pvc.node.context import Context
from pvc.node.reclaim import reclaim, reclaim_memberships
from pvc.node.switchwatch import SwitchWatch
from pvc.node.turnstile import Turnstile
from pvc.node.watch import Watch, find_servers
from pvc.state.ledger import Ledger, Ready

LOG = logging.getLogger(__name__)

_REQUEST_LIMIT = 65536
_TALK_TIMEOUT_S = 10.0
_DRAIN_TIMEOUT_S = 60.0
# Root's callers are Slurm's own and few; users get few places each, so that none can keep the others out.
_MAX_OF_A_USER = 8
_MAX_OF_ALL_USERS = 64
_FDS_PER_MESSAGE = 200
_RETRY_S = 15.0
_LOOK_AGAIN_S = 300.0
_OPERATIONS = ("attach", "network", "check", "probe")


class Daemon:
    """Owns the socket and the threads."""

    def __init__(self, context: Context, node: str) -> None:
        self._context = context
        self._node = node
        self._path = context.runtime_dir / "node.sock"
        self._callers: Counter[int] = Counter()
        self._callers_lock = threading.Lock()
        self._idle = threading.Condition(self._callers_lock)
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._turnstile = Turnstile()
        self._watches = (Watch(lambda: find_servers(context)), Watch(SwitchWatch(context).find))

    def serve(self) -> None:
        """Serve until SIGTERM or SIGINT.

        :raise HostError: another daemon serves this node, or the socket cannot be made.
        """
        self._context.prepare()
        # A wrong configuration is told to each job; the daemon serves tear-downs all the same.
        with suppress(PvcError, OSError):
            ensure_run_parent(Path(self._context.config().batch.run_dir))
        guard = _guard(self._context.runtime_dir / "locks" / "serve")
        listener = _listen(self._path)
        wake_read, wake_write = socket.socketpair()
        wake_write.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ending.set())
        # Callers queue at the socket meanwhile; what is imported now costs no prolog anything.
        _preload()
        reclaimer = threading.Thread(target=self._reclaim_forever, name="reclaim", daemon=True)
        reclaimer.start()
        for watch in self._watches:
            watch.start()
        LOG.info("serving at %s", self._path)
        try:
            self._accept(listener, wake_read)
        finally:
            self._ending.set()
            self._wake.set()
            listener.close()
            with suppress(FileNotFoundError):
                self._path.unlink()
            os.close(guard)

    def _accept(self, listener: socket.socket, wake: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while not self._ending.is_set():
                for key, _ in selector.select():
                    if key.fileobj is listener:
                        with suppress(OSError):
                            self._admit(listener.accept()[0])
        # Whoever is being served is served to the end, within the limits each has.
        with self._idle:
            self._idle.wait_for(lambda: not self._callers.total(), timeout=_DRAIN_TIMEOUT_S)

    def _admit(self, connection: socket.socket) -> None:
        uid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        with self._callers_lock:
            users = self._callers.total() - self._callers[0]
            if uid != 0 and (self._callers[uid] >= _MAX_OF_A_USER or users >= _MAX_OF_ALL_USERS):
                LOG.warning("uid %d has too many connections", uid)
                connection.close()
                return
            self._callers[uid] += 1
        threading.Thread(target=self._converse, args=(connection, uid), daemon=True).start()

    def _converse(self, connection: socket.socket, uid: int) -> None:
        try:
            with connection:
                text = _read_request(connection)
                connection.settimeout(_TALK_TIMEOUT_S)
                if text.startswith("PVC1 "):
                    connection.sendall(self._answer_slurm(uid, text).encode())
                elif text:
                    self._answer_user(connection, uid, text)
        except (OSError, UnicodeDecodeError) as err:
            LOG.warning("a caller was lost: %s", err)
        except Exception:  # one caller's trouble must not end the service of the others
            LOG.exception("a request failed")
        finally:
            with self._idle:
                self._callers[uid] -= 1
                self._idle.notify_all()

    def _answer_slurm(self, uid: int, text: str) -> str:
        if uid != os.geteuid():
            return "2 only root may ask for this\n"
        try:
            verb, values = requests.parse(text)
            with log.context(f"job {values.get('SLURM_JOB_ID', '?')}"):
                code, message = requests.handle(self._context, verb, values)
        except ValueError as err:
            return f"2 {err}\n"
        for watch in self._watches:
            watch.refresh()
        if verb == "teardown":
            self._wake.set()
        return f"{code} {' '.join(message.split())}\n"

    def _answer_user(self, connection: socket.socket, uid: int, text: str) -> None:
        fds: list[int] = []
        try:
            answer, fds = self._obey(uid, _decode(text))
        except PvcError as err:
            answer = {"ok": False, "exit_code": err.exit_code, "error": str(err), "hint": err.find_hint()}
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
            for start in range(0, len(fds), _FDS_PER_MESSAGE):
                socket.send_fds(connection, [b"F"], fds[start : start + _FDS_PER_MESSAGE])
        finally:
            for fd in fds:
                os.close(fd)

    def _obey(self, uid: int, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        operation, job_id = message.get("op"), message.get("job")
        if not isinstance(operation, str) or operation not in _OPERATIONS or type(job_id) is not int or job_id < 1:
            raise HostError("pvc-node does not know this request")
        ledger = Ledger(self._context.state_dir, job_id)
        record = ledger.read_record()
        # Whose job it is shows in nothing: to anybody else it does not exist.
        if record is None or uid not in (record.uid, 0):
            raise HostError(
                f"no virtual cluster was prepared on {self._node} for job {job_id}",
                hint="allocate the job with pvc alloc, or with salloc or sbatch --pvc=DEFINITION; if it was, the log "
                f"of slurmd on {self._node} says why nothing prepared it",
            )
        if record.refusal is not None:
            refusal = record.refusal
            answer = {"ok": False, "exit_code": refusal.exit_code, "error": refusal.message, "hint": refusal.hint}
            return answer, []
        ready = ledger.read_ready()
        if ready is None:
            raise HostError(f"the virtual cluster of job {job_id} is not set up on {self._node}")
        if operation != "attach":
            return {"ok": True, "report": to_data(self._examine(operation, ledger, ready, message))}, []
        fds = ethernet.open_taps(ready.taps if "vm" not in message else find_taps(ready, message["vm"]))
        return {"ok": True, "grant": to_data(ready.grant), "fds": len(fds)}, fds

    def _examine(self, operation: str, ledger: Ledger, ready: Ready, message: dict[str, Any]) -> Any:
        """How the job's networks are; what takes time or sends anything is done for few at a time."""
        passing = self._turnstile.passing((operation, ready.grant.job_id))
        match operation:
            case "check":
                with passing:
                    return netcheck.check(ledger)
            case "probe":
                nonce, window_s = probing.parse_request(message)
                with passing:
                    return probing.probe(ledger, nonce, window_s)
            case _:
                return netview.report(ledger, ready)

    def _reclaim_forever(self) -> None:
        memberships = False
        while not self._ending.is_set():
            try:
                clean = reclaim(self._context, self._node)
                live = not clean and self._only_live_jobs()
            except Exception:  # it is tried again; the daemon serves meanwhile
                LOG.exception("looking for orphans failed")
                clean = live = False
            if not memberships:
                # Once, and last: what it asks Slurm may take its time, and jobs of an earlier boot need no answer.
                memberships = True
                with suppress(PvcError, OSError):
                    reclaim_memberships(self._context, self._node)
            self._wake.wait(None if clean else _LOOK_AGAIN_S if live else _RETRY_S)
            self._wake.clear()

    def _only_live_jobs(self) -> bool:
        jobs = self._context.state_dir / "jobs"
        return all((entry / "plan.json").exists() for entry in jobs.iterdir()) if jobs.is_dir() else True


def find_taps(ready: Ready, rank: object) -> tuple[Tap, ...]:
    """The taps of one VM, in the order of its nics.

    :raise HostError: the job has no such VM here.
    """
    for vm in ready.grant.vms:
        if type(rank) is int and vm.rank == rank:
            return tuple(ready.taps[nic.tap_index] for nic in vm.nics)
    raise HostError(f"job {ready.grant.job_id} has no such VM on this node")


def is_serving(runtime_dir: Path) -> bool:
    """Whether a daemon answers at this node's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        try:
            client.connect(os.fspath(runtime_dir / "node.sock"))
        except OSError:
            return False
        return True


def _guard(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise HostError("pvc-node serves this node already") from None
    return fd


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        listener.bind(os.fspath(path))
        path.chmod(0o666)
        listener.listen(128)
        listener.setblocking(False)
    except OSError as err:
        listener.close()
        raise HostError(f"cannot listen at {path}") from err
    return listener


def _preload() -> None:
    import grpc  # noqa: F401
    import jsonschema  # noqa: F401
    import pyetcd  # noqa: F401
    from ClusterShell import NodeSet  # noqa: F401


def _read_request(connection: socket.socket) -> str:
    """A line of JSON, or lines up to an empty one; whatever the caller sent when it stopped sending."""
    data = b""
    deadline = time.monotonic() + _TALK_TIMEOUT_S
    while len(data) < _REQUEST_LIMIT:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(8192)
        data += chunk
        if not chunk or (data.endswith(b"\n") if not data.startswith(b"PVC1 ") else data.endswith(b"\n\n")):
            return data.decode()
    raise HostError("a request was too long")


def _decode(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise HostError("pvc-node does not know this request")
    return message
