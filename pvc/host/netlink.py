# SPDX-License-Identifier: Apache-2.0
"""Links, addresses and routes by netlink (pyroute2), in the namespace of the calling thread.

``ensure_*`` makes what is absent and leaves what is there; ``remove_*`` tolerates absence.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from pvc.errors import HostError
from pvc.host import linkbatch, netns
from pvc.model.host import Claim

_IFA_F_NODAD = 0x02
_RT_SCOPE_UNIVERSE = 0
_RT_TABLE_MAIN = 254
_IFF_LOOPBACK = 8
_DEFAULT_VLAN = 1
_TBF_LATENCY_MS = 50


@dataclass(frozen=True)
class Limit:
    """A rate, and what may pass at once."""

    bytes_per_s: int
    burst_bytes: int


@dataclass(frozen=True)
class Link:
    """What the kernel says of a device of this namespace."""

    index: int
    name: str
    mtu: int
    kind: str | None
    up: bool
    master: int | None = None  # index of the bridge that it is a port of
    vni: int | None = None
    carrier: bool = False  # whether somebody is at the other end: of a tap, its VM
    address: str = ""


class Links:
    """An open netlink socket; see ``opened``."""

    def __init__(self, route: Any) -> None:
        self._route = route

    def find(self, name: str) -> Link | None:
        """The device of that name, if any."""
        try:
            found = self._route.link("get", ifname=name)
        except NetlinkError as err:
            if err.code == errno.ENODEV:
                return None
            raise
        return _link(found[0]) if found else None

    def get(self, name: str) -> Link:
        """The device of that name.

        :raise HostError: there is none.
        """
        link = self.find(name)
        if link is None:
            raise HostError(f"there is no network device {name}")
        return link

    def all(self) -> list[Link]:
        """Every device of the namespace."""
        return [_link(message) for message in self._route.get_links()]

    def statistics(self) -> dict[str, dict[str, Any]]:
        """IFLA_STATS64 of every device of the namespace, by name."""
        return {
            message.get_attr("IFLA_IFNAME"): message.get_attr("IFLA_STATS64") for message in self._route.get_links()
        }

    def groups(self) -> dict[int, list[str]]:
        """The devices of each link group (ip-link(8))."""
        found: dict[int, list[str]] = {}
        for message in self._route.get_links():
            found.setdefault(message.get_attr("IFLA_GROUP") or 0, []).append(message.get_attr("IFLA_IFNAME"))
        return found

    def add(self, name: str, kind: str, **attributes: Any) -> None:
        """Make a device unless one of that name exists."""
        try:
            self._route.link("add", ifname=name, kind=kind, **attributes)
        except NetlinkError as err:
            if err.code != errno.EEXIST:
                raise

    def set(self, name: str, **attributes: Any) -> None:
        """Change a device: ``master`` takes a name; the rest as in ip-link(8)."""
        if isinstance(attributes.get("master"), str):
            attributes["master"] = self.get(attributes["master"]).index
        self._route.link("set", index=self.get(name).index, **attributes)

    def enslave(self, names: Sequence[str], bridge: str, mtu: int) -> None:
        """Make devices ports of a bridge and put them up."""
        linkbatch.put_up(names, mtu=mtu, master=self.get(bridge).index)

    def filters_vlans(self, bridge: str) -> bool:
        """Whether a bridge tells VLANs from one another; the kernel may be built without."""
        info = self._route.get_links(self.get(bridge).index)[0].get_attr("IFLA_LINKINFO")
        return bool(info.get_attr("IFLA_INFO_DATA").get_attr("IFLA_BR_VLAN_FILTERING"))

    def set_vlans(self, names: Sequence[str], vlans: Sequence[tuple[int, Sequence[str]]]) -> None:
        """VLANs of bridge ports, (number, flags) as in bridge(8) "vlan add"; those that ports had before go."""
        for name in names:
            index = self.get(name).index
            given = {vid for vid, _ in vlans}
            for vid, flags in vlans:
                self._route.vlan_filter("add", index=index, vlan_info={"vid": vid, "flags": list(flags)})
            if _DEFAULT_VLAN not in given:
                # What every new port is in; a bridge may have been told otherwise (default_pvid).
                with suppress(NetlinkError):
                    self._route.vlan_filter("del", index=index, vlan_info={"vid": _DEFAULT_VLAN})

    def set_port(self, name: str, **flags: int) -> None:
        """Flags of a bridge port, as in bridge(8) "link set"."""
        self._route.brport("set", index=self.get(name).index, **flags)

    def remove(self, name: str) -> None:
        """Delete a device, if it is there."""
        link = self.find(name)
        if link is not None:
            try:
                self._route.link("del", index=link.index)
            except NetlinkError as err:
                if err.code != errno.ENODEV:
                    raise

    def remove_group(self, group: int) -> None:
        """Delete all devices of a group (ip-link(8)), in one go: one by one costs 20 ms each."""
        try:
            self._route.link("del", group=group)
        except NetlinkError as err:
            if err.code != errno.ENODEV:
                raise

    def ensure_address(self, name: str, address: str, prefix_length: int) -> None:
        """Give a device an IPv4 or IPv6 address, usable at once."""
        more: dict[str, Any] = {"family": socket.AF_INET6, "flags": _IFA_F_NODAD} if ":" in address else {}
        try:
            self._route.addr("add", index=self.get(name).index, address=address, prefixlen=prefix_length, **more)
        except NetlinkError as err:
            if err.code != errno.EEXIST:
                raise

    def ensure_route(self, destination: str, gateway: str) -> None:
        """Send what is for ``destination`` (CIDR) to ``gateway``."""
        self._route.route("replace", dst=destination, gateway=gateway)

    def limit(self, names: Sequence[str], limit: Limit) -> None:
        """Hold what leaves devices to a rate (tc-tbf(8))."""
        wanted = set(names)
        for link in self.all():
            if link.name in wanted:
                self._route.tc(
                    "replace",
                    "tbf",
                    index=link.index,
                    handle=0x10000,
                    rate=limit.bytes_per_s,
                    burst=limit.burst_bytes,
                    latency=f"{_TBF_LATENCY_MS}ms",
                )

    def exits(self, but: int) -> tuple[str, ...]:
        """The devices that have an IPv4 address, but for loopback's, and for those of the link group ``but``."""
        found = {
            message["index"]
            for message in self._route.get_addr(family=socket.AF_INET)
            if message["scope"] == _RT_SCOPE_UNIVERSE
        }
        links = [each for each in self._route.get_links() if each.get_attr("IFLA_GROUP") != but]
        return tuple(sorted(each.get_attr("IFLA_IFNAME") for each in links if each["index"] in found))

    def claims(self, but: int) -> tuple[Claim, ...]:
        """Networks that this one is in, and those that it has a route to; without those of the link group ``but``."""
        links = [each for each in self._route.get_links() if each.get_attr("IFLA_GROUP") != but]
        # A device may come between the kernel's answers; it is a cluster's, or nobody's yet.
        names = {each["index"]: each.get_attr("IFLA_IFNAME") for each in links}
        loopback = {each["index"] for each in links if each["flags"] & _IFF_LOOPBACK}
        # Addresses of the node that are on its loopback device are its own, too.
        found = [
            Claim(address, f"this node's network on {names[index]}", direct=True)
            for index, address, scope in self._addresses()
            if index in names and scope == _RT_SCOPE_UNIVERSE
        ]
        for message in self._route.get_routes(table=_RT_TABLE_MAIN):
            to, device = message.get_attr("RTA_DST"), message.get_attr("RTA_OIF")
            if to is not None and device in names.keys() - loopback and not to.startswith("fe80:"):
                found.append(Claim(f"{to}/{message['dst_len']}", f"this node's route by {names[device]}"))
        return tuple(found)

    def addresses(self) -> tuple[str, ...]:
        """All addresses of this namespace with prefix lengths, but for loopback's and IPv6's of single links."""
        return tuple(sorted(address for _, address, scope in self._addresses() if scope == _RT_SCOPE_UNIVERSE))

    def exit_to(self, address: str) -> str | None:
        """The device by which packets for an address leave this node, if they do."""
        try:
            (route,) = self._route.route("get", dst=address)
        except NetlinkError:
            return None  # ENETUNREACH and its like
        link = self._route.get_links(route.get_attr("RTA_OIF"))[0]
        return None if link["flags"] & _IFF_LOOPBACK else str(link.get_attr("IFLA_IFNAME"))

    def held(self) -> dict[int, list[str]]:
        """The addresses of each device, by its index, with prefix lengths."""
        found: dict[int, list[str]] = {}
        for index, address, _ in self._addresses():
            found.setdefault(index, []).append(address)
        return found

    def _addresses(self) -> Iterator[tuple[int, str, int]]:
        """The index of a device, an address that it has with its prefix length, and the scope of that."""
        for message in self._route.get_addr():
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if address is not None:
                yield message["index"], f"{address}/{message['prefixlen']}", message["scope"]

    def device_of(self, address: str) -> Link | None:
        """The device that holds an IPv4 address, if any."""
        for message in self._route.get_addr(family=2):
            if message.get_attr("IFA_LOCAL") == address or message.get_attr("IFA_ADDRESS") == address:
                return _link(self._route.get_links(message["index"])[0])
        return None


@contextmanager
def opened(what: str) -> Iterator[Links]:
    """Netlink in the calling thread's namespace; ``what`` is being attempted, for the error.

    :raise HostError: the kernel refused something inside.
    """
    try:
        with IPRoute() as route:
            yield Links(route)
    except NetlinkError as err:
        raise HostError(f"cannot {what}") from OSError(err.code, os.strerror(err.code))


@contextmanager
def target(name: str) -> Iterator[int]:
    """A descriptor of a named namespace, to make devices in it from outside.

    :raise HostError: there is none.
    """
    fd = netns.open_named(name)
    try:
        yield fd
    finally:
        os.close(fd)


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    data = info.get_attr("IFLA_INFO_DATA") if kind == "vxlan" else None
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mtu=message.get_attr("IFLA_MTU"),
        kind=kind,
        up=bool(message["flags"] & 1),
        master=message.get_attr("IFLA_MASTER"),
        vni=data.get_attr("IFLA_VXLAN_ID") if data is not None else None,
        carrier=bool(message.get_attr("IFLA_CARRIER")),
        address=message.get_attr("IFLA_ADDRESS") or "",
    )
