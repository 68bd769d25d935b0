# SPDX-License-Identifier: Apache-2.0
"""Scenarios of test_services.py: firewalls and network managers of the node's own, run for real beside a cluster.

    python -m tests.host.services_world SCENARIO DATA_PATH

The node is node_world's; the other end of its network is in a namespace "outside", and a guest's kernel is behind a
tap. Remedies are those that doctor names, run as they stand.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pvc.config.load import load_root_config
from pvc.host import netns
from pvc.model.netview import Fault
from pvc.model.site import SiteConfig
from pvc.node import netcheck, setup, teardown
from pvc.node.mend import look_after
from pvc.node.upkeep import Upkeep
from pvc.ops.checkup import Finding, Verdict
from pvc.ops.servicecheck import check_firewall, check_managers
from pvc.plan.node import NodePlan
from pvc.state.ledger import Ledger
from tests.host import bridge_world, frames, nodes, view_world
from tests.host.node_world import CONF, REQUEST, STATE, assert_clean, context, data_path, job, run, snapshot
from tests.host.outside_world import differences, mended, seen, sh
from tests.waits import PATIENCE_S, wait_until

OUTSIDE, OUTSIDE6 = nodes.OUTSIDE, nodes.OUTSIDE6
ECHO, TOLD = 7001, 7000
FROM_NODE, FROM_NODE6 = "from 10.99.0.1 ", "from fd99::1 "


@dataclass(frozen=True)
class Guest:
    """VM 0 of job 12, with a connection to outside that was there before anything happened to the node."""

    plan: NodePlan
    space: str
    talk: socket.socket

    def goes_on(self) -> bool:
        """Whether that connection still carries something both ways."""
        self.talk.sendall(b"?")
        return self.talk.recv(1) == b"?"

    def gets_out(self) -> bool:
        """Whether new connections come to servers outside, over both versions of IP."""
        found = [netns.run_inside(self.space, lambda a=a: nodes.ask_again(nodes.try_connect, a, TOLD)) for a in OUT]
        return found[0].startswith(FROM_NODE) and found[1].startswith(FROM_NODE6)

    def is_kept_in(self, address: str) -> bool:
        said = netns.run_inside(self.space, lambda: nodes.try_connect(address, TOLD))
        return said == "silence" or said.startswith("refused")

    def is_reached(self) -> bool:
        """Whether the forwarded port leads to it from another machine."""
        port = self.plan.grant.vms[0].ports["22"]
        return netns.run_inside("outside", lambda: nodes.ask_again(nodes.try_connect, "10.99.0.1", port)).startswith(
            "from"
        )

    def has_lease(self) -> bool:
        """Whether the gateway answers its DHCP."""
        mac = self.plan.grant.vms[0].nics[0].mac
        return netns.run_inside(self.space, lambda: nodes.ask_again(frames.ask_dhcp, mac))[0] == bytes([10, 200, 0, 1])


OUT = (OUTSIDE, OUTSIDE6)


@contextmanager
def beside_a_cluster() -> Iterator[Guest]:
    """A node with a way outside, a cluster on it, and a VM that talks; nothing is left of it afterwards."""
    path = CONF / "networks.yaml"
    networks = json.loads(path.read_text())
    networks["nat"]["settings"] |= {"int-network6": "fd00:c8::/64"}
    path.write_text(json.dumps(networks))
    netns.ensure("outside")
    sh("ip link set peer-eth0 netns outside; ip addr add fd99::1/64 dev eth0 nodad")
    netns.run_inside("outside", _make_outside)
    sh("ip route add default via 10.99.0.254; ip -6 route add default via fd99::254")
    before = snapshot()
    setup.set_up(context(), job(), REQUEST)
    inputs = Ledger(STATE, 12).read_inputs()
    assert inputs is not None
    plan = inputs.plan()
    guest = nodes.start_guest(plan, 0)
    nic = plan.grant.vms[0].nics[0]
    assert nic.address is not None
    assert nic.address6 is not None

    def settle() -> socket.socket:
        nodes.give_address(str(nic.address), nic.gateway)
        nodes.give_address(str(nic.address6), None)
        nodes.serve_tcp(22)
        nodes.wait_for_router()
        return socket.create_connection((OUTSIDE, ECHO), timeout=PATIENCE_S)

    found = Guest(plan, guest, netns.run_inside(guest, settle))
    assert found.goes_on()
    assert found.gets_out()
    assert faults() == ()
    yield found
    found.talk.close()
    teardown.tear_down(context(), 12)
    netns.remove(guest)
    assert_clean(before)


def _make_outside() -> None:
    for line in ("link set lo up", "link set peer-eth0 mtu 9000 up", "addr add 10.99.0.254/24 dev peer-eth0"):
        nodes.ip(line)
    for line in ("addr add fd99::254/64 dev peer-eth0 nodad", f"addr add {OUTSIDE}/32 dev lo"):
        nodes.ip(line)
    nodes.ip(f"addr add {OUTSIDE6}/128 dev lo nodad")
    nodes.serve_tcp(TOLD)
    with socket.create_server(("", ECHO)) as server:
        if os.fork() == 0:
            while True:
                client, _ = server.accept()
                if os.fork() == 0:
                    while data := client.recv(100):
                        client.sendall(data)
                    os._exit(0)
                client.close()


def faults() -> tuple[Fault, ...]:
    """What doctor --job says of this node."""
    return netcheck.check(Ledger(STATE, 12)).faults


def site() -> SiteConfig:
    return load_root_config(CONF)


def wrong(found: Iterator[Finding]) -> list[Finding]:
    """What doctor --node complains of."""
    return [each for each in found if each.verdict is not Verdict.OK]


def heed(fix: str | None, prefix: str = "as root: ") -> None:
    """Do what doctor says."""
    assert fix is not None
    assert fix.startswith(prefix), fix
    sh(fix.removeprefix(prefix))


KEEPS_ALL = (
    *("iptables -F", "iptables -t nat -F", "iptables -X", "ip6tables -F", "ip6tables -t nat -F"),
    *("iptables-legacy -F", "iptables-legacy -t nat -F", "ip6tables-legacy -F"),
    "iptables-restore < /dev/null",
)
SHUTS = (
    ("iptables", "IPv4", "chain ip filter FORWARD drops", OUTSIDE),
    ("ip6tables", "IPv6", "chain ip6 filter FORWARD drops", OUTSIDE6),
    ("iptables-legacy", "IPv4", "FORWARD of iptables-legacy drops", OUTSIDE),
    ("ip6tables-legacy", "IPv6", "FORWARD of ip6tables-legacy drops", OUTSIDE6),
)


def iptables() -> None:
    """What iptables flushes is not pvc's; a policy of its is told, with the rule of the same program."""
    with beside_a_cluster() as guest:
        good = seen()
        for command in KEEPS_ALL:
            sh(command)
            assert seen() == good, (command, differences(good))
            assert guest.goes_on(), command
        assert guest.gets_out()
        for program, version, words, address in SHUTS:
            sh(f"{program} -P FORWARD DROP")
            (fault,) = faults()
            assert f"over {version}," in fault.text, fault
            assert words in fault.text, fault
            assert guest.is_kept_in(address)
            heed(fault.fix)
            assert faults() == ()
            assert guest.gets_out()
            sh(f"{program} -P FORWARD ACCEPT; {program} -F")
        sh("nft delete table ip filter; nft delete table ip6 filter")


