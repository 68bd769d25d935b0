# SPDX-License-Identifier: Apache-2.0
"""The launcher: inside a job, boots the VMs, runs the user's shell or script beside them, and ends both.

Who notices whose death: the supervisors see the end of their standard input when the launcher dies; Slurm
ends the job when an alloc's launcher dies; the launcher watches its salloc and cancels the job without it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pvc import run
from pvc.errors import GuestError, HostError, JobError, PvcError
from pvc.host.secrecy import forbid_dumps
from pvc.model.cluster import ClusterKeys, ClusterRecord, ClusterSpec, Placement
from pvc.model.event import Event, EventKind
from pvc.model.words import ASKING, LEAVE, STAY
from pvc.ops import shell
from pvc.ops.describe import list_nodes, make_record, make_spec, place_vms
from pvc.ops.display import Display
from pvc.ops.grace import GraceWatch, was_preempted
from pvc.ops.handover import Handover
from pvc.ops.jobdir import JobDir, list_job_dirs
from pvc.ops.keys import KeyMaker
from pvc.ops.loop import Loop
from pvc.ops.progress import Progress, plural
from pvc.ops.registry import sweep
from pvc.ops.supervisors import Supervisors
from pvc.ops.walltime import Walltime, format_preemption, format_warning
from pvc.slurm.job import JobInfo, cancel_job, read_components, read_queue, read_reasons, read_states

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# What Slurm's --signal=B:USR1@300 is for: the script may have a handler for them.
_FOR_SCRIPT = (signal.SIGUSR1, signal.SIGUSR2)
_SETUP_TIMEOUT_S = 300.0
_REACHABLE_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 45.0  # guests with persistent drives have 20 s to power down
_CHILD_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Mission:
    """What this launcher is for. ``script`` empty: an interactive shell; None: nothing but the VMs.

    ``watch_parent``: the job is to end with the parent process (salloc). ``on_ready`` is told once the
    VMs run.
    """

    handover: Handover
    script: tuple[str, ...] | None
    watch_parent: bool = False
    on_ready: Callable[[], None] | None = None


class InterruptedLaunchError(PvcError):
    """A signal ended the launch before the shell or script began."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"interrupted by {number.name}")
        self.exit_code = 128 + number


