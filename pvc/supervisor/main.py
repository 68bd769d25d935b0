# SPDX-License-Identifier: Apache-2.0
"""A node's supervisor: attach, listen, start all VMs, serve until it is told to stop."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import math
import os
import resource
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from pvc import files
from pvc.codec import OtherVersionError
from pvc.errors import GuestError, JobError, PvcError, UsageError
from pvc.host.kvm import AccelFacts, decide_accel
from pvc.host.secrecy import forbid_dumps
from pvc.host.topology import read_topology
from pvc.model.cluster import LAUNCH, ClusterSpec, NodeShare
from pvc.model.vm import Accel, has_disks, needs_libvirt
from pvc.parse import parse_cpus_per_node
from pvc.plan.numa import Pinning, plan_pinning
from pvc.plan.qemumemory import guest_memory_mib
from pvc.slurm.job import cancel_job, read_kill_wait
from pvc.supervisor.aio import settle_aio
from pvc.supervisor.attach import Attached, ask, attach, attach_vm, find_socket
from pvc.supervisor.control import Control
from pvc.supervisor.dismissal import Dismissal
from pvc.supervisor.driver import Driver
from pvc.supervisor.events import Events
from pvc.supervisor.images import LocalImages, NearDriver
from pvc.supervisor.journal import Journal
from pvc.supervisor.qemu import QemuDriver
from pvc.supervisor.share import find_node_share, node_templates, plan_vms
from pvc.supervisor.vm import Vm

LOG = logging.getLogger(__name__)

MAX_SPEC = 64 << 20
# An earlier supervisor of the same job may still be leaving.
_LOCK_S = 10.0
_FETCHES = 4
# KillWait's default (slurm.conf(5)), and what of it stays for QEMU's own end.
_KILL_WAIT_S, _QUIT_S = 30.0, 2.5


def read_spec(fd: int) -> ClusterSpec:
    """The launcher's line from ``fd``; what follows it is left there.

    :raise UsageError: the line is missing, too long, or not a cluster.
    """
    data = bytearray()
    while not data.endswith(b"\n"):
        chunk = os.read(fd, 1 << 16)
        if not chunk or len(data) > MAX_SPEC:
            raise UsageError("no description of a cluster on standard input; only 'pvc start' starts supervisors")
        data += chunk
    try:
        return LAUNCH.loads(ClusterSpec, bytes(data))
    except OtherVersionError as err:
        raise UsageError(
            "the launcher's description of the cluster is of another version of pvc",
            hint="login nodes and compute nodes need the same version: upgrade the older one",
        ) from err
    except ValueError as err:
        raise UsageError("the launcher's description of the cluster is not understood") from err


def node_name(environ: Mapping[str, str]) -> str:
    """The node's name in Slurm: SLURMD_NODENAME of srun(1)'s tasks."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]


def find_allocated(environ: Mapping[str, str], index: int) -> int | None:
    """CPUs that Slurm allocated on the node of this index in the job: SLURM_JOB_CPUS_PER_NODE of srun(1)."""
    try:
        return parse_cpus_per_node(environ["SLURM_JOB_CPUS_PER_NODE"])[index]
    except (KeyError, IndexError, ValueError):
        return None