def start_bus() -> None:
    Path("/run/dbus").mkdir()
    sh("dbus-daemon --system --fork --nopidfile")


def start(*argv: str, log: str) -> subprocess.Popen[bytes]:
    with Path(log).open("ab") as stream:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)


def stop(service: subprocess.Popen[bytes]) -> None:
    service.send_signal(signal.SIGTERM)
    service.wait(PATIENCE_S)


def says(command: str) -> str:
    done = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout


def start_firewalld() -> subprocess.Popen[bytes]:
    service = start("firewalld", "--nofork", "--nopid", log="/run/firewalld.log")
    wait_until(lambda: "running" in says("firewall-cmd --state"), lack=lambda: Path("/run/firewalld.log").read_text())
    return service


def firewalld() -> None:
    """What goes on beside it goes on; what begins does not, until doctor's words have been heeded, for good."""
    with beside_a_cluster() as guest:
        sh("mount -t tmpfs tmpfs /etc/firewalld")
        start_bus()
        service = start_firewalld()
        assert guest.goes_on()
        assert guest.has_lease()
        assert guest.is_reached()
        assert guest.is_kept_in(OUTSIDE)
        (fault,) = faults()
        assert "over IPv4 and IPv6" in fault.text, fault
        assert "firewalld refuses" in fault.text, fault
        told = wrong(check_firewall(site()))
        # Datagrams of tunnels of Open vSwitch's own process are none of the kernel's.
        expected = ["does not list UDP 4789"] if data_path() == "kernel" else []
        expected.append("VMs do not get out of the node")
        assert [words in each.text for words, each in zip(expected, told, strict=True)] == [True] * len(told), told
        heed(fault.fix)
        assert faults() == ()
        assert guest.gets_out()
        for each in told[:-1]:
            heed(each.fix)
        assert wrong(check_firewall(site())) == []
        for again in ("--reload", "--complete-reload", None):
            if again is None:
                stop(service)
                service = start_firewalld()
            else:
                sh(f"firewall-cmd {again}")
            assert guest.goes_on(), again
            assert guest.gets_out(), again
            assert guest.is_reached(), again
            assert faults() == (), again
        stop(service)
        # As much as it has brought, and no more, goes with it.
        assert guest.gets_out()


