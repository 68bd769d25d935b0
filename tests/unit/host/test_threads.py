# SPDX-License-Identifier: Apache-2.0
"""Users can have all processes of a node: what root undoes then is undone without threads, and is no fault."""

from __future__ import annotations

import os
import threading

import pytest

from pvc.host import netns, packetsockets


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.usefixtures("no_threads")
def test_a_namespace_is_left_to_the_kernel_without_a_thread(caplog: pytest.LogCaptureFixture) -> None:
    fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    netns._empty_soon("pvc-12", fd)
    assert not is_open(fd)
    assert "pvc-12 is left to the kernel" in caplog.text


@pytest.mark.usefixtures("no_threads")
def test_sockets_are_closed_without_threads() -> None:
    fds = os.pipe()
    packetsockets._close(fds)
    assert not any(map(is_open, fds))


def test_sockets_are_closed_by_threads() -> None:
    fds = os.pipe()
    packetsockets._close(fds)
    assert not any(map(is_open, fds))