class Supervisor:
    """One node's share of one cluster."""

    def __init__(
        self, spec: ClusterSpec, events: Events, node: str, environ: Mapping[str, str], journal: Journal
    ) -> None:
        self._spec = spec
        self._events = events
        self._node = node
        self._environ = environ
        self._journal = journal
        self._vms: tuple[Vm, ...] = ()
        self._running: set[asyncio.Task[None]] = set()
        self._leave = asyncio.Event()
        self._limit_s = math.inf  # for guests to power down
        self._kill_wait_s = math.inf
        self._dismissal: Dismissal | None = None
        self._exits = AsyncExitStack()

    async def run(self, stdin_fd: int) -> int:
        """Serve until told to stop; returns the exit code."""
        self._watch_dismissal(stdin_fd)
        leave = asyncio.create_task(self._leave.wait())
        start = asyncio.create_task(self._start())
        exit_code = 0
        async with self._exits:
            try:
                await asyncio.wait({start, leave}, return_when=asyncio.FIRST_COMPLETED)
                if start.done():
                    start.result()
                await leave
            except PvcError as err:
                self._events.error(err)
                exit_code = err.exit_code
            finally:
                for task in (start, leave):
                    task.cancel()
                await asyncio.gather(start, leave, return_exceptions=True)
                await self._stop_vms(0)
        self._events.ended()
        if self._dismissal is not None and self._dismissal.abandoned and self._spec.ends_job and self._is_first():
            # Launcher and salloc were killed together: nobody else is left to give the nodes back.
            cancel_job(self._spec.job_id)
        return exit_code

    def _is_first(self) -> bool:
        """One supervisor of the cluster is enough to speak to Slurm."""
        return next(share.node for share in self._spec.placement.shares if share.count) == self._node

    def _watch_dismissal(self, stdin_fd: int) -> None:
        def leave(*, signalled: bool) -> None:
            if signalled:
                self._limit_s = self._kill_wait_s - _QUIT_S
            self._leave.set()

        self._dismissal = Dismissal(stdin_fd, self._events.told, leave)

    async def _start(self) -> None:
        share = find_node_share(self._spec, self._node)
        accels = asyncio.create_task(asyncio.to_thread(self._decide_accels, share))
        try:
            attached = await attach(find_socket(self._environ), self._spec.job_of(share))
            await self._exits.enter_async_context(_sole_supervisor(Path(attached.grant.run_dir)))
            control = Control(lambda: self._vms, self._stop_on_request, self._ask_node, self._journal)
            try:
                port = await control.start(attached.grant.node_address, self._spec.keys)
            except OSError as err:
                raise GuestError(f"cannot listen at {attached.grant.node_address}") from err
            self._exits.push_async_callback(control.close)
            self._events.listening(attached.grant.node_address, port)
            facts = await accels
        finally:
            accels.cancel()
            await asyncio.gather(accels, return_exceptions=True)
        self._spec, obstacle = await asyncio.to_thread(settle_aio, self._spec)
        if obstacle is not None:
            self._tell(f"no io_uring on {self._node}, disks use threads instead: {obstacle}")
        if any(template.drives for template in node_templates(self._spec, share).values()):
            self._kill_wait_s = await asyncio.to_thread(_find_kill_wait)
        images = LocalImages(attached.grant.image_cache, lambda said: self._journal.note(None, said))
        self._exits.push_async_callback(images.close)
        await images.start(node_templates(self._spec, share).values())
        self._vms = self._make_vms(share, attached, facts, images)
        instance_id = f"pvc-{self._spec.job_id}-{os.urandom(4).hex()}"
        for vm in self._vms:
            task = asyncio.create_task(vm.run(self._spec, instance_id))
            self._running.add(task)

    def _decide_accels(self, share: NodeShare) -> dict[str, AccelFacts]:
        """How guests run here, for each QEMU that the templates name (nearly always one)."""
        binaries = {template.qemu_bin for template in node_templates(self._spec, share).values()}
        cache = Path(self._environ["HOME"]) / ".pvc/kvm" if "HOME" in self._environ else None
        return {binary: decide_accel(self._spec.accel, binary, cache) for binary in sorted(binaries)}

    def _make_vms(
        self, share: NodeShare, attached: Attached, facts: dict[str, AccelFacts], images: LocalImages
    ) -> tuple[Vm, ...]:
        slow = [each for each in facts.values() if each.accel is Accel.TCG]
        if slow and self._spec.accel is not Accel.TCG:
            self._tell(f"no KVM on {self._node}, guests are emulated and slow: {slow[0].reason}")
        pinning = self._plan_pinning(share)
        if pinning.reason is not None:
            LOG.info("VMs are not pinned: %s", pinning.reason)
        templates = node_templates(self._spec, share)
        accels = {rank: facts[template.qemu_bin].accel for rank, template in templates.items()}
        vms = plan_vms(
            self._spec,
            share,
            attached.grant,
            attached.taps,
            accels=accels,
            memory_mib={rank: self._find_memory_mib(rank, accel) for rank, accel in accels.items()},
            pinning=pinning,
        )
        # pvc-node serves few requests of a user at a time.
        turns = asyncio.Semaphore(_FETCHES)

        async def fetch_taps(rank: int) -> tuple[int, ...]:
            async with turns:
                return await attach_vm(find_socket(self._environ), self._spec.job_of(share), rank)

        drivers: dict[str, Driver] = {"qemu": QemuDriver()}
        if needs_libvirt(templates):
            drivers["libvirt"] = self._find_libvirt(Path(attached.grant.run_dir))
        near = {name: NearDriver(driver, images) for name, driver in drivers.items()}
        return tuple(Vm(vm, near[vm.template.hypervisor], self._report, fetch_taps) for vm in vms)

    def _find_libvirt(self, run_dir: Path) -> Driver:
        """:raise GuestError: pvc was installed without it on this node."""
        try:
            from pvc.supervisor.virt import VirtDriver
        except ImportError as err:
            hint = "install it with pvc (pip install pvc[libvirt]), or say hypervisor: qemu in the template"
            raise GuestError("libvirt's Python module is missing", hint=hint) from err
        return VirtDriver(run_dir / "virt", self._spec.libvirt_hook, self._exits)

    def _tell(self, notice: str) -> None:
        self._events.notice(notice)
        self._journal.note(None, notice)

    def _report(self, vm: Vm, hint: str | None) -> None:
        """A VM's phase or detail has changed."""
        self._events.vm(vm, hint)
        said = [f"{vm.share.name} {vm.phase.value}", *([vm.detail] if vm.detail else [])]
        self._journal.note(vm.share.rank, ": ".join(said) + (f" (hint: {hint})" if hint else ""))

    def _find_memory_mib(self, rank: int, accel: Accel) -> int:
        """Of the guest."""
        allocated_mib = self._spec.memory_mib[self._spec.placement.find_size(rank)]
        templates = self._spec.templates
        return guest_memory_mib(allocated_mib, accel, libvirt=needs_libvirt(templates), disks=has_disks(templates))

    def _plan_pinning(self, share: NodeShare) -> Pinning:
        try:
            topology = read_topology()
        except (OSError, ValueError) as err:
            LOG.warning("cannot read the CPU topology: %s", err)
            topology = ()
        placement = self._spec.placement
        # A step knows the nodes of its component only.
        nodes = [each for each in placement.shares if each.component == share.component]
        allocated = find_allocated(self._environ, nodes.index(share))
        cores = [placement.cpus_of(rank) for rank in range(share.first_rank, share.first_rank + share.count)]
        return plan_pinning(sorted(os.sched_getaffinity(0)), topology, cores, allocated)

    async def _ask_node(self, request: dict[str, Any]) -> dict[str, Any]:
        job_id = self._spec.job_of(find_node_share(self._spec, self._node))
        return await ask(find_socket(self._environ), {**request, "job": job_id})

    async def _stop_on_request(self, grace_s: float) -> None:
        await self._stop_vms(grace_s)
        # The answer goes out first.
        asyncio.get_running_loop().call_later(0.05, self._leave.set)

    async def _stop_vms(self, grace_s: float) -> None:
        await asyncio.gather(*(vm.leave(grace_s, self._limit_s) for vm in self._vms))
        await asyncio.gather(*self._running)
        for vm in self._vms:
            with suppress(OSError):
                files.remove_tree(vm.share.directory)