def tunnels() -> None:
    """A firewall that keeps tunnels from a node is that node's, and so is the command."""
    start_bus()
    sh("mount -t tmpfs tmpfs /etc/firewalld")
    with view_world.two_nodes() as (here, there):
        assert [each.verdict for each in view_world.try_paths(here, there).values()] == [Verdict.OK]
        for close, words, again in (
            ("iptables -P INPUT DROP", "on n1, as root: iptables -I INPUT -p udp --dport 4789 -j ACCEPT", ":"),
            ("iptables-legacy -P INPUT DROP", "on n1, as root: iptables-legacy -I INPUT", ":"),
            ("nft 'add table inet site; add chain inet site in { type filter hook input priority 5; policy drop; }'",
             "on n1, as root: nft insert rule inet site in udp dport 4789 accept", ":"),
            ("", "on n1, as root: firewall-cmd --permanent --zone=public --add-port=4789/udp", "firewall-cmd --reload"),
        ):  # fmt: skip
            if close:
                sh(close)
            else:
                start_firewalld()
            found = view_world.try_paths(here, there)
            (broken,) = (each for each in found.values() if each.verdict is Verdict.FAIL)
            assert (broken.where, (broken.fix or "").startswith(words)) == ("n2 -> n1", True), (close, broken)
            heed(broken.fix, "on n1, as root: ")
            sh(again)
            assert [each.verdict for each in view_world.try_paths(here, there).values()] == [Verdict.OK], close
            sh("iptables -P INPUT ACCEPT; iptables-legacy -P INPUT ACCEPT; iptables -F; iptables-legacy -F")
            sh("nft 'table inet site {}; delete table inet site'")


ROGUE_LOG = "/run/rogue.log"
# What sites write who have all of a machine's network from DHCP.
ALL_BY_DHCP = "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n"
READ_ONLY_SYS = "mount -o remount,bind,ro /sys; exec"  # by which both services know that there is no udev to wait for


def start_networkmanager() -> subprocess.Popen[bytes]:
    return start("unshare", "-m", "sh", "-c", f"{READ_ONLY_SYS} NetworkManager --no-daemon", log="/run/nm.log")


def start_networkd() -> subprocess.Popen[bytes]:
    argv = ["unshare", "-m", "sh", "-c", f"{READ_ONLY_SYS} /lib/systemd/systemd-networkd"]
    return start(*argv, log="/run/networkd.log")


def ports() -> dict[str, tuple[bool, str | None, int, str, tuple[str, ...]]]:
    """Of the cluster's devices in the node's own namespace: up, master, MTU, MAC, IPv4 addresses."""
    found = {}
    for link in json.loads(sh("ip -j addr")):
        if link["ifname"].startswith(("nat", "pvc-")):
            addresses = tuple(each["local"] for each in link["addr_info"] if each["family"] == "inet")
            up = "UP" in link["flags"]
            found[link["ifname"]] = (up, link.get("master"), link["mtu"], link["address"], addresses)
    return found


def speaks_ipv6() -> list[str]:
    """Those where the node would speak IPv6 to VMs."""
    settings = Path("/proc/sys/net/ipv6/conf")
    return [name for name in ports() if "." in name and (settings / name / "disable_ipv6").read_text().strip() == "0"]


