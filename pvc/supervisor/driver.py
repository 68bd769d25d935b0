# SPDX-License-Identifier: Apache-2.0
"""What a VM's life needs of whatever runs it: a driver starts a machine, a machine is one QEMU.

The first driver, ``pvc.supervisor.qemu``, starts QEMU itself.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from qemu.qmp import EventListener
from qemu.qmp.message import Message

from pvc.model.hardware import Hardware
from pvc.plan.hardware import Wanted, plan_hardware
from pvc.plan.qemudrives import DriveFd, VmPaths
from pvc.supervisor.share import VmShare

COMMAND_S = 30.0

Tell = Callable[[int, int], Awaitable[None]]


@dataclass(frozen=True)
class Launch:
    """One start of a VM.

    ``taps`` are open descriptors in the order of its nics, which stay the caller's. ``channels``: ports that the guest
    sees below /dev/virtio-ports by these names, besides its console. ``drives``: persistent drives that are open, in
    the order of the template's. ``tpm`` and ``shares``: sockets that lead to its swtpm and to the virtiofsd of each
    directory over virtio-fs. QEMU also inherits ``inherited``: all these, and descriptors whose locks end with it.
    ``images``: open files of images, firmware, kernel and initrd by their paths; ``boot`` are the last two alone.
    """

    share: VmShare
    paths: VmPaths
    taps: tuple[int, ...]
    channels: tuple[str, ...] = ()
    drives: tuple[DriveFd, ...] = ()
    inherited: tuple[int, ...] = ()
    tpm: int | None = None
    shares: tuple[int, ...] = ()
    images: Mapping[str, int] = field(default_factory=dict)
    boot: Mapping[str, int] = field(default_factory=dict)

    @property
    def hardware(self) -> Hardware:
        """What the guest has.

        :raise GuestError: the template's machine cannot have it.
        """
        share = self.share
        wanted = Wanted(
            cpus=share.cpus,
            memory_mib=share.memory_mib,
            accel=share.accel,
            nics=share.grant.nics,
            devices=share.grant.devices,
            ports=self.channels,
            seed=self.paths.seed is not None,
            firmware=self.paths.firmware,
        )
        return plan_hardware(share.name, share.template, wanted)


class Machine(Protocol):
    """A running QEMU, which cannot outlive the supervisor."""

    events: EventListener  # all that QEMU tells
    console: socket.socket  # the near end of its serial console
    channels: Mapping[str, socket.socket]  # near ends, by name

    @property
    def pid(self) -> int:
        """QEMU's process id."""

    @property
    def ended(self) -> bool:
        """Whether QEMU is gone."""

    def stderr(self) -> str:
        """The last that QEMU wrote, in one line."""

    def listener(self, *names: str) -> AbstractContextManager[EventListener]:
        """Events of these names, from now on."""

    async def wait(self) -> int:
        """QEMU's exit code, or minus the number of the signal that killed it."""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = COMMAND_S
    ) -> Any:
        """Run a QMP command.

        :raise GuestError: QEMU refused, ended, or did not answer.
        """

    async def dump(self, fd: int, form: str, tell: Tell) -> None:
        """Write the guest's memory to an open file, while it stands still; ``tell(done, total)`` hears of it, in bytes.

        :raise GuestError: QEMU refused, ended, or could not write.
        """

    async def share_file(self, fd: int) -> int:
        """Give QEMU a copy of a descriptor that it may open as /dev/fdset/NUMBER; returns the number.

        :raise GuestError: QEMU refused, ended, or did not answer.
        """

    async def find_disk(self, number: int) -> str:
        """The node of a disk in QEMU's block graph: 0 is the image's, the others are the template's.

        :raise GuestError: QEMU did not answer, or has no such disk.
        """

    async def pin(self, cpus: Sequence[int]) -> None:
        """Pin vCPU i to cpus[i], and QEMU's other threads to all of them.

        :raise GuestError: QEMU does not answer.
        :raise OSError: one of the CPUs is refused.
        """

    async def stop(self, grace_s: float) -> None:
        """End QEMU: ask the guest for ``grace_s`` seconds, then QEMU, then the kernel."""

    async def drain(self) -> None:
        """After QEMU's end: return once all that it said is in ``events``."""

    async def close(self) -> None:
        """Let go of all but ``console`` and ``channels``; QEMU has ended."""


class Driver(Protocol):
    """Starts machines of one node."""

    @property
    def uri(self) -> str | None:
        """What clients of libvirt may connect to on this node; None: nothing."""

    async def start(self, launch: Launch) -> Machine:
        """Start a VM, stopped before its first instruction; cancelled, it leaves nothing.

        :raise GuestError: it did not start; says with which words.
        """


def event_data(message: Message) -> dict[str, Any]:
    """The data of a QMP event, empty when it has none."""
    data = message.get("data")
    return data if isinstance(data, dict) else {}