@asynccontextmanager
async def _sole_supervisor(run_dir: Path) -> AsyncIterator[None]:
    """Hold the job's lock on this node: two supervisors would share taps and files.

    :raise GuestError: another one runs, or there is no such directory.
    """
    loop = asyncio.get_running_loop()
    try:
        fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as err:
        raise GuestError("cannot use the job's directory on this node") from err
    try:
        deadline = loop.time() + _LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if loop.time() >= deadline:
                    raise GuestError(
                        "a cluster runs already in this job", hint="stop it with 'pvc stop' before another 'pvc start'"
                    ) from None
                await asyncio.sleep(0.1)
        yield
    finally:
        os.close(fd)


def _find_kill_wait() -> float:
    """How long guests may take at most when Slurm wants the job's end."""
    try:
        return read_kill_wait() or _KILL_WAIT_S
    except JobError as err:
        LOG.warning("%s", err)
        return _KILL_WAIT_S


def _raise_file_limit() -> None:
    """Each VM takes about six descriptors; the usual soft limit of 1024 is not enough for a big node."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def supervise(stdin_fd: int, stdout_fd: int, environ: Mapping[str, str]) -> int:
    """Run a node's supervisor to its end; returns its exit code.

    What goes wrong is told as an event, once the cluster and so the launcher is known.

    :raise UsageError: standard input holds no cluster.
    """
    forbid_dumps()
    spec = read_spec(stdin_fd)
    _raise_file_limit()
    node = node_name(environ)
    journal = Journal()
    logging.getLogger("pvc").addHandler(journal)
    logging.getLogger("pvc.supervisor").setLevel(min(LOG.getEffectiveLevel(), logging.INFO))
    return asyncio.run(Supervisor(spec, Events(stdout_fd, node), node, environ, journal).run(stdin_fd))