def configure_networkmanager() -> None:
    for place in ("/etc/NetworkManager", "/var/lib/NetworkManager"):
        sh(f"mount -t tmpfs tmpfs {place}")
    Path("/etc/NetworkManager/conf.d").mkdir()
    # The machine's own name servers are not this one's to write.
    sh("cp /etc/resolv.conf /run/resolv.conf; mount --bind /run/resolv.conf /etc/resolv.conf")
    text = "[main]\nplugins=keyfile\ndns=none\nrc-manager=unmanaged\n"
    Path("/etc/NetworkManager/NetworkManager.conf").write_text(text)


def onlooker() -> None:
    """On the data path of the kernel NetworkManager looks on, whatever happens; doctor advises all the same."""
    with beside_a_cluster() as guest:
        configure_networkmanager()
        Upkeep(context()).start()
        settled = seen()
        start_bus()
        service = start_networkmanager()
        state = "nat12:connected (externally)"
        for change in (":", "ip link set nat12 down", "ip addr flush dev nat12"):
            sh(change)
            wait_until(lambda: state in says("nmcli -t -f DEVICE,STATE device"), lack=lambda: says("nmcli device"))
            wait_until(lambda: seen() == settled, lack=lambda: differences(settled))
        (finding,) = wrong(check_managers(site()))
        assert "would take devices of clusters" in finding.text, finding
        heed(finding.fix)
        wait_until(lambda: "nat12:unmanaged" in says("nmcli -t -f DEVICE,STATE device"), lack=says("nmcli device"))
        assert wrong(check_managers(site())) == []
        assert seen() == settled, differences(settled)
        assert guest.goes_on()
        assert guest.gets_out()
        stop(service)


def networkmanager() -> None:
    """It takes the gateway's port, and sets it down when it lets go; pvc-node puts it up, and doctor has the cure."""
    with beside_a_cluster() as guest:
        configure_networkmanager()
        keep = Upkeep(context())
        keep.start()
        good, settled = ports(), seen()
        start_bus()
        assert [each.text for each in check_managers(site())] == ["neither NetworkManager nor systemd-networkd runs"]
        service = start_networkmanager()
        wait_until(lambda: says("nmcli -t -f STATE general"))
        wait_until(speaks_ipv6, lack=lambda: says("nmcli device") + Path("/run/nm.log").read_text())
        # What it has only begun with it would let go of without setting it down.
        wait_until(lambda: ":connecting (getting" in says("nmcli -t -f DEVICE,STATE device"), lack=says("nmcli device"))
        (finding,) = wrong(check_managers(site()))
        assert "NetworkManager has " in finding.text, finding
        assert all(name in finding.text for name in speaks_ipv6()), finding
        since = time.time()
        heed(finding.fix)
        wait_until(lambda: wrong(check_managers(site())) == [], lack=lambda: says("nmcli device"))
        wait_until(
            lambda: any("is down" in text for text in mended(12, since)), lack=lambda: (mended(12, since), ports())
        )
        wait_until(lambda: ports() == good, lack=lambda: (ports(), good))
        assert speaks_ipv6() == []
        assert guest.goes_on()
        assert guest.gets_out()
        stop(service)
        service = start_networkmanager()
        wait_until(lambda: "lo:" in says("nmcli -t -f DEVICE,STATE device"))
        stays_alone(guest)
        assert ports() == good
        assert seen() == settled, differences(settled)
        stop(service)


def stays_alone(guest: Guest) -> None:
    """Another cluster comes and goes beside a manager that leaves it alone."""
    setup.set_up(context(), job(13), REQUEST)
    assert wrong(check_managers(site())) == []
    assert speaks_ipv6() == []
    assert netcheck.check(Ledger(STATE, 13)).faults == ()
    teardown.tear_down(context(), 13)
    assert guest.goes_on()
    assert guest.gets_out()


def configure_networkd() -> None:
    sh("mount -t tmpfs tmpfs /etc/systemd/network; mkdir -p /run/systemd/netif/links /run/systemd/netif/leases")
    sh("mkdir /run/systemd/netif/lldp; chown -R systemd-network:systemd-network /run/systemd/netif")
    Path("/etc/systemd/network/50-all.network").write_text(ALL_BY_DHCP)


