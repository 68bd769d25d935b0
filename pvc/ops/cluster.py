"""A cluster, as commands and programs use it: what ``from pvc import Cluster`` gives.

Commands begin fast, so each method imports what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

from pvc.errors import GuestError, UsageError
from pvc.model.cluster import ClusterRecord
from pvc.model.vm import Order, OrderResult, VmStatus
from pvc.ops.control import Control
from pvc.ops.jobdir import JobDir
from pvc.ops.registry import find_cluster
from pvc.ops.status import parse_vms

if TYPE_CHECKING:
    from pvc.model.forward import Forward
    from pvc.ops.copy import Copies, Progress
    from pvc.ops.execute import Command, OnOutput, Outcome
    from pvc.ops.forward import Forwarder
    from pvc.ops.holder import Holder
    from pvc.ops.logs import LogWish, Write
    from pvc.ops.remote import ExecResult
    from pvc.ops.waiting import Lack

Vms = str | Sequence[str] | None


class Cluster:
    """A running cluster of VMs.

    ``Cluster.allocate("debian:2")`` boots one in a job of its own, ``Cluster.find()`` takes one that runs. As a context
    manager, an allocated cluster ends with the block, whatever happens in it; one that was found goes on.
    """

    def __init__(self, record: ClusterRecord, holder: Holder | None = None) -> None:
        self._record = record
        self._holder = holder

    @classmethod
    def allocate(
        cls,
        definition: str,
        *,
        cpus: int | None = None,
        memory: str | None = None,
        nodes: str | None = None,
        name: str = "pvc",
        image: str | Sequence[str] = (),
        user_data: str | os.PathLike[str] | None = None,
        mounts: Sequence[str] = (),
        resource_set: str | None = None,
        slurm: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Cluster:
        """Make a job and boot its VMs; returns when QEMU runs in all of them. The words mean what pvc-alloc(1) says.

        ``slurm``: options for salloc. ``timeout_s``: how long Slurm may take to give nodes, None: for ever. The job
        ends with this process at the latest.

        :raise PvcError: there is no cluster; its class says who has to act.
        """
        from pvc.ops.holder import Holder
        from pvc.ops.submission import ClusterWishes, holder_argv

        wishes = ClusterWishes(
            definition=definition,
            slurm=tuple(slurm),
            cpus=cpus,
            memory=memory,
            nodes=nodes,
            name=name,
            images=(image,) if isinstance(image, str) else tuple(image),
            user_data=os.fspath(user_data) if user_data is not None else None,
            mounts=tuple(mounts),
            resource_set=resource_set,
            wait=False,
            quiet=True,
        )
        holder = Holder(*holder_argv(wishes))
        try:
            job_id = holder.wait_ready(timeout_s)
            return cls(JobDir.of(job_id).read_record(), holder)
        except BaseException:
            holder.end()
            raise

    @classmethod
    def find(cls, job_id: int | None = None, name: str | None = None) -> Cluster:
        """The running cluster of this job or name; without either that of SLURM_JOB_ID, else the only one.

        :raise JobError: there is none.
        :raise UsageError: there are several.
        """
        return cls(find_cluster(job_id, name))

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the cluster at once if it was allocated here; may be called again."""
        if self._holder is not None:
            self._holder.end()

    def __repr__(self) -> str:
        return f"<Cluster {self.job_id} ({self.record.definition})>"

    @property
    def record(self) -> ClusterRecord:
        """What is known of it: job, definition, placement."""
        return self._record

    @cached_property
    def control(self) -> Control:
        """The way to its supervisors, for what has no method here.

        :raise JobError: the cluster has ended.
        """
        return Control(self._record, self.jobdir)

    @property
    def job_id(self) -> int:
        """Slurm's."""
        return self.record.job_id

    @property
    def jobdir(self) -> JobDir:
        """Its directory."""
        return JobDir.of(self.job_id)

    @property
    def vms(self) -> tuple[str, ...]:
        """The names of its VMs."""
        return tuple(f"vm{rank}" for rank in range(self.record.placement.count))

    def ranks(self, vms: Vms = None) -> tuple[int, ...]:
        """The numbers of VMs: of a name, a set such as "vm[0-3]", or several; None, or nothing: of all.

        :raise UsageError: they are not this cluster's.
        """
        words = () if vms is None else (vms,) if isinstance(vms, str) else tuple(vms)
        return parse_vms(words, self.record.placement.count)

    def status(self, vms: Vms = None) -> tuple[VmStatus, ...]:
        """How VMs are; ``vms``: a name, a set such as "vm[0-3]", or several; None: all."""
        from pvc.ops.load import add_loads
        from pvc.ops.status import read_status

        return add_loads(self.control, read_status(self.control, self.ranks(vms)))

    def wait(
        self,
        vms: Vms = None,
        *,
        until: str | Sequence[str] = "ssh",
        timeout_s: float = 600.0,
        on_progress: Callable[[Mapping[int, Lack]], None] | None = None,
    ) -> None:
        """Until VMs are ready as pvc-wait(1) means it: "ssh", "agent", "cloud-init", "port:80", "cmd:test -e /ready".

        ``on_progress`` is told after each look what each VM (its number) still lacks; not for ssh alone.

        :raise GuestError: one never will, or is not in time; it says what each lacks.
        """
        from pvc.ops.status import wait_reachable
        from pvc.ops.waiting import Goal, parse_conditions, wait_for

        conditions = parse_conditions((until,) if isinstance(until, str) else until)
        if all(condition.goal is Goal.SSH for condition in conditions):  # what supervisors know by themselves
            wait_reachable(self.control, self.ranks(vms), timeout_s)
        else:
            wait_for(self.control, self.ranks(vms), conditions, timeout_s, on_progress=on_progress)

    def exec(
        self,
        argv: Sequence[str],
        vms: Vms = None,
        *,
        user: str = "root",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        check: bool = True,
        timeout_s: float | None = None,
    ) -> list[ExecResult]:
        """Run a command by the agents of VMs, in all at the same time; a result for each.

        :raise GuestError: it failed in some (unless ``check`` is False), an agent does not answer, or the time ran out.
        """
        from pvc.ops.execute import Command
        from pvc.ops.remote import run_command

        if isinstance(argv, str) or not argv:
            raise UsageError("a command is a list of words", hint='for a shell\'s line: ["sh", "-c", LINE]')
        data = stdin.encode() if isinstance(stdin, str) else stdin
        command = Command(
            tuple(argv),
            user=user,
            cwd=cwd,
            env=tuple(f"{name}={value}" for name, value in (env or {}).items()),
            stdin=data is not None,
        )
        results = run_command(self.control, self.ranks(vms), command, timeout_s, data)
        failed = [each for each in results if each.code]
        if check and failed:
            first = failed[0]
            said = first.stderr.decode(errors="replace").strip().splitlines()[-1:]
            words = f"{argv[0]} ended with {first.code} in {', '.join(each.vm for each in failed[:5])}"
            raise GuestError(": ".join([words, *said]))
        return results

    def run(
        self,
        command: Command,
        vms: Vms = None,
        *,
        on_output: OnOutput,
        stdin_fd: int | None = None,
        timeout_s: float | None = None,
        interactive: bool = False,
    ) -> list[Outcome]:
        """Run a command with its output as it comes: ``on_output(number of the VM, bytes, whether of standard error)``.

        ``interactive``: signals of this process go to the command; for the main thread.

        :raise KeyboardInterrupt: it was interrupted a second time, or told to end.
        """
        from pvc.ops.execute import SIGNALS, Runner

        runner = Runner(self.control, command, on_output, stdin_fd)
        return runner.run(self.ranks(vms), timeout_s, SIGNALS if interactive else ())

    def copy(
        self,
        *places: str | os.PathLike[str],
        user: str = "root",
        check: bool = True,
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> Copies:
        """Copy files and trees as pvc-cp(1) does: sources, then the destination, those in VMs as "vm0:/path".

        ``progress`` is told of so many bytes more.

        :raise PvcError: something was not copied (with ``check``), or the time ran out.
        """
        from pvc.ops.copy import copy

        done = copy(self.control, [os.fspath(each) for each in places], user, progress, timeout_s)
        if check:
            done.raise_failed()
        return done

    @contextmanager
    def forward(self, *texts: str, udp: bool = False, reverse: bool = False) -> Iterator[tuple[Forward, ...]]:
        """Forwards of pvc-forward(1) while the block runs, such as "0:vm0:80"; ``local`` of each is its port here.

        :raise PvcError: one cannot be had.
        """
        from pvc.ops.forwards import forwarding

        with forwarding(self.forwarder(texts, udp=udp, reverse=reverse), self.jobdir) as ready:
            yield ready

    def forwarder(
        self,
        texts: Sequence[str],
        *,
        udp: bool = False,
        reverse: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> Forwarder:
        """What serves forwards, for a loop of asyncio; ``tell`` is told what a user should know meanwhile.

        :raise UsageError: one is not understood.
        """
        from pvc.model.forward import parse_forward
        from pvc.ops.forward import Forwarder

        wishes = []
        for text in texts:
            try:
                wish = parse_forward(text, udp=udp, reverse=reverse)
            except ValueError as err:
                raise UsageError(str(err)) from None
            self.ranks(wish.vm)
            wishes.append(wish)
        return Forwarder(self.control, wishes, tell or (lambda _: None))

    def logs(self, vm: str = "vm0", *, source: str = "console", lines: int | None = None) -> str:
        """What pvc-logs(1) prints, control characters included.

        :raise PvcError: the VM has no such log.
        """
        from pvc.ops.logs import LogWish

        parts: list[bytes] = []
        self.read_logs(vm, LogWish(source, lines), lambda _: parts.append)
        return b"".join(parts).decode(errors="replace")

    def read_logs(self, vms: Vms, wish: LogWish, write: Callable[[int], Write]) -> None:
        """The log of each VM, by ``write(its number)``.

        :raise PvcError: a VM has no such log; the others' were read.
        """
        from pvc.ops.logs import read_logs

        read_logs(self.control, self.ranks(vms), wish, write)

    def start(self, vms: Vms = None) -> None:
        """Boot VMs that have ended.

        :raise GuestError: one did not start.
        """
        self.order(Order.START, vms)

    def reset(self, vms: Vms = None) -> None:
        """Press the reset button.

        :raise GuestError: one does not run.
        """
        self.order(Order.RESET, vms)

    def stop(self, vms: Vms = None, *, grace_s: float = 10.0) -> None:
        """Shut VMs down; all of them (None) is the end of the cluster.

        :raise PvcError: some could not be.
        """
        from pvc.ops.stop import stop_cluster

        if vms is not None:
            self.order(Order.STOP, vms, grace_s=grace_s)
            return
        stop_cluster(self.record, grace_s=grace_s)
        self.close()

    def order(
        self, order: Order, vms: Vms = None, *, grace_s: float = 0.0, check: bool = True
    ) -> tuple[OrderResult, ...]:
        """Give an order to VMs; how each is afterwards.

        :raise GuestError: some could not carry it out (with ``check``); those that could have.
        """
        from pvc.ops import orders

        results = orders.give_order(self.control, order, self.ranks(vms), grace_s=grace_s)
        if check:
            orders.check_results(results)
        return results
