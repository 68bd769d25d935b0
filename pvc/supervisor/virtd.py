# SPDX-License-Identifier: Apache-2.0
"""A libvirt of the job's own: one libvirtd below the supervisor, with all its files in the job's directory.

libvirtd starts QEMU as a daemon, so QEMU's parent becomes the nearest process that adopts orphans: the supervisor. It
learns how each QEMU ends, and is the one whose death ends them: what libvirt starts in place of QEMU is setpriv(1).
Nothing is shared with another libvirt of the user's, and nothing is written to the user's home.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from pvc import files, run
from pvc.config.share import find_share
from pvc.errors import GuestError
from pvc.host.orphans import adopt_orphans, reap_orphans
from pvc.plan.qemumemory import ENVIRONMENT
from pvc.supervisor.acceptor import Acceptor
from pvc.supervisor.helper import GUARD, Helper, running

LOG = logging.getLogger(__name__)

_ENV = ("env", *(f"{name}={value}" for name, value in ENVIRONMENT.items()))
_READY_S = 60.0
_HELPER_S = 5.0
# sockaddr_un(7): 108 bytes with the last one 0. The longest below the directory is QEMU's monitor.
_LONGEST = "c/libvirt/qemu/lib/domain-9999-vm65535/monitor.sock"
_MAX_PATH = 107
_QEMU_CONF = """\
# Written for one job by its supervisor.
stdio_handler = "file"
set_process_name = 1
bridge_helper = "{tap}"
"""


class Virtd:
    """A running one; ``uri`` is for virsh(1) and libvirt's clients."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uri = f"qemu:///session?socket={directory}/r/libvirt/libvirt-sock"
        self.taps: dict[str, int] = {}  # descriptors that libvirt may ask for, by the names of bridges
        self.files: dict[str, tuple[int, ...]] = {}  # what a VM's QEMU inherits besides, by its name
        self._ended: dict[int, asyncio.Future[int]] = {}

    def log_of(self, name: str) -> Path:
        """What libvirt and QEMU write of a domain."""
        return self.directory / "k/libvirt/qemu/log" / f"{name}.log"

    def find_emulator(self, qemu_bin: str) -> str:
        """What libvirt starts in place of a QEMU: it ends with this process, and is that QEMU otherwise.

        :raise OSError: it cannot be written.
        """
        name = Path(qemu_bin).name
        for number in range(1000):
            place = self.directory / "bin" / (f"{name}.{number}" if number else name)
            if _write_become(place, [*_asking(self.directory), *GUARD, *_ENV, qemu_bin]):
                return os.fspath(place)
        raise AssertionError("a thousand QEMUs of one name")

    def exit_of(self, pid: int) -> asyncio.Future[int]:
        """The exit code of a QEMU, or minus a signal, once it has ended."""
        known = self._ended.get(pid)
        if known is None or (known.done() and Path(f"/proc/{pid}").exists()):  # an earlier process of that number
            known = self._ended[pid] = asyncio.get_running_loop().create_future()
        return known

    def reap(self) -> None:
        """Take in what has ended."""
        for pid, code in reap_orphans().items():
            self.exit_of(pid).set_result(code)

    def answer(self, connection: socket.socket) -> None:
        """Answer ``virtexec``, in a thread: it speaks at once, or never."""
        with connection:
            connection.settimeout(_HELPER_S)
            try:
                text, fds, _, _ = socket.recv_fds(connection, 256, 1)
                what, _, name = text.decode().partition(" ")
                if what == "files":
                    socket.send_fds(connection, [b"+"], self.files[name])
                for fd in fds:
                    with socket.socket(fileno=fd) as libvirt:
                        socket.send_fds(libvirt, [b"\0"], [self.taps[name]])
                        connection.sendall(b"+")
            except (OSError, KeyError, ValueError) as err:
                LOG.warning("libvirt got no descriptor: %r", err)


def _asking(directory: Path) -> list[str]:
    """The program that asks this process for descriptors."""
    return [sys.executable, "-IS", os.fspath(Path(__file__).with_name("virtexec.py")), os.fspath(directory / "ask")]