def networkd() -> None:
    """By a file for all Ethernet devices it has VMs' taps, and asks VMs for addresses there; not after the cure."""
    with beside_a_cluster() as guest:
        configure_networkd()
        good = ports()
        start_bus()
        netns.run_inside(guest.space, serve_leases)
        service = start_networkd()
        # The node asks VMs for an address, and this one answers: it is not heard, for rules of pvc's come before.
        wait_until(lambda: Path(ROGUE_LOG).read_text().count("DHCPOFFER") > 1, lack=lambda: Path(ROGUE_LOG).read_text())
        assert [each[4] for each in ports().values()] == [each[4] for each in good.values()]
        assert speaks_ipv6()
        (finding,) = wrong(check_managers(site()))
        assert "systemd-networkd has " in finding.text, finding
        heed(finding.fix)
        wait_until(lambda: wrong(check_managers(site())) == [], lack=lambda: says("networkctl"))
        # networkd leaves them as it had them: what it turned on is told, and put back.
        assert all("disable_ipv6 is 0 instead of 1" in fault.text for fault in faults())
        assert speaks_ipv6()
        assert look_after(context(), 12)
        assert faults() == ()
        assert guest.goes_on()
        assert guest.gets_out()
        stop(service)
        service = start_networkd()
        wait_until(lambda: "routable" in says("networkctl list --no-legend"), lack=lambda: says("networkctl"))
        stays_alone(guest)
        # It has put the bridge's own device up, by which nothing goes: no flow leads there.
        assert ports().items() - good.items() <= {("pvc-ovs", (True, *good["pvc-ovs"][1:]))}
        sh("rm /etc/systemd/network/05-pvc.network")
        stop(service)


def bridged() -> None:
    """Both take VMs' ports out of a bridge of the site's; pvc-node puts them back, and after the cure they stay."""
    sh("ip link add sitebr address 02:00:5e:00:00:01 type bridge; ip link set sitebr mtu 9000 up")
    bridge_world.declare(mtu=1500)
    before = snapshot()
    ledger = bridge_world.set_up("1;cpus=2;site:2")
    Upkeep(context()).start()
    bridge_world.ready_of(ledger)
    names = bridge_world.ports_of(ledger)
    assert masters(names) == {"sitebr"}
    start_bus()
    configure_networkmanager()
    configure_networkd()
    # What they do when they come to it before they see whose port it is, which is not each time.
    since = time.time()
    sh(f"ip link set {names[0]} nomaster")
    wait_until(lambda: any("is no port of sitebr" in text for text in mended(12, since)), lack=lambda: says("ip link"))
    for manager, starts in (("systemd-networkd", start_networkd), ("NetworkManager", start_networkmanager)):
        service = starts()
        wait_until(partial(has_ports, manager), lack=lambda: says("networkctl; nmcli device; ip link"))
        (finding,) = wrong(check_managers(site()))
        heed(finding.fix)
        wait_until(lambda: wrong(check_managers(site())) == [], lack=lambda: says("networkctl; nmcli device"))
        # It may have taken one more in the meantime.
        wait_until(lambda: masters(names) == {"sitebr"} and faults() == (), lack=lambda: (says("ip link"), faults()))
        stop(service)
        service = starts()
        wait_until(lambda: "neither" not in next(check_managers(site())).text)
        assert wrong(check_managers(site())) == []
        stop(service)
        # The first one may have set a port down when it was stopped, and that may have been put back just now.
        wait_until(lambda: masters(names) == {"sitebr"} and faults() == (), lack=lambda: (says("ip link"), faults()))
    teardown.tear_down(context(), 12)
    assert_clean(before)


def has_ports(manager: str) -> bool:
    """Whether doctor finds that a service has VMs' ports for its own."""
    return any(each.text.startswith(f"{manager} has st.") for each in wrong(check_managers(site())))


def masters(names: list[str]) -> set[str | None]:
    """The bridges that devices are ports of."""
    return {link.get("master") for link in json.loads(sh("ip -j link")) if link["ifname"] in names}


def serve_leases() -> None:
    """In a guest: a DHCP server of its root's, which the network keeps from other VMs."""
    argv = ["dnsmasq", "--no-daemon", "--port=0", "--interface=eth0", "--bind-interfaces", "--conf-file=/dev/null"]
    start(*argv, "--dhcp-range=10.200.0.77,10.200.0.77", "--dhcp-leasefile=/run/rogue", "--log-dhcp", log=ROGUE_LOG)


SCENARIOS: tuple[Callable[[], None], ...] = (iptables, firewalld, tunnels, onlooker, networkmanager, networkd, bridged)
ON_BOTH_PATHS = (firewalld,)
OF_OVS = (networkmanager, networkd)

if __name__ == "__main__":
    os.environ["PVC_TEST_DATA_PATH"] = sys.argv[2]
    run(next(each for each in SCENARIOS if each.__name__ == sys.argv[1]))
