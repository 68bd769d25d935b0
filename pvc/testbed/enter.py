# SPDX-License-Identifier: Apache-2.0
"""Run a command inside a node: its namespaces, its cgroups, one of its users."""

from __future__ import annotations

import os
import pwd
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pvc import run
from pvc.errors import HostError
from pvc.testbed import cgroups, syscalls
from pvc.testbed.layout import USERS
from pvc.testbed.model import NodePlan

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGQUIT)
# The mount namespace comes last: the others are found through the host's /proc.
_ORDER = ("ipc", "uts", "net", "cgroup", "pid", "mnt")


def enter_node(plan: NodePlan, pid: int) -> None:
    """Move this process into a node; children (not the process itself) are in its PID namespace.

    :raise HostError: the node ended meanwhile.
    """
    try:
        namespaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in _ORDER]
        cgroups.enter_cgroup(plan.cgroups, plan.testbed, plan.name)
        for fd in namespaces:
            syscalls.setns(fd)
            os.close(fd)
    except OSError as err:
        raise HostError(f"cannot enter node {plan.name}") from err


def execute(plan: NodePlan, pid: int, argv: Sequence[str], *, user: str, extra_env: Mapping[str, str]) -> int:
    """Run a command in a node and return its exit code, or 128 and the signal that ended it.

    A terminal on standard input goes to the command, with job control.

    :raise HostError: the node ended meanwhile, or has no such user.
    """
    terminal = sys.stdin.fileno() if _is_terminal() else None
    enter_node(plan, pid)
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        hint = f"users are {', '.join(USERS)} and root"
        raise HostError(f"node {plan.name} has no user {user!r}", hint=hint) from None
    environment = {
        "PATH": run.PATH,
        "LANG": "C.UTF-8",
        "HOME": entry.pw_dir,
        "USER": user,
        "LOGNAME": user,
        "SHELL": entry.pw_shell,
        **{name: os.environ[name] for name in ("TERM", "NO_COLOR") if name in os.environ},
        **extra_env,
    }
    # Blocked until the child has a process group of its own, so that no signal is lost or hits the wrong one.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child == 0:
        _become(entry, list(argv), environment, terminal)
    return _attend(child, terminal)


def _is_terminal() -> bool:
    try:
        return os.isatty(sys.stdin.fileno()) and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


def _become(entry: pwd.struct_passwd, argv: list[str], environment: dict[str, str], terminal: int | None) -> NoReturn:
    code = 126
    try:
        os.setpgid(0, 0)
        if terminal is not None:
            _take_terminal(terminal, os.getpid())
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        # After setuid(2), which forgets it. A killed "exec" takes its command along, as a lost terminal would.
        syscalls.set_parent_death_signal(signal.SIGHUP)
        os.umask(0o022)
        os.chdir(entry.pw_dir if os.path.isdir(entry.pw_dir) else "/")
        for number in (*_FORWARDED, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(argv[0], argv, environment)
    except OSError as err:
        code = 127 if isinstance(err, FileNotFoundError) else 126
        os.write(2, f"pvc: cannot run {argv[0]}: {err.strerror}\n".encode())
    finally:
        os._exit(code)


def _attend(child: int, terminal: int | None) -> int:
    def forward(number: int, _frame: FrameType | None) -> None:
        # What a keyboard sends reaches a whole job, what kill(1) sends reaches one process.
        with suppress(ProcessLookupError):
            (os.killpg if number in {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP} else os.kill)(child, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    own_group = os.getpgrp()
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if terminal is not None:
            with suppress(OSError):
                _take_terminal(terminal, own_group)
        if not os.WIFSTOPPED(status):
            break
        if terminal is None:
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            os.killpg(own_group, signal.SIGSTOP)
            _take_terminal(terminal, child)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGCONT)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _take_terminal(terminal: int, group: int) -> None:
    """Make a process group the terminal's foreground; without the block the caller would be stopped (SIGTTOU)."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        os.tcsetpgrp(terminal, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def read_plan(state_dir: Path, node: str) -> NodePlan:
    """The plan of a node of a testbed that is up.

    :raise HostError: there is no such node.
    """
    from pvc import codec

    try:
        return codec.loads(NodePlan, (state_dir / "nodes" / node / "plan.json").read_bytes())
    except FileNotFoundError:
        raise HostError(f"there is no node {node!r}", hint="pvc testbed status") from None