def _write_become(place: Path, words: list[str]) -> bool:
    """Make ``place`` a name of the program that becomes the command ``words``; False: it is another command's."""
    text = "".join(f"{word}\n" for word in reversed(words))
    beside = place.with_name(f"{place.name}.words")
    try:
        return beside.read_text() == text
    except FileNotFoundError:
        beside.write_text(text)
        place.symlink_to(find_share() / "libexec/pvc-become")
        return True


@asynccontextmanager
async def prepared(directory: Path) -> AsyncIterator[Virtd]:
    """Make ``directory`` anew, and answer there for what a libvirtd asks, while the block runs.

    :raise GuestError: there is none on this node, or the directory's path is too long.
    :raise OSError: the directory cannot be written.
    """
    _check(directory)
    files.remove_tree(directory)
    for name in ("", "bin", "c/libvirt", "r", "k", "h"):
        (directory / name).mkdir(mode=0o700, parents=True)
    virtd = Virtd(directory)
    _write_become(directory / "bin/tap", _asking(directory))
    (directory / "c/libvirt/qemu.conf").write_text(_QEMU_CONF.format(tap=directory / "bin/tap"))
    (directory / "libvirtd.conf").write_text('log_outputs = "3:stderr"\n')
    adopt_orphans()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, virtd.reap)
    with ExitStack() as exits:
        exits.callback(_remove, directory)
        exits.callback(loop.remove_signal_handler, signal.SIGCHLD)
        _serve_files(virtd, exits)
        yield virtd


@asynccontextmanager
async def running_daemon(virtd: Virtd) -> AsyncIterator[Helper]:
    """Run its libvirtd while the block does; another one takes over the QEMUs of one that has crashed.

    :raise GuestError: it did not start; says with which words.
    """
    directory = virtd.directory
    argv = ["libvirtd", "--config", os.fspath(directory / "libvirtd.conf")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notice:
        (directory / "notice").unlink(missing_ok=True)
        notice.bind(os.fspath(directory / "notice"))
        notice.setblocking(False)
        async with running("libvirtd", argv, env=_environ(directory)) as daemon:
            await _wait_ready(daemon, notice)
            yield daemon


def _check(directory: Path) -> None:
    if os.geteuid() == 0:
        hint = "submit the job as a user, or say hypervisor: qemu in the template"
        raise GuestError("root has no libvirt of its own: a libvirtd of root's is the node's", hint=hint)
    if shutil.which("libvirtd", path=run.PATH) is None:
        hint = "install libvirt (Debian: libvirt-daemon), or say hypervisor: qemu in the template"
        raise GuestError("there is no libvirtd on this node", hint=hint)
    if len(os.fsencode(directory / _LONGEST)) > _MAX_PATH:
        hint = "let the site set run-dir in batch.yaml to a shorter path"
        raise GuestError(f"{directory} is too long: libvirt's sockets below it would have no names", hint=hint)


def _remove(directory: Path) -> None:
    with suppress(OSError):
        files.remove_tree(directory)


def _environ(directory: Path) -> dict[str, str]:
    return {
        **run.BASE_ENV,
        "HOME": os.fspath(directory / "h"),
        "USER": pwd.getpwuid(os.getuid()).pw_name,
        "XDG_CONFIG_HOME": os.fspath(directory / "c"),
        "XDG_RUNTIME_DIR": os.fspath(directory / "r"),
        "XDG_CACHE_HOME": os.fspath(directory / "k"),
        "NOTIFY_SOCKET": os.fspath(directory / "notice"),
    }


def _serve_files(virtd: Virtd, exits: ExitStack) -> None:
    loop = asyncio.get_running_loop()
    listener = exits.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(os.fspath(virtd.directory / "ask"))
    listener.listen(64)
    listener.setblocking(False)

    def on_helper(connection: socket.socket, _: object) -> None:
        loop.run_in_executor(None, virtd.answer, connection)

    exits.callback(Acceptor(listener, "libvirt", on_helper).close)


async def _wait_ready(daemon: Helper, notice: socket.socket) -> None:
    """As systemd would (sd_notify(3)): it says READY=1 when it listens."""
    loop = asyncio.get_running_loop()

    async def ready() -> None:
        while b"READY=1" not in await loop.sock_recv(notice, 4096):
            pass

    await daemon.wait_ready(ready, _READY_S)
