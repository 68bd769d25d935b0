"""PCI devices of nodes, one for each VM: which are usable, who gets which, and what is done with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from pvc.errors import ConfigError, Problem, UsageError
from pvc.model.cluster import NodeShare
from pvc.model.host import JobFacts, NodeFacts, PciDevice
from pvc.model.network import PciNetwork
from pvc.plan import actions

VFIO = "vfio-pci"
# Whatever else is in a device's group must not be able to reach memory: driver-api/vfio.rst ("viable" groups).
_HARMLESS = (None, VFIO, "pci-stub", "pcieport")


@dataclass(frozen=True)
class Passthrough:
    """One network of devices, and the ranks that have one of them."""

    network: PciNetwork
    members: tuple[range, ...]

    def ranks_of(self, share: NodeShare) -> list[int]:
        """The members that a node runs."""
        first, end = share.first_rank, share.first_rank + share.count
        return [rank for ranks in self.members for rank in range(max(first, ranks.start), min(end, ranks.stop))]


def take_devices(
    taken: Set[str], passthroughs: Sequence[Passthrough], share: NodeShare, devices: Mapping[str, PciDevice]
) -> dict[str, tuple[str, ...]]:
    """Network -> one device for each of this node's VMs on it, in order of the ranks.

    ``taken`` are those of other jobs. A group goes to one VM as a whole: QEMU opens groups, and one only once.

    :raise ConfigError: this node does not have as many, and why.
    :raise UsageError: it has, but other jobs have some of them.
    """
    found: dict[str, tuple[str, ...]] = {}
    busy = {device.group for address in taken if (device := devices.get(address)) is not None}
    used: set[int | None] = set()
    for each in passthroughs:
        network, count = each.network, len(each.ranks_of(share))
        if not count:
            continue
        faults = {
            address: fault for address in network.host_devices if (fault := _find_fault(address, network, devices))
        }
        usable = list(_one_a_group([each for each in network.host_devices if each not in faults], devices, used))
        free = [address for address in usable if devices[address].group not in busy and address not in taken]
        if len(usable) < count:
            raise _lacking(network, count, len(usable), faults)
        if len(free) < count:
            raise UsageError(
                f"network {network.name}: {count} devices wanted, {len(free)} of {len(usable)} are free on this node",
                hint="wait for other clusters to end",
            )
        found[network.name] = tuple(free[:count])
        used |= {devices[address].group for address in free[:count]}
    return found


def plan_devices(
    job: JobFacts,
    passthroughs: Sequence[Passthrough],
    share: NodeShare,
    facts: NodeFacts,
    granted: Mapping[str, Sequence[str]],
) -> tuple[tuple[actions.Action, ...], dict[int, tuple[str, ...]]]:
    """What binds the devices, and the devices of each rank."""
    steps: list[actions.Action] = []
    by_rank: dict[int, tuple[str, ...]] = {}
    for each in passthroughs:
        for rank, address in zip(each.ranks_of(share), granted.get(each.network.name, ()), strict=True):
            device = facts.devices[address]
            assert device.group is not None
            # A device that no driver had, or that a crash left at vfio-pci, goes where the site says it belongs.
            driver = device.driver if device.driver not in (None, VFIO) else each.network.host_driver
            assert driver is not None
            steps.append(actions.BindDevice(address, device.group, driver, job.uid, job.gid))
            for other, at in device.others:
                # The group is the VM's as a whole, or nobody's: its other devices are kept from the host meanwhile.
                if at not in _HARMLESS:
                    steps.append(actions.BindDevice(other, device.group, at or driver, job.uid, job.gid))
            by_rank[rank] = (*by_rank.get(rank, ()), address)
    return tuple(steps), by_rank


def _find_fault(address: str, network: PciNetwork, devices: Mapping[str, PciDevice]) -> str | None:
    """Why a device cannot be given to a VM."""
    device = devices.get(address)
    if device is None:
        return "is not there"
    if device.group is None:
        return "has no IOMMU group: is the IOMMU on (intel_iommu=on, amd_iommu=on)?"
    if device.driver not in (None, VFIO, network.host_driver):
        return f"is at driver {device.driver}, not at {network.host_driver}"
    for other, driver in device.others:
        # One that is listed, too, and idle, is bound with it.
        if driver not in _HARMLESS and not (other in network.host_devices and driver == network.host_driver):
            return f"shares IOMMU group {device.group} with {other}, which is at driver {driver}"
    return None


def _one_a_group(addresses: Sequence[str], devices: Mapping[str, PciDevice], used: Set[int | None]) -> Iterator[str]:
    seen = set(used)
    for address in addresses:
        group = devices[address].group
        if group not in seen:
            seen.add(group)
            yield address


def _lacking(network: PciNetwork, wanted: int, usable: int, faults: Mapping[str, str]) -> ConfigError:
    why = "; ".join(f"{address} {fault}" for address, fault in faults.items())
    text = f"{wanted} devices are wanted on this node, and {usable} can be had" + (f": {why}" if why else "")
    return ConfigError([Problem("networks.yaml", 0, f"{network.name}.settings.host-device-addrs", text)])
