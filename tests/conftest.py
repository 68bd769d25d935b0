# SPDX-License-Identifier: Apache-2.0
"""Guards of the unit tests: no process is started, no socket opened, unless a test says so by a marker.

The guards raise a BaseException, which no handler in pvc takes for an ordinary error.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
from typing import Any, NoReturn

import hypothesis
import pytest

# One testbed for tests/slurm and tests/attacks of a process: each conftest of its own would bring one up.
from tests.slurm.fixtures import bare, before, debian, small, tb, testbed

__all__ = ["bare", "before", "debian", "small", "tb", "testbed"]
# A machine that does other work, too, is no failure: no test asserts a time. Each run draws other examples, so few of
# them find in days what many find at once: `make fuzz` has the many.
hypothesis.settings.register_profile("house", deadline=None, max_examples=25)
hypothesis.settings.register_profile("deep", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("house")
_OUTSIDE = ("host", "vm", "slurm")
# A file is one worker's, so what takes minutes begins first: the last one would be alone at the end.
_LONGEST = ("vm/test_images.py", "slurm/test_faults.py", "slurm/test_network_l3.py", "slurm/test_reach_guests.py")
# Of the unit tests, whose processes take each other's rest, those that take seconds each.
_LONG = ("unit/test_linters.py", "unit/test_spank.py", "unit/test_agent_sources.py", "unit/images/test_faults.py")
# Trees of syntax, examples and modules are millions of objects, hardly any of them in rings. Looked through time and
# again, parsing pvc alone takes four times as long.
gc.set_threshold(50_000, 20, 20)
# What a shell starts in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; all else in the order in which it was found."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(_LONGEST + _LONG))


def pytest_collection_finish() -> None:
    """What is there for all tests is looked through no more, and what processes are forked shares it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let the processes of pytest-xdist undo what they have made: after Ctrl-C it would kill them in seconds."""
    controller = session.config.pluginmanager.get_plugin("dsession")
    nodes = getattr(controller, "nodemanager", None)
    for gateway in nodes.group if nodes is not None else ():
        gateway.node.shutdown()
        # That is how it tells of a process that had the Ctrl-C, too, or has crashed.
        with contextlib.suppress(EOFError, gateway.node.channel.RemoteError):
            gateway.node.channel.waitclose()


class GuardError(BaseException):
    """A unit test did what a unit test must not do."""


def _marked(request: pytest.FixtureRequest, *names: str) -> bool:
    return any(request.node.get_closest_marker(name) is not None for name in names)


@pytest.fixture(autouse=True)
def no_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are for tests marked host, vm, slurm or allow_run."""
    if _marked(request, *_OUTSIDE, "allow_run"):
        return

    def refuse(self: Any, args: Any, *_: Any, **__: Any) -> NoReturn:
        raise GuardError(f"a unit test starts {args!r}: mark it allow_run, or test the plan instead")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    # What is left of an object whose __init__ never ran; __del__ would complain about it.
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda _self: None)


@pytest.fixture(autouse=True)
def no_sockets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that lead anywhere are for tests marked host, vm, slurm or allow_sockets; a socketpair does not."""
    if _marked(request, *_OUTSIDE, "allow_sockets"):
        return

    def refuse(self: socket.socket, *args: Any) -> NoReturn:
        raise GuardError(f"a unit test opens a socket {args!r}: mark it allow_sockets")

    for name in ("bind", "connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)


@pytest.fixture(autouse=True)
def no_inherited_settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings, or a Slurm job around the tests, must not change what the unit tests see."""
    if _marked(request, *_OUTSIDE):
        return
    for name in list(os.environ):
        if name.startswith(("PVC_", "SLURM_", "SPANK_", "SALLOC_", "SBATCH_", "SRUN_")) and name != "PVC_GOLDEN":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expected texts are plain."""
    monkeypatch.setenv("NO_COLOR", "1")