class Launcher:
    """One cluster, from the step's start to the last supervisor's end."""

    def __init__(
        self, mission: Mission, components: Sequence[JobInfo], placement: Placement, pvc: str, display: Display
    ) -> None:
        self._mission = mission
        job = components[0]
        self._job = job
        self._components = components  # more than the job itself of a heterogeneous job
        self._placement = placement
        self._pvc = pvc
        self._display = display
        self._dir = JobDir.of(job.job_id)
        self._start = time.time()
        order = mission.handover.order
        templates = [group.template for group in order.groups for _ in range(group.count)]
        self._progress = Progress.of(placement, templates, self._start)
        self._loop = Loop(_SIGNALS, self._on_signal)
        self._supervisors: Supervisors | None = None
        self._child: run.Process[bytes] | None = None
        self._signal: signal.Signals | None = None
        self._skip_waiting = False
        self._waiting = False
        self._kill_at: float | None = None
        self._orphaned = False
        self._is_serving = False
        self._ending = False
        self._claim: int | None = None
        self._losses: dict[int, bool] = {}  # of components whose step has ended
        self._notices: list[run.Process[bytes]] = []
        self._walltime = Walltime(job.job_id, mission.handover.warn_s, self._warn_of_end)
        self._grace = GraceWatch(job.job_id, self._warn_of_preemption)

    def run(self) -> int:
        """Boot, serve, end; returns the exit code of the shell or script.

        :raise PvcError: the cluster could not be booted, or was lost.
        """
        try:
            self._watch_parent()
            self._boot()
            return self._serve()
        finally:
            self._end()

    # From nothing to running VMs

    def _boot(self) -> None:
        self._claim = self._dir.create(os.environ.get("SLURM_CLUSTER_NAME"))
        forbid_dumps()
        maker = KeyMaker(self._dir.path, f"pvc-{self._job.job_id}")
        nodes = list(self._progress.nodes)
        try:
            self._supervisors = Supervisors(list_nodes(self._placement), self._pvc, self._loop, self, self._dir.log)
            keys = maker.finish()
        finally:
            maker.abandon()
        self._dir.write_keys(keys)
        self._supervisors.send(self._make_spec(keys))
        self._display.say(
            f"job {self._job.job_id}: {plural(len(self._progress.vms), 'VM')} on {', '.join(nodes[:8])}"
            + (f" and {len(nodes) - 8} more" if len(nodes) > 8 else "")
        )
        _sweep_others()
        in_time = self._loop.run_until(self._boot_is_over, timeout_s=_SETUP_TIMEOUT_S, tick=self._tick)
        self._check_boot(in_time)
        for notice in self._progress.take_notices():
            self._display.say(notice)
        self._dir.write_record(self._make_record())
        if self._should_wait():
            self._wait_reachable()
        self._display.finish(self._progress)

    def _boot_is_over(self) -> bool:
        return (
            self._progress.is_running
            or self._progress.find_error() is not None
            or self._has_lost_step()
            or self._signal is not None
        )

    def _check_boot(self, in_time: bool) -> None:
        """:raise PvcError: the cluster does not run; the first node that said why is quoted."""
        error = self._progress.find_error()
        if error is not None:
            self._display.finish(self._progress)
            raise error
        if self._signal is not None:
            raise InterruptedLaunchError(self._signal)
        if self._has_lost_step():
            raise self._explain_lost_step()
        if not in_time:
            late = [name for name, node in self._progress.nodes.items() if node.endpoint is None]
            raise HostError(f"no answer from {', '.join(late[:5]) or 'the nodes'} in {_SETUP_TIMEOUT_S:g} s")
        if self._progress.is_dead:
            self._display.finish(self._progress)
            raise self._progress.find_guest_error()

    def _should_wait(self) -> bool:
        wish = self._mission.handover.wait
        return wish if wish is not None else self._mission.script == ()

    def _wait_reachable(self) -> None:
        """Until every VM answers; Ctrl-C is for those who do not want to wait."""
        self._waiting = True
        if self._mission.script == () and self._display.is_live:
            self._display.say("waiting until the VMs answer; Ctrl-C for the shell at once")
        in_time = self._loop.run_until(
            lambda: self._progress.is_settled or self._skip_waiting or self._is_over(),
            timeout_s=_REACHABLE_TIMEOUT_S,
            tick=self._tick,
        )
        self._waiting = False
        if not in_time:
            self._display.say(f"going on although not all VMs answer after {_REACHABLE_TIMEOUT_S:g} s")
        if self._progress.is_dead and not self._is_over():
            self._display.finish(self._progress)
            raise self._progress.find_guest_error()

    def _make_spec(self, keys: ClusterKeys) -> ClusterSpec:
        ends_job = self._mission.watch_parent or self._mission.script is not None
        order = self._mission.handover.order
        return make_spec(order, self._components, self._placement, keys, ends_job=ends_job)

    def _make_record(self) -> ClusterRecord:
        order = self._mission.handover.order
        return make_record(order, self._components, self._placement, self._progress.endpoints, self._start)

    # While the VMs run

    def _serve(self) -> int:
        """Run the shell or script; returns its exit code.

        :raise PvcError: the cluster was lost meanwhile.
        """
        if self._signal is not None:
            raise InterruptedLaunchError(self._signal)
        if self._has_lost_step():
            return self._verdict(0)
        self._is_serving = True
        if self._mission.on_ready is not None:
            self._mission.on_ready()
        if self._mission.script is None:
            self._loop.run_until(self._is_over, tick=self._walltime.tick)
            return self._verdict(0)
        self._start_child(self._mission.script)
        self._loop.run_until(self._child_is_over, tick=self._hurry_child)
        assert self._child is not None
        code = self._child.returncode
        return self._verdict(code if code >= 0 else 128 - code)

    def _start_child(self, script: Sequence[str]) -> None:
        if script:
            argv = list(script)
            environment = shell.child_environment(os.environ, self._job.job_id, self._dir.path)
        else:
            argv, environment = shell.shell_command(os.environ, self._job.job_id, self._dir.path)
            self._display.say("the VMs end with this shell; try: pvc status, pvc ssh vm0")
        self._child = run.spawn(shell.tied_argv(argv), env=environment, stdin=None)
        self._loop.add(os.pidfd_open(self._child.pid), _nothing)

    def _child_is_over(self) -> bool:
        assert self._child is not None
        if self._child.poll() is not None:
            return True
        if self._kill_at is None and self._is_over():
            if self._progress.was_stopped and self._job_runs():
                self._display.warn("the cluster was stopped")
            self._end_child(signal.SIGHUP if self._mission.script == () else signal.SIGTERM)
        return False

    def _end_child(self, number: signal.Signals) -> None:
        """Ask the shell or script to end, once, and see to it.

        salloc and slurmstepd make the launcher a process group's leader, and a script's commands are in that
        group; an interactive shell has a group of its own and passes SIGHUP on.
        """
        if self._kill_at is not None or self._child is None:
            return
        self._kill_at = time.monotonic() + _CHILD_PATIENCE_S
        with suppress(ProcessLookupError):
            if os.getpgid(self._child.pid) == os.getpid():
                os.killpg(os.getpid(), number)
            else:
                self._child.send_signal(number)

    def _hurry_child(self) -> None:
        self._walltime.tick()
        if self._kill_at is not None and time.monotonic() > self._kill_at and self._child is not None:
            self._child.kill()

    def _is_over(self) -> bool:
        return self._signal is not None or self._orphaned or self._has_lost_step()

    def _verdict(self, code: int) -> int:
        """``code``, unless the cluster was lost under the shell or script.

        :raise PvcError: it was.
        """
        if self._orphaned:
            raise JobError(f"salloc of job {self._job.job_id} has died; the job was cancelled")
        if self._signal is None and not self._has_lost_step():
            return code
        if self._signal is not signal.SIGINT and not self._job_runs():
            raise self._explain_end()
        if self._signal is not None or self._progress.was_stopped:
            return code
        raise self._explain_lost_step()

    # What happens meanwhile

    def on_event(self, event: Event) -> None:
        """A supervisor has said something."""
        if event.kind is EventKind.TOLD:
            self._answer_end()
        # A node's clock may be minutes away from the one that the launch is counted by.
        self._tell(self._progress.apply(replace(event, time=time.time())))

    def _answer_end(self) -> None:
        """Slurm's SIGTERM has reached a supervisor; if this launcher is ending, too, the end of its input is coming."""
        if not self._ending and self._signal is None and self._supervisors is not None:
            self._supervisors.tell(ASKING)
            self._supervisors.tell(STAY if self._grace.may_stay() else LEAVE)

    def on_lost(self, node: str, why: str) -> None:
        """A supervisor has died."""
        if not self._ending:
            self._tell(self._progress.lose_node(node, why, time.time()))

    def _tell(self, news: list[str]) -> None:
        """Before the shell or script runs, all that is new; later, only what went wrong."""
        if not self._is_serving:
            self._display.news(news)
            return
        for line in news:
            if " failed: " in line:
                self._display.warn(line)

    def _warn_of_end(self, left_s: float) -> None:
        """Slurm will end the job: tell the user here, and whoever is in the guests."""
        self._announce(format_warning(self._job.job_id, left_s), left_s)

    def _warn_of_preemption(self, left_s: float | None) -> None:
        self._announce(format_preemption(self._job.job_id, left_s), left_s or 0.0)

    def _announce(self, text: str, left_s: float) -> None:
        self._display.warn(text)
        with suppress(HostError):
            argv = [self._pvc, "announce", str(self._job.job_id), str(round(left_s)), text]
            self._notices.append(run.spawn(argv, env=os.environ, stdout=run.DEVNULL, stderr=run.DEVNULL))
        self._notices = [each for each in self._notices if each.poll() is None]

    def _on_signal(self, number: signal.Signals) -> None:
        if number in _FOR_SCRIPT:
            if self._child is not None and self._mission.script:
                self._child.send_signal(number)
            return
        if number is signal.SIGINT and self._waiting and self._mission.script == ():
            self._skip_waiting = True
            return
        if self._child is not None:
            # The terminal gives Ctrl-C to the child, too, and the child decides what it means
            if number is not signal.SIGINT and self._kill_at is None:
                self._signal = number
                self._end_child(number)
            return
        self._signal = number

    def _watch_parent(self) -> None:
        if not self._mission.watch_parent:
            return
        try:
            fd = os.pidfd_open(os.getppid())
        except OSError:
            self._lose_parent(None)
            return
        self._loop.add(fd, lambda: self._lose_parent(fd))

    def _lose_parent(self, fd: int | None) -> None:
        if fd is not None:
            self._loop.remove(fd)
        self._orphaned = True
        self._signal = self._signal or signal.SIGHUP
        if self._child is not None:
            self._end_child(signal.SIGHUP)

    def _tick(self) -> None:
        self._display.update(self._progress)

    def _has_lost_step(self) -> bool:
        """Whether the cluster is not whole any more: of a heterogeneous job, one component's step is enough."""
        if self._supervisors is None:
            return False
        return self._supervisors.has_ended or any(map(self._has_lost_component, self._supervisors.list_ended()))

    def _has_lost_component(self, index: int) -> bool:
        """Whether a component whose step has ended was lost; else all are being stopped and it was the first, or its
        supervisors were killed, which in an ordinary job does not end the others either.
        """
        if index not in self._losses:
            nodes = [self._progress.nodes[name] for name in list_nodes(self._placement)[index]]
            explained = all(node.ended or node.lost for node in nodes)
            self._losses[index] = not explained or self._components[index].job_id in self._list_ended()
        return self._losses[index]

    def _explain_end(self) -> JobError:
        """Why the job is over, under VMs that ran."""
        if was_preempted(self._job.job_id):
            return JobError(
                f"{self._name_ended()} was preempted: Slurm wanted its nodes for another job, and its VMs have ended",
                hint="jobs of some partitions are never preempted: scontrol show partition, PreemptMode",
            )
        failed = self._progress.find_failed_nodes()
        if failed:
            return JobError(
                f"{self._name_ended()} has ended: Slurm has lost {', '.join(failed)}", hint="sinfo -R says why"
            )
        return JobError(f"{self._name_ended()} has ended under its VMs (scancel, requeue, or its time is over)")

    def _explain_lost_step(self) -> PvcError:
        """Why the supervisors are gone: a node's error, the job's end, else what srun said."""
        error = self._progress.find_error()
        if error is not None:
            return error
        job = f"job {self._job.job_id}"
        if not self._job_runs():
            return self._explain_lost_job()
        said = self._supervisors.messages if self._supervisors is not None else ()
        last = next((line for line in reversed(said) if line), "no message")
        if not self._progress.endpoints:
            return JobError(f"the step of {job} did not start: {last}")
        return GuestError(f"all supervisors of {job} have ended: {last}")

    def _explain_lost_job(self) -> PvcError:
        """Why the job ended before its VMs ran: a node's fault, which a failed prolog leaves as its reason."""
        job = f"job {self._job.job_id}"
        if was_preempted(self._job.job_id):
            return self._explain_end()
        with suppress(JobError):
            for node, reason in read_reasons(list(self._progress.nodes)).items():
                return HostError(
                    f"{node} is out of service, so {job} has ended: {reason}", hint="tell the administrator: sinfo -R"
                )
        return JobError(f"{job} has ended while its VMs were started")

    def _job_runs(self) -> bool:
        return not self._list_ended()

    def _list_ended(self) -> list[int]:
        """Components that do not run any more: with one of them the cluster ends. None, while Slurm does not answer."""
        try:
            held = {each.job_id for each in read_states(self._job.job_id) if each.holds_nodes}
        except JobError:
            return []
        return [each.job_id for each in self._components if each.job_id not in held]

    def _name_ended(self) -> str:
        """Which job has ended; of a heterogeneous one the component, if it is not all of it."""
        ended = self._list_ended()
        if len(self._components) == 1 or len(ended) != 1:
            return f"job {self._job.job_id}"
        return f"component {ended[0]} of job {self._job.job_id}"

    def _lacks_component(self) -> bool:
        """Whether salloc has lost a component: then it leaves the others to run on (Slurm 22.05).

        The end of a batch script is the end of all.
        """
        is_batch = self._mission.script is not None and not self._mission.watch_parent
        if is_batch or len(self._components) == 1:
            return False
        return 0 < len(self._list_ended()) < len(self._components)

    def _end(self) -> None:
        """Stop everything; errors here must not hide the one that led here."""
        self._ending = True
        try:
            if self._child is not None and self._child.poll() is None:
                self._child.kill()
                self._child.wait()
            for notice in self._notices:
                notice.kill()
                notice.wait()
            if self._supervisors is not None:
                self._supervisors.stop(_STOP_TIMEOUT_S, goodbye=not self._orphaned)
            if self._orphaned or self._lacks_component():
                cancel_job(self._job.job_id)
        finally:
            self._loop.close()
            if self._claim is not None:
                self._dir.give_up(self._claim)


def launch(mission: Mission, environ: Mapping[str, str], display: Display) -> int:
    """Boot the cluster of ``mission`` in the job around this process; returns the exit code.

    :raise PvcError: anything that kept the cluster from running, or ended it.
    """
    if mission.script:
        # Where it was submitted it may have been another, or have had what this node lacks.
        shell.find_script(mission.script)
    components = read_components(environ)
    placement = place_vms(components, mission.handover.order.request)
    return Launcher(mission, components, placement, find_pvc(), display).run()


def find_pvc() -> str:
    """The absolute path of the ``pvc`` that runs now: nodes have it at the same place."""
    name = Path(sys.argv[0])
    if name.name == "pvc" and name.exists():
        return os.path.abspath(name)
    beside = Path(sys.executable).parent / "pvc"
    if beside.exists():
        return os.fspath(beside)
    raise HostError("cannot find the pvc command beside its Python", hint="install pvc, or run make venv")


def _sweep_others() -> None:
    """Remove what launchers that were killed left behind; the supervisors are starting meanwhile."""
    if len(list_job_dirs()) > 1:
        with suppress(JobError):
            sweep({job.job_id: job for job in read_queue()})


def _nothing() -> None:
    """The loop looks at the process itself after it was woken."""
