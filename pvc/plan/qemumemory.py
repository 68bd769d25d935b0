# SPDX-License-Identifier: Apache-2.0
"""What a VM takes of its job's memory besides its guest's, and what keeps it there."""

from __future__ import annotations

from pvc.errors import GuestError
from pvc.model.vm import Accel

# QEMU's own need of memory besides the guest's, from measurements: code, heap, stacks and device rings of
# an idle q35 with two virtio devices stay below 64 MiB; TCG adds its translation buffer (tb-size, below)
# and about half of it again for the descriptors of translated blocks. The supervisor of a node (60 MB) is
# paid from the same allocation, in the worst case by one VM alone.
QEMU_OVERHEAD_MIB = 64
SUPERVISOR_OVERHEAD_MIB = 64
# libvirtd and its client within the supervisor, with 8 VMs: 21 MB that nobody shares, 48 MB with the libraries.
LIBVIRT_OVERHEAD_MIB = 48
# The default is an eighth of the *host's* memory up to 1 GiB, which a batch system's memory limit kills.
# A Debian boot translates about 40 MiB of code: 64 does not flush while booting.
TCG_TB_SIZE_MIB = 64
TCG_OVERHEAD_MIB = TCG_TB_SIZE_MIB + TCG_TB_SIZE_MIB // 2
MIN_GUEST_MIB = 64
# While a disk is saved, QEMU copies what the guest overwrites before it does, in buffers of its own, for as many
# requests as the guest has under way: BLOCK_COPY_MAX_MEM of block/block-copy.c at the most, and what a small guest has
# in its memory to write. With a file server that stands still they are all there at the same time.
MAX_SAVING_MIB = 128
SAVING_PART = 4

# glibc gives each thread of QEMU a heap of its own, up to eight for each processor of the node, and keeps what was
# freed in all of them; and once a mebibyte was freed, buffers of that size come from those heaps, too, which a single
# small piece behind it keeps.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "262144"}


def needed_memory_mib(guest_mib: int, accel: Accel, *, libvirt: bool = False, disks: bool = False) -> int:
    """What to ask of Slurm for a VM whose guest shall have so much, in MiB; ``guest_memory_mib`` is its inverse.

    ``libvirt``: it runs some of the cluster's VMs; ``disks``: some have disks that can be saved.
    """
    return guest_mib + _find_overhead(accel, libvirt=libvirt) + (_find_saving(guest_mib) if disks else 0)


def guest_memory_mib(allocated_mib: int, accel: Accel, *, libvirt: bool = False, disks: bool = False) -> int:
    """What a guest may have of the memory that was allocated for its VM, in MiB.

    :raise GuestError: less than MIN_GUEST_MIB would be left.
    """
    left = allocated_mib - _find_overhead(accel, libvirt=libvirt)
    # The most for which it and its saves need no more than that.
    guest = max(left - MAX_SAVING_MIB, (left * SAVING_PART + SAVING_PART - 1) // (SAVING_PART + 1)) if disks else left
    if guest < MIN_GUEST_MIB:
        least = needed_memory_mib(MIN_GUEST_MIB, accel, libvirt=libvirt, disks=disks)
        raise GuestError(
            f"{allocated_mib} MiB for a VM leave {max(guest, 0)} MiB to its guest: "
            f"QEMU and its supervisor need {least - MIN_GUEST_MIB} MiB at least ({accel.value})",
            hint=f"ask for at least {least} MiB a VM, for instance with -m {least + 512}M",
        )
    return guest


def _find_overhead(accel: Accel, *, libvirt: bool) -> int:
    tcg = 0 if accel is Accel.KVM else TCG_OVERHEAD_MIB
    return QEMU_OVERHEAD_MIB + SUPERVISOR_OVERHEAD_MIB + tcg + (LIBVIRT_OVERHEAD_MIB if libvirt else 0)


def _find_saving(guest_mib: int) -> int:
    return min(MAX_SAVING_MIB, guest_mib // SAVING_PART)
