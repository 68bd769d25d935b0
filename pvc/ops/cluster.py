# SPDX-License-Identifier: Apache-2.0
"""A cluster, as commands and programs use it: what ``from pvc import Cluster`` gives.

Commands begin fast, so each method imports what it needs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from pvc.errors import EndedError, GuestError, UsageError
from pvc.model.cluster import ClusterRecord
from pvc.model.vm import Order, OrderResult, VmStatus
from pvc.ops.arguments import want_number, want_seconds, want_text, want_variables, want_word, want_words
from pvc.ops.control import Control
from pvc.ops.jobdir import JobDir
from pvc.ops.registry import find_cluster
from pvc.ops.status import parse_vms

if TYPE_CHECKING:
    from pvc.model.forward import Forward
    from pvc.ops.copied import Copies, Progress
    from pvc.ops.execute import Command, OnOutput, Outcome
    from pvc.ops.forward import Forwarder
    from pvc.ops.holder import Holder
    from pvc.ops.logs import LogWish, Write
    from pvc.ops.remote import ExecResult
    from pvc.ops.waiting import Lack

Vms = str | Iterable[str] | None


class Cluster:
    """A running cluster of VMs.

    ``Cluster.allocate("debian:2")`` boots one in a job of its own, ``Cluster.find()`` takes one that runs. As a context
    manager, an allocated cluster ends with the block, whatever happens in it; one that was found goes on.

    ``vms`` of the methods are a name, a set such as "vm[0-3]", or several; None means all of them, an empty list none.
    """

    def __init__(self, record: ClusterRecord, holder: Holder | None = None) -> None:
        self._record = record
        self._holder = holder
        self._control: Control | None = None

    @classmethod
    def allocate(
        cls,
        definition: str,
        *,
        cpus: int | None = None,
        memory: str | None = None,
        nodes: str | int | None = None,
        name: str = "pvc",
        image: str | Sequence[str] = (),
        user_data: str | os.PathLike[str] | None = None,
        mounts: Sequence[str] = (),
        resource_set: str | None = None,
        slurm: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> Cluster:
        """Make a job and boot its VMs; returns when QEMU runs in all of them. The words mean what pvc-alloc(1) says.

        ``slurm``: options for salloc. ``timeout_s``: how long it may take until the VMs run, None: for ever. The job
        ends with this process at the latest.

        :raise JobTimeoutError: the VMs do not run in this time; it says what Slurm says of the job.
        :raise PvcError: there is no cluster; its class says who has to act.
        """
        from pvc.ops.holder import Holder
        from pvc.ops.submission import ClusterWishes, holder_argv

        if isinstance(nodes, int):
            nodes = str(want_number("nodes", nodes, 1))
        wishes = ClusterWishes(
            definition=want_text("definition", definition),
            slurm=want_words("slurm", slurm, 'options for salloc: ["--time=1:00:00"]'),
            cpus=None if cpus is None else want_number("cpus", cpus, 1),
            memory=None if memory is None else want_text("memory", memory, 'with its unit, as "64M" or "2G"'),
            nodes=None if nodes is None else want_text("nodes", nodes),
            name=want_text("name", name),
            images=want_words("image", (image,) if isinstance(image, str) else image),
            user_data=None if user_data is None else want_word("user_data", user_data),
            mounts=want_words("mounts", mounts),
            resource_set=None if resource_set is None else want_text("resource_set", resource_set),
            wait=False,
            quiet=True,
        )
        if timeout_s is not None:
            want_seconds("timeout_s", timeout_s)
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

        :raise EndedError: it has ended.
        :raise JobError: there is none.
        :raise UsageError: there are several.
        """
        if job_id is not None:
            want_number("job_id", job_id, 1)
        return cls(find_cluster(job_id, None if name is None else want_text("name", name)))

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

    def __del__(self) -> None:
        """A cluster that nobody can reach any more is ended, and whoever looks for such mistakes is told."""
        holder = getattr(self, "_holder", None)
        if holder is not None and not holder.ended:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            holder.let_go()

    def __repr__(self) -> str:
        return f"<Cluster {self.job_id} ({self.record.definition})>"

    @property
    def record(self) -> ClusterRecord:
        """What is known of it: job, definition, placement."""
        return self._record

    @property
    def control(self) -> Control:
        """The way to its supervisors, for what has no method here.

        :raise EndedError: the cluster has ended.
        """
        if self._holder is not None and self._holder.ended:
            raise EndedError(f"cluster {self.job_id} has ended: this program has closed it")
        if self._control is None:
            self._control = Control(self._record, self.jobdir)
        return self._control

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
        """The numbers of VMs: of a name, a set such as "vm[0-3]", or several; None: of all; of nothing, none.

        :raise UsageError: they are not this cluster's.
        """
        count = self.record.placement.count
        if vms is None:
            return tuple(range(count))
        return parse_vms((vms,) if isinstance(vms, str) else want_words("vms", vms), count)

    def status(self, vms: Vms = None) -> tuple[VmStatus, ...]:
        """How VMs are.

        :raise EndedError: the cluster has ended.
        """
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

        ``on_progress`` is told after each look what each VM (its number) still lacks.

        :raise GuestTimeoutError: one is not in time; ``gathered`` says of each late one what it lacks, by its name.
        :raise GuestError: one never will; it says what each lacks.
        :raise EndedError: the cluster has ended.
        """
        from pvc.ops.waiting import parse_conditions, wait_for

        want_seconds("timeout_s", timeout_s)
        conditions = parse_conditions(want_words("until", (until,) if isinstance(until, str) else until))
        wait_for(self.control, self.ranks(vms), conditions, timeout_s, on_progress=on_progress)

    def exec(
        self,
        argv: Sequence[str | os.PathLike[str]],
        vms: Vms = None,
        *,
        user: str = "root",
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | str | None = None,
        check: bool = True,
        timeout_s: float | None = None,
    ) -> list[ExecResult]:
        """Run a command by the agents of VMs, in all at the same time; a result for each.

        :raise GuestTimeoutError: the time ran out; ``gathered`` are the results of all VMs, those of late ones, too.
        :raise GuestError: it failed in some (unless ``check`` is False), or an agent does not answer.
        :raise EndedError: the cluster has ended.
        """
        from pvc.ops.execute import Command
        from pvc.ops.remote import run_command

        words = want_words("argv", argv, 'for a shell\'s line: ["sh", "-c", LINE]')
        if not words:
            raise UsageError("argv is empty: a command is a list of words")
        if stdin is not None and not isinstance(stdin, (str, bytes)):
            raise UsageError("stdin is neither bytes nor a text", hint="for a file: stdin=FILE.read_bytes()")
        if timeout_s is not None:
            want_seconds("timeout_s", timeout_s)
        data = stdin.encode() if isinstance(stdin, str) else stdin
        command = Command(
            words,
            user=want_text("user", user),
            cwd=None if cwd is None else want_word("cwd", cwd),
            env=tuple(f"{name}={value}" for name, value in want_variables("env", env or {}).items()),
            stdin=data is not None,
        )
        results = run_command(self.control, self.ranks(vms), command, timeout_s, data)
        failed = [each for each in results if each.code]
        if check and failed:
            first = failed[0]
            said = first.stderr.decode(errors="replace").strip().splitlines()[-1:]
            text = f"{words[0]} ended with {first.code} in {', '.join(each.vm for each in failed[:5])}"
            raise GuestError(": ".join([text, *said]))
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
        links: bool = False,
    ) -> Copies:
        """Copy files and trees as pvc-cp(1) does: sources, then the destination, those in VMs as "vm0:/path".

        ``progress`` is told of so many bytes more. ``links``: from VMs, also symbolic links that lead out of the tree.

        :raise GuestTimeoutError: the time ran out; ``gathered`` are the copies so far.
        :raise EndedError: the cluster has ended.
        :raise PvcError: something was not copied (with ``check``).
        """
        from pvc.ops.copy import copy

        words = want_words("places", places)
        if timeout_s is not None:
            want_seconds("timeout_s", timeout_s)
        done = copy(self.control, words, want_text("user", user), progress, timeout_s, links=links)
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
        for text in want_words("forwards", texts):
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
        """Shut VMs down; all of them (None) is the end of the cluster. One that has ended already is fine.

        :raise PvcError: some could not be.
        """
        from pvc.ops.stop import stop_cluster

        want_seconds("grace_s", grace_s)
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
