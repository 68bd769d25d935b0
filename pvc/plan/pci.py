# SPDX-License-Identifier: Apache-2.0
"""PCI devices of nodes for VMs: which are usable, who gets which, and what is done with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from pvc.errors import ConfigError, JobError, Problem, UsageError
from pvc.model.cluster import NodeShare
from pvc.model.host import JobFacts, JobGres, NodeFacts, PciDevice
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
    taken: Set[str],
    passthroughs: Sequence[Passthrough],
    share: NodeShare,
    devices: Mapping[str, PciDevice],
    gres: JobGres | None = None,
) -> dict[str, tuple[str, ...]]:
    """Network -> as many devices for each of this node's VMs on it, in order of the ranks.

    One each of those that are free, or all that Slurm gave of the network's generic resource. ``taken`` are those of
    other jobs. A group goes to one VM as a whole: QEMU opens groups, and one only once.

    :raise ConfigError: this node does not have as many, and why.
    :raise UsageError: it has, but other jobs have some of them; Slurm gave other numbers than the VMs need.
    :raise JobError: Slurm did not say what it gave.
    """
    found: dict[str, tuple[str, ...]] = {}
    busy = {device.group for address in taken if (device := devices.get(address)) is not None}
    used: set[int | None] = set()
    for each in passthroughs:
        network, count = each.network, len(each.ranks_of(share))
        if not count:
            continue
        if network.gres is None:
            chosen = _take_free(network, count, devices, used, taken, busy)
        else:
            chosen = _take_given(network, count, devices, _find_given(network, devices, gres))
            for address in chosen:
                if devices[address].group in busy:
                    raise UsageError(
                        f"network {network.name}: another cluster still has {address}, which Slurm gave to this job",
                        hint="wait for other clusters to end",
                    )
                if devices[address].group in used:
                    raise _wrong(network, f"{address} is the VMs' already, by another network")
        found[network.name] = chosen
        used |= {devices[address].group for address in chosen}
    return found


def _take_free(
    network: PciNetwork,
    count: int,
    devices: Mapping[str, PciDevice],
    used: Set[int | None],
    taken: Set[str],
    busy: Set[int | None],
) -> tuple[str, ...]:
    faults = _find_faults(network, network.host_devices, devices)
    usable = list(_one_a_group([each for each in network.host_devices if each not in faults], devices, used))
    free = [address for address in usable if devices[address].group not in busy and address not in taken]
    if len(usable) < count:
        raise _lacking(network, count, len(usable), faults)
    if len(free) < count:
        raise UsageError(
            f"network {network.name}: {count} devices wanted, {len(free)} of {len(usable)} are free on this node",
            hint="wait for other clusters to end",
        )
    return tuple(free[:count])


def _find_given(network: PciNetwork, devices: Mapping[str, PciDevice], gres: JobGres | None) -> tuple[str, ...]:
    """The devices of a network that Slurm gave to the job, in its order."""
    name, _, kind = (network.gres or "").partition(":")
    if gres is None:
        raise JobError(
            f"network {network.name}: Slurm's controller did not tell which {name} the job has on this node",
            hint="try again; on this node, scontrol show job -d has to answer",
        )
    here = [address for address in network.host_devices if address in devices]
    total = gres.totals.get(name, 0)
    if len(here) != total:
        # With one of them out, the indices would mean other devices, maybe another job's.
        away = [address for address in network.host_devices if address not in devices]
        text = f"Slurm has {total} {name} on this node, and {len(here)} of these devices are there"
        raise _wrong(network, text + (f", without {', '.join(away)}" if away else ""))
    given: list[int] = []
    for part in gres.given:
        if part.name != name or kind not in ("", part.kind):
            continue
        if part.indices is None:
            raise _wrong(network, f"Slurm only counts {name}: gres.conf needs a File= for each of them")
        given += part.indices
    if given and max(given) >= total:
        raise _wrong(network, f"Slurm gave {name} number {max(given)}, and counts {total} on this node")
    return tuple(here[index] for index in sorted(given))


def _take_given(
    network: PciNetwork, count: int, devices: Mapping[str, PciDevice], given: Sequence[str]
) -> tuple[str, ...]:
    """All of them, if they are right for ``count`` VMs."""
    if not given or len(given) % count:
        raise UsageError(
            f"network {network.name}: {count} VMs on this node get as many devices each, and Slurm gave the job "
            f"{len(given)} {network.gres} here",
            hint=f"gres: {network.gres}:{count} in the template, or --gres={network.gres}:{count}, asks for one each",
        )
    faults = _find_faults(network, given, devices)
    if faults:
        raise _lacking(network, len(given), len(given) - len(faults), faults)
    for address in given:
        for other, _ in devices[address].others:
            if other in network.host_devices and other not in given:
                text = f"{address} shares IOMMU group {devices[address].group} with {other}, which is not this job's"
                raise _wrong(network, text)
    owners: dict[int | None, int] = {}
    for at, addresses in divide_devices(range(count), given):
        for address in addresses:
            if owners.setdefault(devices[address].group, at) != at:
                raise _wrong(network, f"{address} shares IOMMU group {devices[address].group} with another VM's")
    return tuple(given)


def divide_devices(ranks: Sequence[int], addresses: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each rank with its part of a network's devices, all of one size."""
    each = len(addresses) // max(1, len(ranks))
    for at, rank in enumerate(ranks):
        if each:
            yield rank, tuple(addresses[at * each : (at + 1) * each])


