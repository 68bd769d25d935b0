# SPDX-License-Identifier: Apache-2.0
"""PID 1 of a node: ``python3 -m pvc.testbed.init PLAN REPORT_FD SWITCH_PID``.

Enters the node's cgroups, makes its namespaces, builds its view of the file system and its link to the
switch, starts its services, and from then on reaps and restarts. When it is killed the kernel kills
everything in the node: a power failure.
"""

from __future__ import annotations

import logging
import os
import pwd
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pvc import codec, log, run
from pvc.errors import HostError, PvcError
from pvc.testbed import cgroups, etcdauth, layout, processes, syscalls
from pvc.testbed.model import NodePlan, Service
from pvc.testbed.view import apply_view

LOG = logging.getLogger(__name__)

_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# A service that lived this long starts again at once when it ends.
_STEADY_S = 10.0
_POLL_S = 0.01
_SWEEP_S = 1.0
_NAMESPACES = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWNET
ENVIRONMENT = {"PATH": run.PATH, "LANG": "C.UTF-8"}


class Report:
    """Lines to whoever waits for the node: "ready NAME SECONDS", "failed TEXT", "up"."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def send(self, text: str) -> None:
        """Tell, if anybody still listens."""
        if self._fd is not None:
            try:
                os.write(self._fd, f"{text}\n".encode())
            except BrokenPipeError:
                self.close()

    def close(self) -> None:
        """Nothing more will be told."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@dataclass
class _State:
    """A service at run time; times are of the monotonic clock."""

    service: Service
    pid: int | None = None
    ready: bool = False
    started: bool = False
    retry_at: float | None = None
    failures: int = 0
    started_at: float = 0.0
    first_started_at: float = 0.0


def main() -> NoReturn:
    """Become the node that the plan describes."""
    log.setup(timestamps=True)
    plan = codec.loads(NodePlan, Path(sys.argv[1]).read_bytes())
    report = Report(int(sys.argv[2]))
    try:
        cgroups.enter_new_namespace(plan.cgroups, plan.testbed, plan.name)
        syscalls.unshare(_NAMESPACES)
        _connect(plan, switch=int(sys.argv[3]))
        syscalls.unshare(syscalls.CLONE_NEWPID)
    except (OSError, PvcError) as err:
        report.send(f"failed {err}")
        os._exit(1)
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        # Nobody waits for PID 1: it belongs to the machine's init from here on. It may not touch the mounts,
        # which this process shares, before its pid is written.
        processes.write_daemon(Path(plan.state_dir) / "init.pid", pid)
        os.write(tell, b".")
        os._exit(0)
    os.close(tell)
    if not os.read(told, 1):
        os._exit(1)
    os.close(told)
    os.setsid()
    try:
        apply_view(plan.view, plan.cgroups)
        syscalls.sethostname(plan.name)
    except (OSError, PvcError) as err:
        report.send(f"failed cannot build the node: {err}")
        os._exit(1)
    Init(plan, report).serve()


def _connect(plan: NodePlan, switch: int) -> None:
    """Veth pairs: a device here, a port named after the node on a bridge of the switch."""
    own = f"link set lo up\naddr add {plan.address}/{plan.prefix_length} dev eth0\nlink set eth0 up\n"
    theirs = _pair(plan, plan.name, "eth0", "switch")
    if plan.tunnel_address is not None:
        link, bridge = layout.TUNNEL_LINK, layout.TUNNEL_BRIDGE
        theirs += _pair(plan, plan.name + layout.TUNNEL_SUFFIX, link, "tunnels")
        # Open vSwitch finds the bridge's own device and takes it: nobody has to wait for it to give it an address.
        own += (
            # The kernel must not answer for the bridge's address, too: it sees what comes to the link as well.
            f"link set {link} addrgenmode none arp off up\n"
            f"tuntap add dev {bridge} mode tap user 0\nlink set {bridge} mtu {plan.mtu} up\n"
            f"addr add {plan.tunnel_address}/{plan.prefix_length} dev {bridge}\n"
        )
    run.run(["nsenter", f"--net=/proc/{switch}/ns/net", "ip", "-batch", "-"], stdin=theirs)
    run.run(["ip", "-batch", "-"], stdin=own)


