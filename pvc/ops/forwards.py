# SPDX-License-Identifier: Apache-2.0
"""Which forwards of a cluster there are: each process of ``pvc forward`` has a file in the cluster's directory."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pvc import codec, run
from pvc.errors import HostError, PvcError, UsageError
from pvc.files import ensure_private_dir, write_atomic
from pvc.model.cluster import CLUSTER
from pvc.model.failure import Failure
from pvc.model.forward import Forward
from pvc.ops.jobdir import JobDir
from pvc.ops.launch import find_pvc

if TYPE_CHECKING:
    from pvc.ops.forward import Forwarder

_STOP_S = 10.0
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Running:
    """A process that forwards: on which machine, since when, and what. ``program``: it is one that uses pvc-api(3)."""

    pid: int
    host: str
    started: float
    forwards: tuple[Forward, ...]
    program: bool = False


@contextmanager
def registered(jobdir: JobDir, forwards: Sequence[Forward], *, program: bool = False) -> Iterator[None]:
    """Be known to ``list_running`` until the block ends; a process that was killed is known to be dead by its lock.

    :raise HostError: the cluster's directory is gone.
    """
    folder = jobdir.path / "forwards"
    own = f"-{next(_NUMBERS)}" if program else ""  # a program may have several
    path = folder / f"{socket.gethostname()}-{os.getpid()}{own}.json"
    try:
        if not jobdir.record_path.exists():
            raise FileNotFoundError(jobdir.record_path)
        ensure_private_dir(folder)
        running = Running(os.getpid(), socket.gethostname(), time.time(), tuple(forwards), program)
        write_atomic(path, CLUSTER.dumps(running), mode=0o600)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        raise HostError("cannot register the forwards: has the cluster ended?") from err
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)
        with suppress(OSError):
            path.unlink()


def list_running(jobdir: JobDir) -> tuple[Running, ...]:
    """Processes that forward for a cluster; files of those of this machine that have died are removed."""
    found = []
    for path in sorted((jobdir.path / "forwards").glob("*.json")):
        try:
            running = CLUSTER.loads(Running, path.read_bytes())
        except (OSError, ValueError):
            continue
        if running.host == socket.gethostname() and not _is_locked(path):
            with suppress(OSError):
                path.unlink()
            continue
        found.append(running)
    return tuple(found)


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return True  # without locks nobody knows
    finally:
        os.close(fd)
    return False


def stop(jobdir: JobDir, wanted: Sequence[str]) -> list[Running]:
    """End processes that forward: those that ``wanted`` names (a pid, VM, port or forward), all for none.

    :raise UsageError: there is no such one.
    :raise HostError: one is on another machine, is a program's own, or does not end.
    """
    running = list_running(jobdir)
    chosen = [each for each in running if any(_matches(each, word) for word in wanted)]
    if not wanted:
        chosen = [each for each in running if not each.program]
    if not chosen and wanted:
        raise UsageError(f"nothing forwards {', '.join(wanted)}", hint="pvc forward --list shows what does")
    for each in chosen:
        if each.program:
            raise HostError(
                f"the program {each.pid} forwards {', '.join(map(str, each.forwards))}", hint="end it there"
            )
        if each.host != socket.gethostname():
            raise HostError(f"process {each.pid} forwards on {each.host}", hint=f"stop it there: ssh {each.host}")
        fd = _open_pid(each.pid)
        if fd is None:
            continue
        try:
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            _wait_end(fd, each.pid)
        except ProcessLookupError:
            continue
        finally:
            os.close(fd)
    return chosen


def _matches(running: Running, word: str) -> bool:
    texts = {str(running.pid)}
    for each in running.forwards:
        texts |= {each.vm, str(each.local), f"{each.vm}:{each.there}", f"{each.local}:{each.vm}:{each.there}"}
    return word in texts


def _open_pid(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _wait_end(fd: int, pid: int) -> None:
    import select

    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not poller.poll(_STOP_S * 1000):
        raise HostError(f"process {pid} does not end", hint=f"kill -9 {pid}")


def start_background(words: Sequence[str], log: Path) -> tuple[int, tuple[Forward, ...]]:
    """``pvc forward`` with these words as a process of its own session; returns its id once it forwards.

    :raise PvcError: it cannot; the error is its own.
    """
    reader, writer = os.pipe()
    try:
        with log.open("ab") as out:
            process = run.spawn(
                [find_pvc(), "forward", "--ready-fd", str(writer), *words],
                env=os.environ,
                stdin=run.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(writer,),
                new_session=True,
            )
    except OSError as err:
        os.close(reader)
        raise HostError(f"cannot write {log}") from err
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read()
    if not text:
        process.wait()
        raise HostError("the process that was to forward has ended", hint=f"see {log}")
    try:
        return process.pid, parse_report(text)
    except PvcError:
        process.wait()
        raise


@contextmanager
def forwarding(forwarder: Forwarder, jobdir: JobDir) -> Iterator[tuple[Forward, ...]]:
    """Forwards of this process while the block runs, by a thread with a loop of its own.

    :raise PvcError: one cannot be had.
    """
    import asyncio

    loop = asyncio.new_event_loop()
    settled = threading.Event()
    ready: list[Forward] = []
    errors: list[BaseException] = []

    def on_ready(found: Sequence[Forward]) -> None:
        ready.extend(found)
        settled.set()

    def serve() -> None:
        try:
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        except BaseException as err:  # noqa: BLE001  it is the block's
            errors.append(err)
        finally:
            settled.set()
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    task = loop.create_task(forwarder.run(on_ready))
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        settled.wait()
        if errors:
            raise errors[0]
        with registered(jobdir, ready, program=True):
            yield tuple(ready)
    finally:
        with suppress(RuntimeError):  # it has ended by itself, with the cluster
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def report(fd: int, forwards: Sequence[Forward], error: PvcError | None = None) -> None:
    """Tell the process that began this one how it went, once."""
    answer = {"ok": True, "forwards": codec.to_data(tuple(forwards))}
    if error is not None:
        answer = Failure.of(error).data()
    with suppress(OSError):
        os.write(fd, json.dumps(answer).encode())
        os.close(fd)
    sys.stdout.flush()


def parse_report(text: bytes) -> tuple[Forward, ...]:
    """What ``report`` has told.

    :raise PvcError: the other process cannot forward; the error is its own.
    """
    answer = json.loads(text)
    if not answer["ok"]:
        raise Failure.of_data(answer).rebuild()
    return codec.from_data(tuple[Forward, ...], answer["forwards"])
