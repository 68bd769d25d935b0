"""Links, addresses and routes by netlink (pyroute2), in the namespace of the calling thread.

``ensure_*`` makes what is absent and leaves what is there; ``remove_*`` tolerates absence.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from pvc.errors import HostError
from pvc.host import netns


@dataclass(frozen=True)
class Link:
    """What the kernel says of a device of this namespace."""

    index: int
    name: str
    mtu: int
    kind: str | None
    up: bool


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
        master = self.get(bridge).index
        wanted = set(names)
        for link in self.all():
            if link.name in wanted:
                self._route.link("set", index=link.index, master=master, mtu=mtu, state="up")
                wanted.discard(link.name)
        if wanted:
            raise HostError(f"there is no network device {min(wanted)}")

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

    def ensure_address(self, name: str, address: str, prefix_length: int) -> None:
        """Give a device an IPv4 address."""
        try:
            self._route.addr("add", index=self.get(name).index, address=address, prefixlen=prefix_length)
        except NetlinkError as err:
            if err.code != errno.EEXIST:
                raise

    def ensure_default_route(self, gateway: str) -> None:
        """Send what has no other route to ``gateway``."""
        self._route.route("replace", dst="0.0.0.0/0", gateway=gateway)

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
    """A descriptor of a named namespace, to make devices in it from outside."""
    fd = os.open(netns.path_of(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mtu=message.get_attr("IFLA_MTU"),
        kind=info.get_attr("IFLA_INFO_KIND") if info is not None else None,
        up=bool(message["flags"] & 1),
    )