def _pair(plan: NodePlan, port: str, device: str, bridge: str) -> str:
    return (
        f"link add {port} mtu {plan.mtu} type veth peer name {device} mtu {plan.mtu} netns {os.getpid()}\n"
        f"link set {port} master {bridge} up\n"
    )


class Init:
    """The main loop: one thread, woken by SIGCHLD and, while something is pending, every 10 ms."""

    def __init__(self, plan: NodePlan, report: Report) -> None:
        self.plan = plan
        self.report = report
        self.began = time.monotonic()
        self.states = [_State(service) for service in plan.services]
        self.helper: int | None = None
        # Not a blocked signal and sigtimedwait(2): the services would inherit the mask.
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def serve(self) -> NoReturn:
        """Start everything, then look after it."""
        while True:
            self._start_due()
            self._check_ready()
            if select.select([self._woken], [], [], self._wait_s())[0]:
                os.read(self._woken, 4096)
            self._reap()

    def _wait_s(self) -> float | None:
        """How long to sleep unless a child ends; None: as long as it takes."""
        if self.helper is not None or any(not each.ready or each.retry_at for each in self.states):
            return _POLL_S
        return _SWEEP_S if cgroups.remove_empty_jobs(self.plan.cgroups) else None

    def _start_due(self) -> None:
        now = time.monotonic()
        for state in self.states:
            if state.pid is not None or (state.started and state.retry_at is None):
                continue
            if state.retry_at is not None and now < state.retry_at:
                continue
            if all(_holds(condition) for condition in state.service.after):
                self._start(state)

    def _start(self, state: _State) -> None:
        path = Path("/var/log") / f"{state.service.name}.log"
        state.started, state.retry_at, state.started_at = True, None, time.monotonic()
        state.first_started_at = state.first_started_at or state.started_at
        try:
            with path.open("ab") as stream:
                child = run.spawn(
                    _as_user(state.service), env=ENVIRONMENT, stdout=stream, stderr=run.STDOUT, new_session=True
                )
            state.pid = child.pid
            child.returncode = 0  # reaped below, with everything else
        except HostError as err:
            path.write_text(f"{err}\n")
            self._ended(state, str(err))

    def _check_ready(self) -> None:
        for state in self.states:
            if state.ready or not state.started:
                continue
            if state.service.ready is None or _holds(state.service.ready):
                state.ready = True
                self._tell(state.service.name)
                if self.plan.etcd_auth and state.service.name == "etcd":
                    self.helper = etcdauth.start_setup(Path("/etc/pvc/etcd-password"))
            elif time.monotonic() > state.first_started_at + state.service.timeout_s:
                # One that is started again and again may yet come; the others never will.
                kind = "warning" if state.service.restart else "failed"
                self.report.send(f"{kind} {state.service.name} does not serve {state.service.ready}")
                state.ready = True
        if self.helper is None and all(state.ready for state in self.states):
            self.report.send("up")
            self.report.close()

    def _tell(self, name: str) -> None:
        self.report.send(f"ready {name} {time.monotonic() - self.began:.2f}")

    def _reap(self) -> None:
        for pid, status in _ended_children():
            if pid == self.helper:
                self.helper = None
                if status != 0:
                    self.report.send("failed etcd refused to turn authentication on")
                else:
                    self._tell("etcd-auth")
            for state in self.states:
                if state.pid == pid:
                    state.pid = None
                    self._ended(state, f"{state.service.name} ended with status {os.waitstatus_to_exitcode(status)}")

    def _ended(self, state: _State, text: str) -> None:
        """A service is gone: start it again as systemd's Restart=always would, or remember that it is not there."""
        LOG.warning("%s", text)
        if not state.service.restart:
            if not state.ready:
                self.report.send(f"failed {text}")
                state.ready = True
            return
        lived_s = time.monotonic() - state.started_at
        state.failures = 0 if lived_s > _STEADY_S else min(state.failures + 1, len(_BACKOFF_S) - 1)
        state.retry_at = time.monotonic() + _BACKOFF_S[state.failures]


def _as_user(service: Service) -> tuple[str, ...]:
    if service.user == "root":
        return service.argv
    entry = pwd.getpwnam(service.user)
    return ("setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", "--", *service.argv)


def _holds(condition: str) -> bool:
    if condition.startswith("/"):
        return os.path.exists(condition)
    host, _, port = condition.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=0.2):
            return True
    except OSError:
        return False


def _ended_children() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


if __name__ == "__main__":
    main()
