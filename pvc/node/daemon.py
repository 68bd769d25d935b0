# SPDX-License-Identifier: Apache-2.0
"""pvc-node serve: the resident root side, behind one Unix socket.

Slurm's prolog and epilog (root) send "PVC1 setup" and "PVC1 teardown"; supervisors (users) send one
line of JSON and are served for jobs of their own only. Each connection has a thread, a time limit and
a bounded request. Nothing is kept in memory that the ledger does not have, so the daemon may be killed
at any point.
"""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pvc.codec import read_json, to_data
from pvc.errors import ConfigError, HostError, PvcError
from pvc.host import ended, ethernet, memory
from pvc.host.secrecy import forbid_dumps
from pvc.model.failure import Failure
from pvc.model.node import Tap
from pvc.node import netcheck, netview, orders, probing, requests, scrape
from pvc.node.apply import ensure_run_parent
from pvc.node.context import Context, NodeName
from pvc.node.orders import ROOTS_OWN, SOCKET
from pvc.node.places import Places
from pvc.node.reclaim import reclaim, reclaim_memberships
from pvc.node.sweeper import Sweeper
from pvc.node.switchwatch import SwitchWatch
from pvc.node.turnstile import Turnstile
from pvc.node.upkeep import Upkeep
from pvc.node.watch import Watch, find_servers
from pvc.state.ledger import Ledger, Ready, read_jobs
from pvc.texts import clean_text

LOG = logging.getLogger(__name__)

_REQUEST_LIMIT = 65536
_TALK_TIMEOUT_S = 10.0
_DRAIN_TIMEOUT_S = 60.0
# From those who own no job here.
_HURRY_S = 2.0
_TURNED_AWAY_S = 0.0002
_NO_ROOM_S = 0.5  # the process, or the machine, has no descriptor or memory for one more
_FDS_PER_MESSAGE = 200
_RETRY_S = 15.0
_LOOK_AGAIN_S = 300.0
_OPERATIONS = ("attach", "network", "check", "probe", "upkeep")


