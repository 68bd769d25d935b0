# SPDX-License-Identifier: Apache-2.0
"""Processes that hold secrets leave no core dump, and what they start is as ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

# prctl(2), PR_GET_DUMPABLE: 3; asked before, after, and of what is executed afterwards.
PROGRAM = """
import ctypes, os, sys
from pvc.host.secrecy import forbid_dumps
def ask(): return ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
if len(sys.argv) > 1:
    sys.exit(print(ask()))
print(ask())
forbid_dumps()
print(ask(), len(os.listdir("/proc/self/fd")) > 0, flush=True)
os.execv(sys.executable, [sys.executable, "-c", open("/proc/self/fd/0").read() or "", "again"])
"""


@pytest.mark.allow_run
def test_this_process_alone_is_closed() -> None:
    code = PROGRAM.replace('open("/proc/self/fd/0").read() or ""', "sys.orig_argv[2]")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["1", "0", "True", "1"]


# As a user who is not root, whom nothing is hidden from: what others of the same user open of such a process.
OPENED = """
import os, subprocess, sys, tempfile
from pvc.host.secrecy import forbid_dumps, openable
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
def can_write(path):
    return subprocess.run(["sh", "-c", 'printf x >"$0"', path], stderr=subprocess.DEVNULL).returncode == 0
with tempfile.TemporaryFile() as file:
    forbid_dumps()
    fd = file.fileno()
    own = can_write(f"/proc/{os.getpid()}/fd/{fd}")
    with openable(fd) as path:
        other = can_write(path)
    print(own, other, os.fstat(fd).st_size, os.path.exists(path))
"""


@pytest.mark.allow_run
def test_a_file_of_a_closed_process_can_be_shown_to_others_of_its_user() -> None:
    """So libvirtd writes a guest's memory."""
    done = subprocess.run([sys.executable, "-c", OPENED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "True", "1", "False"]
