# SPDX-License-Identifier: Apache-2.0
"""Actions to effects: one table, no decisions.

Each action is recorded before it is done; undoing runs backwards and keeps what it could not undo.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvc.beneath import ensure_dir_of, open_own_dir
from pvc.errors import ConfigError, HostError, Problem, PvcError
from pvc.files import locked
from pvc.host import (
    arp,
    conntrack,
    dnsmasq,
    ended,
    ethernet,
    forwarding6,
    hostbridge,
    leads,
    mounts,
    neighbours,
    netlink,
    netns,
    nft,
    ovs,
    portprogs,
    switchports,
    sysctl,
    vfio,
)
from pvc.plan import actions, nftables, openflow
from pvc.plan.dnsmasq import render_hosts
from pvc.plan.ethernet import burst_bytes
from pvc.state import membership
from pvc.state.store import Store

LOG = logging.getLogger(__name__)
_RUN_DIR = "run-dir"
_HINT = "take the others' right to write from it and what is above, or name another directory; see pvc doctor --node"


@dataclass(frozen=True)
class Hands:
    """What effects need besides their action: where this node keeps its shared records, and the store."""

    sysctl_record: Path
    switch_record: Path
    node_lock: Path
    store: Callable[[], Store]


def create(step: actions.Action, hands: Hands) -> None:
    """Do what ``step`` says; doing it again changes nothing.

    :raise PvcError: it could not be done.
    """
    LOG.debug("create %s", type(step).__name__)
    try:
        _TABLE[type(step)][0](step, hands)
    except OSError as err:
        raise HostError(f"cannot do {type(step).__name__}") from err


def undo(steps: Sequence[actions.Action], hands: Hands) -> tuple[list[actions.Action], list[PvcError]]:
    """Remove in reverse order; (what is left to undo, in order of creation; why)."""
    left: list[actions.Action] = []
    errors: list[PvcError] = []

    for step in reversed(steps):
        LOG.debug("remove %s", type(step).__name__)
        try:
            _TABLE[type(step)][1](step, hands)
        except PvcError as err:
            left.append(step)
            errors.append(err)
        except Exception as err:  # noqa: BLE001 - whatever happens to one, the others are undone and this one is kept
            wrapped = HostError(f"cannot undo {type(step).__name__}")
            wrapped.__cause__ = err
            left.append(step)
            errors.append(wrapped)
    return left[::-1], errors


@contextmanager
def open_parent(parent: Path, key: str) -> Iterator[int]:
    """The directory that the site names by ``key``, where jobs or users have a directory each, as a descriptor.

    :raise ConfigError: somebody else may write to it or exchange it.
    """
    parent.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = -1
    while fd < 0:
        # In a world-writable place somebody else may have made it first, to own what is put below.
        ended.evict(parent)
        with suppress(FileExistsError):
            # Whoever has a directory there knows its name; the others' names are jobs and users.
            parent.mkdir(mode=0o711)
        try:
            if _is_own(parent):
                fd = open_own_dir(parent)
            elif not ended.is_open_to_all(parent.parent):
                raise PermissionError(errno.EPERM, "it belongs to somebody else", os.fspath(parent))
            # Else somebody was faster, and a link of theirs may lead to any directory of root's.
        except PermissionError as err:
            where = f"{parent} must be a directory of root that only root can write to"
            text = f"{where}, but of {err.filename}: {err.strerror}"
            # What the site has named, or how it keeps it, is no fault of this node.
            raise ConfigError([Problem("batch.yaml", 0, key, text)], hint=_HINT) from None
    try:
        yield fd
    finally:
        os.close(fd)


def _is_own(path: Path) -> bool:
    """Whether it is root's, a link itself and not what it leads to; nobody else can exchange it then (/var/tmp)."""
    try:
        return path.lstat().st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def ensure_run_parent(parent: Path) -> None:
    """Make it where it is missing.

    :raise ConfigError: as ``open_parent``.
    """
    with open_parent(parent, _RUN_DIR):
        pass


def _make_run_dir(step: actions.MakeRunDir, _: Hands) -> None:
    path = Path(step.path)
    with open_parent(path.parent, _RUN_DIR) as parent:
        ended.put_aside(parent, path.name)
        ensure_dir_of(parent, path.name, step.uid, step.gid)


