"""Clusters for programs: what ``from pvc import Cluster`` gives."""

from __future__ import annotations

import os
import select
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import IO

from pvc import run
from pvc.errors import GuestError, HostError, JobError, PvcError, StateError, UsageError
from pvc.model.cluster import ClusterRecord
from pvc.model.forward import Forward, parse_forward
from pvc.model.vm import Order, OrderResult, VmStatus
from pvc.ops import forwards, orders
from pvc.ops.control import Control
from pvc.ops.execute import Command
from pvc.ops.jobdir import JobDir
from pvc.ops.launch import find_pvc
from pvc.ops.load import add_loads
from pvc.ops.logs import LogWish, read_logs
from pvc.ops.registry import find_cluster
from pvc.ops.remote import ExecResult, run_command
from pvc.ops.status import parse_vms, read_status
from pvc.ops.stop import stop_cluster
from pvc.ops.submission import ClusterWishes, holder_argv
from pvc.ops.waiting import parse_conditions, wait_for
from pvc.slurm.job import cancel_job

_END_S = 60.0
_ERRORS: dict[int, type[PvcError]] = {
    error.exit_code: error for error in (UsageError, JobError, StateError, HostError, GuestError)
}
Vms = str | Sequence[str] | None


class Cluster:
    """A running cluster of VMs.

    ``Cluster.allocate("debian:2")`` boots one in a job of its own, ``Cluster.find()`` takes one that runs. As a context
    manager, an allocated cluster ends with the block, whatever happens in it; one that was found goes on.
    """

    def __init__(self, control: Control, holder: Holder | None = None) -> None:
        self._control = control
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
            return cls(Control(JobDir.of(job_id).read_record(), JobDir.of(job_id)), holder)
        except BaseException:
            holder.end()
            raise

    @classmethod
    def find(cls, job_id: int | None = None, name: str | None = None) -> Cluster:
        """The running cluster of this job or name; without either that of SLURM_JOB_ID, else the only one.

        :raise JobError: there is none.
        :raise UsageError: there are several.
        """
        record = find_cluster(job_id, name)
        return cls(Control(record, JobDir.of(record.job_id)))

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
        return self._control.record

    @property
    def control(self) -> Control:
        """The way to its supervisors, for what has no method here."""
        return self._control

    @property
    def job_id(self) -> int:
        """Slurm's."""
        return self.record.job_id

    @property
    def vms(self) -> tuple[str, ...]:
        """The names of its VMs."""
        return tuple(f"vm{rank}" for rank in range(self.record.placement.count))

    def status(self, vms: Vms = None) -> tuple[VmStatus, ...]:
        """How VMs are; ``vms``: a name, a set such as "vm[0-3]", or several; None: all."""
        return add_loads(self._control, read_status(self._control, self._ranks(vms)))

    def wait(self, vms: Vms = None, *, until: str | Sequence[str] = "ssh", timeout_s: float = 600.0) -> None:
        """Until VMs are ready as pvc-wait(1) means it: "ssh", "agent", "cloud-init", "port:80", "cmd:test -e /ready".

        :raise GuestError: one never will, or is not in time; it says what each lacks.
        """
        conditions = parse_conditions((until,) if isinstance(until, str) else until)
        wait_for(self._control, self._ranks(vms), conditions, timeout_s)

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
        results = run_command(self._control, self._ranks(vms), command, timeout_s, data)
        failed = [each for each in results if each.code]
        if check and failed:
            first = failed[0]
            said = first.stderr.decode(errors="replace").strip().splitlines()[-1:]
            words = f"{argv[0]} ended with {first.code} in {', '.join(each.vm for each in failed[:5])}"
            raise GuestError(": ".join([words, *said]))
        return results

    def copy(self, *places: str | os.PathLike[str], timeout_s: float | None = None) -> None:
        """Copy files and trees as pvc-cp(1) does: sources, then the destination, those in VMs as "vm0:/path".

        :raise PvcError: something was not copied.
        """
        _call("cp", ["--job", str(self.job_id), "--", *[os.fspath(each) for each in places]], timeout_s)

    @contextmanager
    def forward(self, *texts: str, udp: bool = False, reverse: bool = False) -> Iterator[tuple[Forward, ...]]:
        """Forwards of pvc-forward(1) while the block runs, such as "0:vm0:80"; ``local`` of each is its port here.

        :raise PvcError: one cannot be had.
        """
        for text in texts:
            try:
                parse_vms([parse_forward(text, udp=udp, reverse=reverse).vm], self.record.placement.count)
            except ValueError as err:
                raise UsageError(str(err)) from None
        options = [*(["--udp"] if udp else []), *(["--reverse"] if reverse else []), "--job", str(self.job_id)]
        jobdir = JobDir.of(self.job_id)
        pid, ready = forwards.start_background([*options, "--", *texts], jobdir.path / "forward.log")
        try:
            yield ready
        finally:
            with suppress(UsageError):  # it has ended by itself
                forwards.stop(jobdir, [str(pid)])

    def logs(self, vm: str = "vm0", *, source: str = "console", lines: int | None = None) -> str:
        """What pvc-logs(1) prints, control characters included.

        :raise PvcError: the VM has no such log.
        """
        parts: list[bytes] = []
        (rank,) = self._ranks(vm)
        read_logs(self._control, (rank,), LogWish(source, lines), lambda _: parts.append)
        return b"".join(parts).decode(errors="replace")

    def start(self, vms: Vms = None) -> None:
        """Boot VMs that have ended.

        :raise GuestError: one did not start.
        """
        self._order(Order.START, vms)

    def reset(self, vms: Vms = None) -> None:
        """Press the reset button.

        :raise GuestError: one does not run.
        """
        self._order(Order.RESET, vms)

    def stop(self, vms: Vms = None, *, grace_s: float = 10.0) -> None:
        """Shut VMs down; all of them (None) is the end of the cluster.

        :raise PvcError: some could not be.
        """
        if vms is not None:
            self._order(Order.STOP, vms, grace_s)
            return
        stop_cluster(self.record, grace_s=grace_s)
        self.close()

    def _order(self, order: Order, vms: Vms, grace_s: float = 0.0) -> tuple[OrderResult, ...]:
        results = orders.give_order(self._control, order, self._ranks(vms), grace_s=grace_s)
        orders.check_results(results)
        return results

    def _ranks(self, vms: Vms) -> tuple[int, ...]:
        words = () if vms is None else (vms,) if isinstance(vms, str) else tuple(vms)
        return parse_vms(words, self.record.placement.count)


