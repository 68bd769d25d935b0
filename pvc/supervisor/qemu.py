# SPDX-License-Identifier: Apache-2.0
"""The driver that starts QEMU itself: channels are inherited socket pairs, taps inherited descriptors."""

from __future__ import annotations

import logging
import socket
from contextlib import ExitStack

from pvc.errors import GuestError
from pvc.host import tsc
from pvc.plan.qemu import QemuSpec, VmFds, lacks_clock, qemu_argv
from pvc.supervisor.driver import Launch
from pvc.supervisor.machine import QemuMachine

LOG = logging.getLogger(__name__)

# QEMU was built without seccomp, or the kernel has none: both messages of softmmu/qemu-seccomp.c and vl.c.
_NO_SANDBOX = ("-sandbox", "seccomp")


class QemuDriver:
    """A driver (``pvc.supervisor.driver.Driver``)."""

    uri: str | None = None

    async def start(self, launch: Launch) -> QemuMachine:
        """Start QEMU, without its own sandbox where that cannot be had."""
        for sandbox in (True, False):
            machine = _spawn(launch, sandbox=sandbox)
            try:
                await machine.connect()
            except BaseException as err:
                await machine.stop(0)
                said = machine.stderr()
                await machine.close()
                machine.console.close()
                for channel in machine.channels.values():
                    channel.close()
                if not isinstance(err, GuestError):
                    raise
                if sandbox and any(word in said for word in _NO_SANDBOX):
                    LOG.warning("%s: QEMU runs without its sandbox: %s", launch.share.name, said)
                    continue
                raise GuestError(f"QEMU did not start: {said}" if said else str(err)) from None
            return machine
        raise AssertionError("the second try returns or raises")


def _spawn(launch: Launch, *, sandbox: bool) -> QemuMachine:
    share = launch.share
    with ExitStack() as theirs, ExitStack() as ours:

        def pair() -> tuple[socket.socket, int]:
            near, far = socket.socketpair()
            theirs.enter_context(far)
            return ours.enter_context(near), far.fileno()

        qmp, qmp_fd = pair()
        console, console_fd = pair()
        channels = {name: pair() for name in launch.channels}
        ports = tuple(fd for _, fd in channels.values())
        hardware = launch.hardware
        fds = VmFds(qmp_fd, console_fd, launch.taps, ports, launch.drives, launch.tpm, launch.shares, launch.images)
        argv = qemu_argv(
            QemuSpec(
                name=share.name,
                hardware=hardware,
                template=share.template,
                paths=launch.paths,
                fds=fds,
                sandbox=sandbox,
                display=share.display,
                tsc_khz=tsc.read_khz() if lacks_clock(hardware) else None,
            )
        )
        inherited = (qmp_fd, console_fd, *launch.taps, *ports, *launch.inherited)
        inherited += tuple(launch.images.values())
        near_ends = {name: near for name, (near, _) in channels.items()}
        machine = QemuMachine.start(argv, qmp, console, near_ends, inherited)
        ours.pop_all()
    return machine
