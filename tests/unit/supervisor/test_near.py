# SPDX-License-Identifier: Apache-2.0
"""A start that fails half way leaves no descriptor behind, whatever else fails then."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pvc.errors import GuestError
from pvc.model.node import VmGrant
from pvc.model.vm import Accel, DirectBoot, VmTemplate
from pvc.plan.qemudrives import VmPaths
from pvc.supervisor.driver import Launch
from pvc.supervisor.images import LocalImages, NearDriver
from pvc.supervisor.share import VmShare


class Stubborn:
    """A QEMU that does not answer, cannot be stopped, and leaves open what is to be closed by others."""

    pid = 1

    def __init__(self) -> None:
        self.console, self._far = socket.socketpair()
        agent, self._guest = socket.socketpair()
        self.channels = {"agent": agent}
        self.closed = False

    async def execute(self, *_: Any, **__: Any) -> Any:
        raise GuestError("QEMU did not answer")

    async def stop(self, _: float) -> None:
        raise GuestError("it does not end")

    async def close(self) -> None:
        self._far.close()
        self._guest.close()
        self.closed = True


class Starting:
    """Starts that one."""

    uri = None

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self.machine: Stubborn | None = None

    async def start(self, launch: Launch) -> Any:
        self.seen = {path: os.readlink(f"/proc/self/fd/{fd}") for path, fd in launch.images.items()}
        self.machine = Stubborn()
        return self.machine


def test_a_start_that_fails_leaves_no_descriptor(tmp_path: Path) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    for path in (kernel, initrd):
        path.write_bytes(b"MZ")
    boot = DirectBoot(os.fspath(kernel), os.fspath(initrd), "")
    template = VmTemplate(name="t", disk=None, boot=boot, resource_set="none")
    share = VmShare(0, template, VmGrant(0, (), {}), "n1", tmp_path, 1, 64, Accel.TCG, (), (), None, None)

    async def main() -> None:
        driver = Starting()
        images = LocalImages(None, lambda _: None)
        # The first call of a thread makes the loop's pool.
        await asyncio.to_thread(int)
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(GuestError, match="it does not end"):
            await NearDriver(driver, images).start(Launch(share, VmPaths(None, None), ()))
        assert driver.seen == {str(kernel): str(kernel), str(initrd): str(initrd)}
        assert driver.machine is not None
        assert driver.machine.closed
        assert driver.machine.console.fileno() == -1
        assert driver.machine.channels["agent"].fileno() == -1
        assert sorted(os.listdir("/proc/self/fd")) == before
        await images.close()

    asyncio.run(main())