class Holder:
    """An alloc whose script waits for the end of its standard input, and so for the end of this process."""

    def __init__(self, argv: Sequence[str], variables: Mapping[str, str]) -> None:
        """:raise JobError: there is no salloc."""
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the alloc
        self._job_id: int | None = None
        try:
            self._process = run.spawn(
                argv,
                env={**os.environ, **variables},
                stdin=run.PIPE,
                stdout=run.PIPE,
                stderr=self._stderr,
                new_session=True,
            )
        except HostError as err:
            self._stderr.close()
            raise JobError("cannot ask Slurm", hint="install Slurm's client commands on this machine") from err

    def wait_ready(self, timeout_s: float | None) -> int:
        """The job's number, once its VMs run.

        :raise PvcError: they never will; what the launcher said.
        """
        assert self._process.stdout is not None
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        line = b""
        while not line.endswith(b"\n"):
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left_s)[0]:
                raise JobError(f"the VMs do not run after {timeout_s:g} s", hint="pvc ps shows what Slurm says")
            data = os.read(self._process.stdout.fileno(), 4096)
            if not data:
                self._process.wait()
                raise self._explain()
            line += data
        self._job_id = int(line)
        return self._job_id

    def end(self) -> None:
        """Let the job end, and see to it."""
        if self._stderr.closed:
            return
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        if self._job_id is None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # salloc that waits for nodes gives up
        try:
            self._process.wait(_END_S)
        except run.TimeoutExpired:
            if self._job_id is not None:
                cancel_job(self._job_id)
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def _explain(self) -> PvcError:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        said = [line.removeprefix("pvc: ") for line in lines if line.startswith("pvc: ")]
        hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), None)
        code = self._process.returncode
        text = said[-1] if said else lines[-1] if lines else f"salloc ended with {code}"
        return _ERRORS.get(code, JobError)(text, hint=hint)


def _call(command: str, words: Sequence[str], timeout_s: float | None) -> None:
    """A command of pvc, with its error as an exception."""
    process = run.spawn([find_pvc(), command, *words], env=os.environ, stdout=run.DEVNULL, stderr=run.PIPE)
    try:
        _, stderr = process.communicate(timeout=timeout_s)
    except run.TimeoutExpired:
        raise GuestError(f"pvc {command} did not end within {timeout_s:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        lines = stderr.decode(errors="replace").splitlines()
        said = [line.removeprefix("pvc: ") for line in lines if line.startswith("pvc: ")]
        hint = next((line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")), None)
        text = "; ".join(said) or f"pvc {command} ended with {process.returncode}"
        raise _ERRORS.get(process.returncode, GuestError)(text, hint=hint)