def _remove_run_dir(step: actions.MakeRunDir, _: Hands) -> None:
    path = Path(step.path)
    # Not made, maybe because its parent is not what it must be
    if path.parent.exists() and ended.is_there(path.parent, path.name):
        with open_parent(path.parent, _RUN_DIR) as parent:
            ended.put_aside(parent, path.name)


def _make_cache_dir(step: actions.MakeCacheDir, _: Hands) -> None:
    path = Path(step.path)
    with open_parent(path.parent, "image-cache-dir") as parent:
        mounts.detach_users(parent, path.name)
        ensure_dir_of(parent, path.name, step.uid, step.gid)


def _keep_cache_dir(_: actions.MakeCacheDir, __: Hands) -> None:
    """What it holds is for the user's next job."""


def _add_netns(step: actions.AddNetns, _: Hands) -> None:
    ethernet.ensure_netns(step.netns)


def _remove_netns(step: actions.AddNetns, _: Hands) -> None:
    netns.remove(step.netns)


def _add_bridge(step: actions.AddBridge, _: Hands) -> None:
    ethernet.ensure_bridge(step.netns, step.name, step.mac, step.mtu, step.addresses)


def _add_vxlan(step: actions.AddVxlan, _: Hands) -> None:
    ethernet.ensure_vxlan(step.netns, step.name, step.bridge, step.vni, step.local, step.port, step.mtu, step.learns)


def _remove_vxlan(step: actions.AddVxlan, _: Hands) -> None:
    ethernet.remove_vxlan(step.netns, step.name)


def _add_taps(step: actions.AddTaps, _: Hands) -> None:
    mbit = step.bandwidth_mbit
    limit = None if mbit is None else netlink.Limit(mbit * 125_000, burst_bytes(mbit))
    ethernet.ensure_taps(step.netns, step.bridge, step.mtu, step.names, limit)


def _add_peers(step: actions.AddPeers, _: Hands) -> None:
    nodes = [peer.node for peer in step.peers]
    netns.run_inside(step.netns, lambda: neighbours.ensure_peers(step.vxlan, nodes, labelled=step.labelled))


def _add_programs(step: actions.AddPrograms, _: Hands) -> None:
    def add() -> None:
        portprogs.ensure(step)
        neighbours.ensure_ports([(port.name, port.mac) for port in step.ports])

    netns.run_inside(step.netns, add)


def _add_switch_taps(step: actions.AddSwitchTaps, _: Hands) -> None:
    switchports.ensure_taps(step.group, step.mtu, step.names, vnet_header=step.vnet_header)


def silence_again(step: actions.AddSwitchTaps) -> bool:
    """Of taps that VMs hold, what can be put back; whether that was needed.

    :raise HostError: the kernel refused.
    """
    return switchports.silence_again(step.names)


def _add_gateway(step: actions.AddGateway, _: Hands) -> None:
    switchports.ensure_gateway(
        step.netns, step.name, step.port, step.group, step.mac, step.mtu, step.addresses, offload=step.offload
    )


def _remove_group(step: actions.AddSwitchTaps | actions.AddGateway, _: Hands) -> None:
    switchports.remove_group(step.group)


def _add_switch_ports(step: actions.AddSwitchPorts, hands: Hands) -> None:
    with locked(hands.node_lock):
        ovs.ensure_ports(hands.switch_record, step.job_id, step.bridge, step.datapath, step.tunnels, step.ports)


def _remove_switch_ports(step: actions.AddSwitchPorts, hands: Hands) -> None:
    with locked(hands.node_lock):
        ovs.remove_ports(hands.switch_record, step.job_id, step.bridge, step.ports)


def load_flows(step: actions.LoadFlows, _: Hands) -> None:
    """Also after the switch has lost them."""
    ovs.load_flows(step.bridge, step.text, step.meters)
    for device, own, others in step.peers:
        arp.ask(device, own, others)


def _remove_flows(step: actions.LoadFlows, _: Hands) -> None:
    ovs.remove_flows(step.bridge, openflow.render_removal(step.job_id, step.vnis), step.meters)


def _add_leads(step: actions.AddLeads, _: Hands) -> None:
    leads.ensure(step)


def _remove_leads(step: actions.AddLeads, _: Hands) -> None:
    leads.remove(step)


def _join_bridge(step: actions.JoinBridge, _: Hands) -> None:
    hostbridge.join(step)