def plan_devices(
    job: JobFacts,
    passthroughs: Sequence[Passthrough],
    share: NodeShare,
    facts: NodeFacts,
    granted: Mapping[str, Sequence[str]],
) -> tuple[tuple[actions.Action, ...], dict[int, tuple[str, ...]]]:
    """What binds the devices, and the devices of each rank."""
    steps: dict[str, actions.Action] = {}
    by_rank: dict[int, tuple[str, ...]] = {}
    pairs = [
        (each.network, rank, address)
        for each in passthroughs
        for rank, addresses in divide_devices(each.ranks_of(share), granted.get(each.network.name, ()))
        for address in addresses
    ]
    for network, rank, address in pairs:
        device = facts.devices[address]
        assert device.group is not None
        # A device that no driver had, or that a crash left at vfio-pci, goes where the site says it belongs.
        driver = device.driver if device.driver not in (None, VFIO) else network.host_driver
        assert driver is not None
        steps[address] = actions.BindDevice(address, device.group, driver, job.uid, job.gid)
        for other, at in device.others:
            # The group is the VM's as a whole, or nobody's: its other devices are kept from the host meanwhile.
            if at not in _HARMLESS:
                steps[other] = actions.BindDevice(other, device.group, at or driver, job.uid, job.gid)
        by_rank[rank] = (*by_rank.get(rank, ()), address)
    return tuple(steps.values()), by_rank


def _find_faults(network: PciNetwork, wanted: Sequence[str], devices: Mapping[str, PciDevice]) -> dict[str, str]:
    """Those of the wanted devices that cannot be had, each with the reason."""
    found = {address: _find_fault(address, network.host_driver, wanted, devices) for address in wanted}
    return {address: fault for address, fault in found.items() if fault}


def _find_fault(address: str, driver: str, company: Sequence[str], devices: Mapping[str, PciDevice]) -> str | None:
    """Why a device cannot be given to a VM; those of ``company`` may go with it."""
    device = devices.get(address)
    if device is None:
        return "is not there"
    if device.group is None:
        return "has no IOMMU group: is the IOMMU on (intel_iommu=on, amd_iommu=on)?"
    if device.driver not in (None, VFIO, driver):
        return f"is at driver {device.driver}, not at {driver}"
    for other, at in device.others:
        # One that may be had, too, and is idle, is bound with it.
        if at not in _HARMLESS and not (other in company and at == driver):
            return f"shares IOMMU group {device.group} with {other}, which is at driver {at}"
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
    return _wrong(
        network, f"{wanted} devices are wanted on this node, and {usable} can be had" + (f": {why}" if why else "")
    )


def _wrong(network: PciNetwork, text: str) -> ConfigError:
    return ConfigError([Problem("networks.yaml", 0, f"{network.name}.settings.host-device-addrs", text)])