class Daemon:
    """Owns the socket and the threads."""

    def __init__(self, context: Context, name: NodeName) -> None:
        self._context = context
        self._name = name
        self._path = context.runtime_dir / SOCKET
        self._places = Places(context.state_dir, context.runtime_dir)
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._reload = threading.Event()
        self._turnstile = Turnstile()
        self._sweeper = Sweeper(context)
        self._scrapes = scrape.Scrapes(context)
        self._upkeep = Upkeep(context)
        self._watches = (Watch(lambda: find_servers(context)), Watch(SwitchWatch(context).find))

    def serve(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP has the configuration read again.

        :raise HostError: another daemon serves this node, or the socket cannot be made.
        """
        forbid_dumps()
        memory.share_heaps()
        self._context.prepare()
        # A wrong configuration is told to each job; the daemon serves tear-downs all the same.
        try:
            run_dir = Path(self._context.config().batch.run_dir)
            ensure_run_parent(run_dir)
            ended.ensure_place(run_dir)
        except (PvcError, OSError) as err:
            LOG.warning("no cluster can be set up here: %s", err)
        guard = _guard(self._context.runtime_dir / "locks" / "serve")
        listeners = _listen(self._path.with_name(SOCKET + ROOTS_OWN), 0o600), _listen(self._path, 0o666)
        wake_read, wake_write = socket.socketpair()
        wake_write.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ending.set())
        signal.signal(signal.SIGHUP, lambda *_: self._reload.set())
        # Callers queue at the socket meanwhile; what is imported now costs no prolog anything.
        _preload()
        reclaimer = threading.Thread(target=self._reclaim_forever, name="reclaim", daemon=True)
        reclaimer.start()
        self._sweeper.start()
        for watch in self._watches:
            watch.start()
        self._upkeep.start()
        LOG.info("serving at %s", self._path)
        try:
            with self._open_metrics() as metrics:
                self._accept(*listeners, wake_read, metrics)
        finally:
            self._ending.set()
            self._wake.set()
            for listener in listeners:
                with suppress(OSError):
                    os.unlink(listener.getsockname())
                listener.close()
            os.close(guard)

    @contextmanager
    def _open_metrics(self) -> Iterator[socket.socket | None]:
        """Where metrics are served. Without them clusters are served all the same."""
        address = listener = None
        try:
            address = self._context.config().batch.metrics_address
            listener = scrape.listen(address) if address is not None else None
        except PvcError as err:
            LOG.error("no metrics are served: %s", err)
        if address is None or listener is None:
            yield None
            return
        with listener:
            yield listener
            scrape.remove(address)

    def _accept(
        self, roots: socket.socket, users: socket.socket, wake: socket.socket, metrics: socket.socket | None = None
    ) -> None:
        with selectors.DefaultSelector() as selector:
            for each in filter(None, (roots, users, wake, metrics)):
                selector.register(each, selectors.EVENT_READ)
            while not self._ending.is_set():
                for key, _ in selector.select():
                    if key.fileobj is wake:
                        wake.recv(4096)
                        self._heed_signal()
                        continue
                    assert isinstance(key.fileobj, socket.socket)
                    try:
                        connection = key.fileobj.accept()[0]
                    except (BlockingIOError, ConnectionAbortedError):
                        continue
                    except OSError as err:
                        # The caller waits at the socket, which stays readable all the time.
                        LOG.warning("cannot take a caller in for a moment: %s", err)
                        self._ending.wait(_NO_ROOM_S)
                        continue
                    admit = self._scrapes.admit if key.fileobj is metrics else self._admit
                    if not admit(connection):
                        # Whoever is turned away at once comes at once: the threads at work need the processor.
                        time.sleep(_TURNED_AWAY_S)
        # Whoever is being served is served to the end, within the limits each has.
        self._places.wait_idle(_DRAIN_TIMEOUT_S)

    def _heed_signal(self) -> None:
        if self._reload.is_set():
            self._reload.clear()
            with suppress(ConfigError):  # the log and status have it
                self._context.reload()

    def _admit(self, connection: socket.socket) -> bool:
        try:
            uid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        except OSError:
            connection.close()
            return False
        share = self._places.take(uid)
        if share is None:
            LOG.warning("uid %d has too many connections", uid)
            connection.close()
            return False
        try:
            threading.Thread(target=self._converse, args=(connection, uid, share), daemon=True).start()
        except RuntimeError as err:
            # Users can have all of a node's processes: this caller goes without, the service stays.
            LOG.error("cannot serve a caller: %s", err)
            connection.close()
            self._places.give_back(share)
            return False
        return True

    def _converse(self, connection: socket.socket, uid: int, share: int) -> None:
        try:
            with connection:
                text = _read_request(connection, _HURRY_S if self._places.is_stranger(share) else _TALK_TIMEOUT_S)
                connection.settimeout(_TALK_TIMEOUT_S)
                if text.startswith("PVC1 "):
                    connection.sendall(self._answer_slurm(uid, text).encode())
                elif text:
                    self._answer_user(connection, uid, text)
        except (OSError, UnicodeDecodeError, HostError) as err:
            LOG.warning("a caller was lost: %s", err)
        except Exception:  # one caller's trouble must not end the service of the others
            LOG.exception("a request failed")
        finally:
            self._places.give_back(share)

    def _answer_slurm(self, uid: int, text: str) -> str:
        if uid != os.geteuid():
            return "2 only root may ask for this\n"
        try:
            verb, values = requests.parse(text)
            with requests.naming(values):
                code, message = requests.handle(self._context, verb, values)
        except ValueError as err:
            return f"2 {clean_text(str(err))}\n"
        for watch in self._watches:
            watch.refresh()
        self._upkeep.refresh()
        self._sweeper.wake()
        if verb == "teardown":
            self._wake.set()
        return f"{code} {clean_text(message)}\n"

    def _answer_user(self, connection: socket.socket, uid: int, text: str) -> None:
        fds: list[int] = []
        try:
            answer, fds = self._obey(uid, _decode(text))
        except PvcError as err:
            answer = Failure.of(err).data()
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
            for start in range(0, len(fds), _FDS_PER_MESSAGE):
                socket.send_fds(connection, [b"F"], fds[start : start + _FDS_PER_MESSAGE])
        finally:
            for fd in fds:
                os.close(fd)

    def _obey(self, uid: int, message: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        operation, job_id = message.get("op"), message.get("job")
        if uid == os.geteuid() and operation in orders.ORDERS:
            return orders.obey(self._context, operation), []
        if not isinstance(operation, str) or operation not in _OPERATIONS or type(job_id) is not int or job_id < 1:
            raise HostError("pvc-node does not know this request")
        ledger = Ledger(self._context.state_dir, job_id)
        record = self._context.read_record(job_id)
        # Whose job it is shows in nothing: to anybody else it does not exist.
        if record is None or uid not in (record.uid, 0):
            raise HostError(
                f"no virtual cluster was prepared on {self._name.read()} for job {job_id}",
                hint="allocate the job with pvc alloc, or with salloc or sbatch --pvc=DEFINITION; if it was, the log "
                f"of slurmd on {self._name.read()} says why nothing prepared it",
            )
        if record.refusal is not None:
            refusal = record.refusal
            return Failure(refusal.exit_code, refusal.message, refusal.hint).data(), []
        ready = ledger.read_ready()
        if ready is None:
            raise HostError(f"the virtual cluster of job {job_id} is not set up on {self._name.read()}")
        if operation != "attach":
            return {"ok": True, "report": to_data(self._examine(uid, ledger, ready, message))}, []
        fds = ethernet.open_taps(ready.taps if "vm" not in message else find_taps(ready, message["vm"]))
        return {"ok": True, "grant": to_data(ready.grant), "fds": len(fds)}, fds

    def _examine(self, uid: int, ledger: Ledger, ready: Ready, message: dict[str, Any]) -> Any:
        """How the job's networks are; what takes time or sends anything is done for few at a time."""
        operation = message["op"]
        passing = self._turnstile.passing(uid, (operation, ready.grant.job_id))
        match operation:
            case "check":
                with passing:
                    report = netcheck.check(ledger)
                if report.faults:
                    self._upkeep.suspect(ready.grant.job_id)
                return report
            case "probe":
                nonce, window_s = probing.parse_request(message)
                with passing:
                    return probing.probe(ledger, nonce, window_s)
            case "upkeep":
                return ledger.read_upkeep()
            case _:
                return netview.report(ledger, ready)

    def _reclaim_forever(self) -> None:
        memberships = False
        while not self._ending.is_set():
            try:
                outcome = reclaim(self._context, self._name.read())
                clean = outcome.clean
                # What is of no known job goes when Slurm's has ended, and that is told of a job with a ledger only.
                live = not clean and not outcome.strays and self._only_live_jobs()
            except Exception:  # it is tried again; the daemon serves meanwhile
                LOG.exception("looking for orphans failed")
                clean = live = False
            if not memberships or self._context.forgetful:
                # Once, and last: what it asks Slurm may take its time, and jobs of an earlier boot need no answer.
                memberships, forgetful = True, self._context.forgetful
                self._context.forgetful = False
                with suppress(PvcError, OSError):
                    forgetful = not reclaim_memberships(self._context, self._name.read()) and forgetful
                self._context.forgetful |= forgetful
            self._sweeper.wake()
            # A crowd of jobs may just have ended.
            memory.give_back()
            again = self._context.forgetful
            self._wake.wait(None if clean and not again else _LOOK_AGAIN_S if live and not again else _RETRY_S)
            self._wake.clear()

    def _only_live_jobs(self) -> bool:
        """Nothing is left half done: each job is set up, or refused, and there until Slurm ends it.

        :raise HostError: what is there cannot be told.
        """
        state = self._context.state_dir
        return all(Ledger(state, job_id).is_settled() for job_id in read_jobs(state))


def find_taps(ready: Ready, rank: object) -> tuple[Tap, ...]:
    """The taps of one VM, in the order of its nics.

    :raise HostError: the job has no such VM here.
    """
    for vm in ready.grant.vms:
        if type(rank) is int and vm.rank == rank:
            return tuple(ready.taps[nic.tap_index] for nic in vm.nics)
    raise HostError(f"job {ready.grant.job_id} has no such VM on this node")


def _guard(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise HostError("pvc-node serves this node already") from None
    return fd


def _listen(path: Path, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        mask = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(mask)
        path.chmod(mode)
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

    # All of that stays. Looking through it again would hold up everybody by 50 ms at each tear-down.
    gc.collect()
    gc.freeze()


def _read_request(connection: socket.socket, limit_s: float) -> str:
    """A line of JSON, or lines up to an empty one; whatever the caller sent when it stopped sending."""
    data = b""
    deadline = time.monotonic() + limit_s
    while len(data) < _REQUEST_LIMIT:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = connection.recv(8192)
        data += chunk
        if not chunk or (data.endswith(b"\n") if not data.startswith(b"PVC1 ") else data.endswith(b"\n\n")):
            return data.decode()
    raise HostError("a request was too long")


def _decode(text: str) -> dict[str, Any]:
    try:
        message = read_json(text)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise HostError("pvc-node does not know this request")
    return message