def _leave_bridge(step: actions.JoinBridge, _: Hands) -> None:
    hostbridge.leave(step)


def _bind_device(step: actions.BindDevice, _: Hands) -> None:
    vfio.bind(step.address, step.group, step.uid, step.gid)


def _release_device(step: actions.BindDevice, _: Hands) -> None:
    vfio.release(step.address, step.group, step.driver)


def _add_uplink(step: actions.AddUplink, _: Hands) -> None:
    uplink = ethernet.Uplink(
        device=step.host_device,
        inner=nftables.UPLINK,
        host_address=step.host_address,
        inner_address=step.netns_address,
        length=step.prefix_length,
        addresses6=step.addresses6,
        routes6=step.routes6,
    )
    ethernet.ensure_uplink(step.netns, uplink)


def _remove_uplink(step: actions.AddUplink, _: Hands) -> None:
    ethernet.remove_device(step.host_device)
    pair6 = step.addresses6[1:] if step.addresses6 is not None else ()
    routed = [route.partition("/")[0] for route in step.routes6]
    conntrack.flush([step.netns_address, *pair6, *routed])


def _load_rules(step: actions.LoadRules, _: Hands) -> None:
    nft.load(step.netns, step.tables, step.text)


def _remove_rules(step: actions.LoadRules, _: Hands) -> None:
    if step.netns is None:  # those inside a namespace go with it
        nft.remove(None, step.tables)


def _set_sysctl(step: actions.SetSysctl, hands: Hands) -> None:
    with locked(hands.node_lock):
        sysctl.acquire(hands.sysctl_record, step.key, step.value, step.job_id)


def _release_sysctl(step: actions.SetSysctl, hands: Hands) -> None:
    with locked(hands.node_lock):
        sysctl.release(hands.sysctl_record, step.key, step.job_id)


def _forward_ipv6(step: actions.ForwardIpv6, hands: Hands) -> None:
    with locked(hands.node_lock):
        forwarding6.acquire(hands.sysctl_record, step.job_id)


def _release_ipv6(step: actions.ForwardIpv6, hands: Hands) -> None:
    with locked(hands.node_lock):
        forwarding6.release(hands.sysctl_record, step.job_id)


def _start_dnsmasq(step: actions.StartDnsmasq, _: Hands) -> None:
    dnsmasq.start(step.netns, Path(step.directory), step.config, render_hosts(step.zones))


def _stop_dnsmasq(step: actions.StartDnsmasq, _: Hands) -> None:
    dnsmasq.stop(Path(step.directory))


def _leave(step: actions.ClaimMembership, hands: Hands) -> None:
    membership.leave(hands.store(), step.job_id, step.node)


def _nothing(_: Any, __: Hands) -> None:
    """Goes with its namespace, or was done by what recorded it."""


_TABLE: dict[type[Any], tuple[Callable[[Any, Hands], None], Callable[[Any, Hands], None]]] = {
    actions.MakeRunDir: (_make_run_dir, _remove_run_dir),
    actions.MakeCacheDir: (_make_cache_dir, _keep_cache_dir),
    actions.AddNetns: (_add_netns, _remove_netns),
    actions.AddBridge: (_add_bridge, _nothing),
    actions.AddVxlan: (_add_vxlan, _remove_vxlan),
    actions.AddTaps: (_add_taps, _nothing),
    actions.AddPeers: (_add_peers, _nothing),
    actions.AddPrograms: (_add_programs, _nothing),
    actions.AddSwitchTaps: (_add_switch_taps, _remove_group),
    actions.AddGateway: (_add_gateway, _remove_group),
    actions.AddSwitchPorts: (_add_switch_ports, _remove_switch_ports),
    actions.LoadFlows: (load_flows, _remove_flows),
    actions.AddLeads: (_add_leads, _remove_leads),
    actions.JoinBridge: (_join_bridge, _leave_bridge),
    actions.BindDevice: (_bind_device, _release_device),
    actions.AddUplink: (_add_uplink, _remove_uplink),
    actions.LoadRules: (_load_rules, _remove_rules),
    actions.SetSysctl: (_set_sysctl, _release_sysctl),
    actions.ForwardIpv6: (_forward_ipv6, _release_ipv6),
    actions.StartDnsmasq: (_start_dnsmasq, _stop_dnsmasq),
    actions.ClaimMembership: (_nothing, _leave),
}
