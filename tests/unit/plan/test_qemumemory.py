# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from pvc.errors import GuestError
from pvc.model.vm import Accel
from pvc.plan import qemumemory
from pvc.plan.qemumemory import MAX_SAVING_MIB, MIN_GUEST_MIB, guest_memory_mib, needed_memory_mib

KINDS = [{"libvirt": libvirt, "disks": disks} for libvirt in (False, True) for disks in (False, True)]


@pytest.mark.parametrize("accel", list(Accel))
@pytest.mark.parametrize("kind", KINDS)
def test_a_guest_gets_what_was_asked_for_it(accel: Accel, kind: dict[str, Any]) -> None:
    needed = [needed_memory_mib(guest, accel, **kind) for guest in range(MIN_GUEST_MIB, 700)]
    assert [guest_memory_mib(each, accel, **kind) for each in needed] == list(range(MIN_GUEST_MIB, 700))
    # Of what is between two of them the guest gets the smaller one's: nothing is promised twice.
    for allocated in range(needed[0], needed[-1]):
        guest = guest_memory_mib(allocated, accel, **kind)
        assert needed_memory_mib(guest, accel, **kind) <= allocated < needed_memory_mib(guest + 1, accel, **kind)
    with pytest.raises(GuestError, match="leave 63 MiB") as caught:
        guest_memory_mib(needed[0] - 1, accel, **kind)
    assert f"at least {needed[0]} MiB" in (caught.value.hint or "")


def test_what_costs_memory() -> None:
    def beyond(guest: int, accel: Accel = Accel.KVM, **kind: Any) -> int:
        return needed_memory_mib(guest, accel, **kind) - guest

    assert beyond(1024) >= qemumemory.QEMU_OVERHEAD_MIB
    assert beyond(1024, Accel.TCG) - beyond(1024) == qemumemory.TCG_OVERHEAD_MIB
    assert beyond(1024, libvirt=True) > beyond(1024)
    # A guest has no more under way to its disks than it has memory.
    assert beyond(128, disks=True) - beyond(128) == 32
    assert beyond(1 << 20, disks=True) - beyond(1 << 20) == MAX_SAVING_MIB
