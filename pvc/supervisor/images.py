# SPDX-License-Identifier: Apache-2.0
"""Copies of images on this node: used where they are there, made for the next start where they are not.

Nobody waits for a copy. A VM that starts meanwhile reads the repository's file, and what it reads is in the node's page
cache for the copy, and the other way round: the file server is read once all the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pvc.images.cache import NodeCache, Outcome
from pvc.images.opened import HeldImages
from pvc.images.scratch import is_sha256
from pvc.model.node import ImageCache
from pvc.model.vm import VmTemplate
from pvc.plan.expand import find_image_files, localize
from pvc.plan.qemudrives import name_images
from pvc.supervisor.driver import Driver, Launch, Machine
from pvc.supervisor.layers import check_files, check_nodes
from pvc.supervisor.threads import outlast

LOG = logging.getLogger(__name__)
_NICE = 19


class LocalImages:
    """``tell`` hears what became of copies; ``close`` lets go of them."""

    def __init__(self, cache: ImageCache | None, tell: Callable[[str], None]) -> None:
        self._cache = NodeCache(Path(cache.directory), cache.size) if cache is not None else None
        self._tell = tell
        self._copies: dict[str, str] = {}
        self._held: list[int] = []
        self._stopped = threading.Event()
        self._filling: asyncio.Task[None] | None = None
        # A thread of its own, for guests come first: sched(7), nice values are threads' on Linux.
        self._pool = ThreadPoolExecutor(1, "images", initializer=_be_nice)

    async def start(self, templates: Iterable[VmTemplate]) -> None:
        """Find the copies that are there, and begin to make the others."""
        if self._cache is None:
            return
        paths = dict.fromkeys(path for template in templates for path in find_image_files(template))
        missing = await asyncio.to_thread(self._hold_all, self._cache, paths)
        if missing:
            self._filling = asyncio.create_task(self._fill_all(self._cache, missing))

    def localize(self, template: VmTemplate) -> VmTemplate:
        """The template as a VM that starts now should have it."""
        return localize(template, self._copies)

    async def close(self) -> None:
        """Break off; no VM runs any more."""
        self._stopped.set()
        if self._filling is not None:
            await self._filling
        self._pool.shutdown()
        while self._held:
            os.close(self._held.pop())

    def _hold_all(self, cache: NodeCache, paths: Iterable[str]) -> list[str]:
        # Only a repository's files have their checksums for names.
        return [path for path in paths if is_sha256(Path(path).name) and not self._hold(cache, path)]

    def _hold(self, cache: NodeCache, path: str) -> bool:
        try:
            name = Path(path).name
            fd = cache.hold(name, os.stat(path).st_size)
        except OSError as err:
            LOG.warning("the node's cache of images is of no use: %s", err)
            return False
        if fd is None:
            return False
        self._held.append(fd)
        self._copies[path] = os.fspath(cache.path_of(name))
        return True

    async def _fill_all(self, cache: NodeCache, paths: Iterable[str]) -> None:
        for path in paths:
            outcome = await asyncio.get_running_loop().run_in_executor(self._pool, self._fill, cache, path)
            if outcome is None or outcome is Outcome.STOPPED:
                return
            if outcome in {Outcome.NO_ROOM, Outcome.DAMAGED, Outcome.FILLED}:
                self._tell(f"copy of {path} on this node: {outcome.value}")
            if outcome in {Outcome.FILLED, Outcome.THERE}:
                await asyncio.to_thread(self._hold, cache, path)

    def _fill(self, cache: NodeCache, path: str) -> Outcome | None:
        try:
            return cache.fill(Path(path), Path(path).name, self._stopped.is_set)
        except OSError as err:
            LOG.warning("cannot copy %s to this node: %s", path, err)
            return None


class NearDriver:
    """A driver whose VMs read the copies that are there when they start, from files that are looked at then."""

    def __init__(self, driver: Driver, images: LocalImages) -> None:
        self._driver = driver
        self._images = images

    @property
    def uri(self) -> str | None:
        """The driver's."""
        return self._driver.uri

    async def start(self, launch: Launch) -> Machine:
        """As the driver does.

        :raise GuestError: also: a file of an image is not what it should be.
        """
        share = replace(launch.share, template=self._images.localize(launch.share.template))
        held = HeldImages()
        try:
            await outlast(held.fill, share.template, launch.paths.firmware)
            opened = replace(launch, share=share, images=held.fds, boot=held.boot_fds)
            machine = await self._driver.start(opened)
            try:
                await check_nodes(machine, name_images(held.layer_fds))
                if share.template.hypervisor == "libvirt":
                    await check_files(machine, held)
            except BaseException:
                await _drop(machine)
                raise
        finally:
            held.release()
        return machine


async def _drop(machine: Machine) -> None:
    """End it and let go of all that is its, whatever fails on the way."""
    try:
        await machine.stop(0)
    finally:
        try:
            await machine.close()
        finally:
            for near in (machine.console, *machine.channels.values()):
                near.close()


def _be_nice() -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
