# SPDX-License-Identifier: Apache-2.0
"""Whether KVM really works here: decided by running a guest, not by the presence of /dev/kvm.

There are hosts without vmx or svm where the device opens and everything after that aborts or crawls (nested
paravirtual KVM). So a firmware of some bytes runs under ``-cpu host``: it computes, leaves to QEMU a few thousand
times, touches memory, and ends QEMU through isa-debug-exit (qemu: hw/misc/debugexit.c: status = value * 2 + 1).
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pvc import files, run
from pvc.errors import CommandError, GuestError, PvcError
from pvc.files import read_text
from pvc.model.vm import Accel

DEVICE = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Working KVM needs 0.1 s for it, nested KVM on a working host not much more, TCG 0.6 s.
PROBE_TIMEOUT_S = 3.0
_EXIT_VALUE = 0x10
_ROM_SIZE = 1 << 16


@dataclass(frozen=True)
class AccelFacts:
    """KVM or TCG, never AUTO; ``reason`` says why it is not KVM, or how KVM was found to work."""

    accel: Accel
    reason: str


def probe_firmware(loops: int = 100_000_000, exits: int = 2000) -> bytes:
    """A 64 KiB x86 firmware that counts, writes to port 0x80, touches 64 KiB of memory and ends QEMU."""
    code = bytes([0xFA])  # cli
    code += b"\x66\xb9" + loops.to_bytes(4, "little")  # mov ecx, loops
    code += b"\x66\x49\x75\xfc"  # dec ecx; jnz -4
    code += b"\xb9" + exits.to_bytes(2, "little")  # mov cx, exits
    code += b"\xe6\x80\x49\x75\xfb"  # out 0x80, al; dec cx; jnz -5
    code += b"\xb8\x00\x10\x8e\xd8\x31\xdb"  # mov ax, 0x1000; mov ds, ax; xor bx, bx
    code += b"\x88\x07\x83\xc3\x40\x75\xf9"  # mov [bx], al; add bx, 64; jnz -7
    code += bytes([0xB0, _EXIT_VALUE, 0xE6, 0xF4])  # mov al, value; out 0xf4, al
    code += b"\xf4\xeb\xfd"  # hlt; jmp -3
    start, reset = 0xF000, 0xFFF0  # the CPU starts at the last 16 bytes (Intel SDM 3A, 9.1.4)
    jump = b"\xe9" + (start - reset - 3).to_bytes(2, "little", signed=True)
    rom = bytearray(_ROM_SIZE)
    rom[start : start + len(code)] = code
    rom[reset : reset + len(jump)] = jump
    return bytes(rom)


def run_probe(qemu_bin: str, accel: Accel, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
    """None when the probe guest ran to its end in time, else what happened instead."""
    with tempfile.NamedTemporaryFile(prefix="pvc-probe-") as rom:
        rom.write(probe_firmware())
        rom.flush()
        argv = [
            *(qemu_bin, "-nodefaults", "-no-user-config", "-display", "none", "-m", "16M"),
            *("-machine", "q35", "-accel", accel.value, "-cpu", "host" if accel is Accel.KVM else "max"),
            *("-bios", rom.name, "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
        ]
        try:
            run.run(argv, timeout_s=timeout_s, ok_codes=(_EXIT_VALUE * 2 + 1,))
        except CommandError as err:
            if err.returncode == -1:
                return f"a probe guest did not end within {timeout_s:g} s"
            last = err.stderr.strip().splitlines()
            return f"a probe guest failed: {last[-1] if last else f'QEMU ended with {err.returncode}'}"
        except PvcError as err:
            return str(err)
    return None


def _find_obstacle(device: Path, cpuinfo: Path) -> str | None:
    """What rules KVM out without running a guest."""
    if not device.exists():
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} may not be opened by this user"
    flags = next((line for line in read_text(cpuinfo, "").splitlines() if line.startswith("flags")), "").split()
    if not {"vmx", "svm"} & set(flags):
        return f"{device} is there, but the CPU has neither vmx nor svm"
    return None


def read_kvm(
    qemu_bin: str, cache_dir: Path | None, *, device: Path = DEVICE, cpuinfo: Path = CPUINFO, boot_id: Path = BOOT_ID
) -> AccelFacts:
    """What this machine can do; a probe's result is kept in ``cache_dir`` until the machine boots again."""
    obstacle = _find_obstacle(device, cpuinfo)
    if obstacle is not None:
        return AccelFacts(Accel.TCG, obstacle)
    boot = read_text(boot_id, "")
    cache = cache_dir / f"kvm-{platform.node()}.json" if cache_dir is not None else None
    cached = _read_cache(cache, boot, qemu_bin)
    if cached is not None:
        return cached
    failure = run_probe(qemu_bin, Accel.KVM)
    facts = AccelFacts(Accel.TCG, failure) if failure else AccelFacts(Accel.KVM, "a probe guest ran under KVM")
    if cache is not None:
        # A cache that cannot be kept costs the next start a probe, nothing else.
        with suppress(OSError, PvcError):
            files.ensure_private_dir(cache.parent)
            record = {"boot": boot, "qemu": qemu_bin, "accel": facts.accel.value, "reason": facts.reason}
            files.write_atomic(cache, json.dumps(record), mode=0o600)
    return facts


def _read_cache(cache: Path | None, boot: str, qemu_bin: str) -> AccelFacts | None:
    if cache is None or not boot:
        return None
    try:
        record = json.loads(cache.read_text())
        if record["boot"] == boot and record["qemu"] == qemu_bin:
            return AccelFacts(Accel(record["accel"]), str(record["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def decide_accel(wanted: Accel, qemu_bin: str, cache_dir: Path | None) -> AccelFacts:
    """How guests run here, given what was asked for.

    :raise GuestError: KVM was demanded and does not work.
    """
    if wanted is Accel.TCG:
        return AccelFacts(Accel.TCG, "accel: tcg is configured")
    facts = read_kvm(qemu_bin, cache_dir)
    if wanted is Accel.KVM and facts.accel is not Accel.KVM:
        raise GuestError(
            f"KVM is demanded (accel: kvm) and does not work here: {facts.reason}",
            hint="set accel: auto in batch.yaml to run without it, more slowly; 'pvc doctor' says more",
        )
    return facts
