# SPDX-License-Identifier: Apache-2.0
"""io_uring: found by trying, used where it works, and replaced with a word where it does not."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from pathlib import Path

import pytest
from guests import build_guest
from harness import Console, guest_template, supervised

from pvc.host.aio import find_io_uring_obstacle
from pvc.model.drive import PersistentDrive
from pvc.model.vm import Disk, ExtraDisk, Phase

pytestmark = pytest.mark.vm

QEMU = "qemu-system-x86_64"
_IO_URING_SETUP = 425  # on all architectures: include/uapi/asm-generic/unistd.h
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


class Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_io_uring() -> None:
    """As container engines do (seccomp(2)): for this process and its children, for good."""
    instructions = (
        (0x20, 0, 0, 0),  # load the number of the system call
        (0x15, 0, 1, _IO_URING_SETUP),  # is it this one?
        (0x06, 0, 0, 0x00050000 | errno.EPERM),
        (0x06, 0, 0, 0x7FFF0000),  # all others are allowed
    )
    code = b"".join(struct.pack("HBBI", *each) for each in instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    program = Program(len(instructions), code)
    assert libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program)) == 0


def test_a_kernel_that_forbids_it_is_found_out() -> None:
    child = os.fork()
    if not child:
        code = 1
        try:
            forbid_io_uring()
            said = find_io_uring_obstacle(QEMU) or ""
            code = 0 if "io_uring" in said or "Operation not permitted" in said else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert find_io_uring_obstacle("qemu-system-none") is not None


def test_each_key_of_disks_reaches_qemu_and_the_guest(tmp_path: Path) -> None:
    """Aio, threads and discard as QEMU itself reports them; what the guest discards, the node gets back."""
    obstacle = find_io_uring_obstacle(QEMU)
    base = tmp_path / "base.raw"
    base.write_bytes(b"\1" * (1 << 20))
    template = guest_template(
        build_guest(),
        Disk(os.fspath(base), "raw", 8 << 20),
        disk_aio="io_uring",
        disks=(ExtraDisk(None, 8 << 20, cache="none", aio="native", iothread=True, discard=False),),
        drives=(PersistentDrive(os.fspath(tmp_path / "drive"), size=8 << 20, aio="io_uring", iothread=True),),
    )
    with supervised(tmp_path, template) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        (qemu,) = cluster.qemu_pids()
        argv = Path(f"/proc/{qemu}/cmdline").read_bytes().decode().split("\0")
        assert sum('"aio":"io_uring"' in word for word in argv) == (2 if obstacle is None else 0)
        rings = [os.readlink(each) for each in Path(f"/proc/{qemu}/fd").iterdir() if each.is_symlink()]
        assert ("anon_inode:[io_uring]" in rings) or obstacle is not None
        threads = {(each / "comm").read_text().strip() for each in Path(f"/proc/{qemu}/task").iterdir()}
        for name in ("iothread0", "iothread1", "iothread-d1"):
            assert any(f"IO {name}".startswith(thread) for thread in threads if thread.startswith("IO ")), threads
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            console.send(b"cd /sys/block; for d in vd*; do echo D:$d:$(cat $d/queue/discard_max_bytes); done\n")
            console.send(b"dd if=/dev/zero bs=1M count=8 | tr '\\0' x > /dev/vdd; sync; echo wro''te\n")
            said = console.wait(b"wrote").decode(errors="replace")
            assert (tmp_path / "drive").stat().st_blocks * 512 >= 8 << 20
            console.send(b"blkdiscard /dev/vdd; sync; echo discar''ded $?\n")
            console.wait(b"discarded 0")
        found = dict(re.findall(r"D:(vd\w):(\d+)", said))
        assert int(found["vda"]) > 0
        assert int(found["vdd"]) > 0
        assert (tmp_path / "drive").stat().st_blocks * 512 < 1 << 20
