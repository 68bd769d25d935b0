# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch: one shared bridge of this node, its ports in one transaction, a job's flows in one bundle.

The bridge belongs to all jobs that have ports on it: which ones is in a file, written before the database is. The first
makes it, the last one removes it. The caller holds the node's lock for ports.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from pyroute2.netlink import genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from pvc import run
from pvc.errors import CommandError, HostError
from pvc.files import read_text, write_atomic
from pvc.host import meters, netlink, ofsocket, packetsockets, tap

RUN_DIR = Path("/run/openvswitch")
PID = "ovs-vswitchd.pid"
NETDEV = "netdev"
_LOOK_S = 0.1
# With groups in bundles (1.4) and meters as actions (1.5); ovs-ofctl(8).
_OFCTL = ("ovs-ofctl", "--protocols=OpenFlow15", "--names")
# ovs-vsctl(8) waits until ovs-vswitchd has done what the database says.
_VSCTL = ("ovs-vsctl", "--timeout=20")
_HINT = "start Open vSwitch on this node, or use networks with data-path: kernel"


def read_datapath() -> str:
    """Where bridges of this node forward: "system", the kernel's module, or "netdev", OVS' own process.

    :raise HostError: Open vSwitch does not run here.
    """
    # Without ovs-vswitchd the database would take everything, and nobody would do it.
    for server, path in (
        ("ovsdb-server", RUN_DIR / "db.sock"),
        ("ovs-vswitchd", RUN_DIR / f"ovs-vswitchd.{read_text(RUN_DIR / PID, default='0')}.ctl"),
    ):
        if not listens(path):
            raise HostError(f"Open vSwitch does not run on this node: {server} does not answer", hint=_HINT)
    with GenericNetlinkSocket() as generic:
        try:
            # Asking for the family loads the module where there is one.
            generic.bind("ovs_datapath", genlmsg)
        except NetlinkError:
            return "netdev"
    return "system"


def find_process() -> int | None:
    """The process id of ovs-vswitchd, if it runs."""
    text = read_text(RUN_DIR / PID, default="")
    # A process that has ended and was not waited for has no command line any more.
    if not text.isdecimal() or "ovs-vswitchd" not in read_text(Path(f"/proc/{text}/cmdline"), default=""):
        return None
    return int(text)


def wait_serving(*, timeout_s: float) -> int:
    """The process id of ovs-vswitchd, once it has made its bridges.

    :raise HostError: it does not within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        process = find_process()
        if process is not None and _answers():
            return process
        time.sleep(_LOOK_S)
    raise HostError("Open vSwitch has not come back", hint=_HINT)


def _answers() -> bool:
    # Bridges are made, with their ports, before their sockets are; a dead process leaves its sockets behind.
    return any(listens(path) for path in RUN_DIR.glob("*.mgmt"))


def listens(path: Path) -> bool:
    """Whether somebody serves a socket; one that died leaves it behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
        try:
            link.connect(os.fspath(path))
        except OSError:
            return False
        return True


def ensure_ports(
    record: Path, job_id: int, bridge: str, datapath: str, tunnels: Sequence[tuple[str, int]], ports: Sequence[str]
) -> None:
    """The bridge with its tunnels and a job's ports, in one transaction.

    :raise HostError: ovs-vswitchd does not answer.
    """
    jobs = read_jobs(record)
    words: list[str] = []
    if not jobs:
        # Whatever has this name now is of jobs that nobody remembers.
        words += ["--", "--if-exists", "del-br", bridge]
    if job_id not in jobs:
        _write_jobs(record, [*jobs, job_id])
    if datapath == NETDEV and (not jobs or not tap.exists(bridge)):
        # Open vSwitch's own process makes this device without an owner, and when the process dies it is anybody's.
        if tap.exists(bridge) or jobs:
            _vsctl(["--", "--if-exists", "del-br", bridge], f"remove Open vSwitch bridge {bridge}")
        tap.ensure(bridge)
    words += ["--", "--may-exist", "add-br", bridge]
    # Without flows nothing is forwarded; no device of the bridge's own takes part.
    words += ["--", "set", "Bridge", bridge, f"datapath_type={datapath}", "fail_mode=secure"]
    for name, udp_port in tunnels:
        words += ["--", "--may-exist", "add-port", bridge, name, "--", "set", "Interface", name, "type=vxlan"]
        words += ["options:remote_ip=flow", "options:local_ip=flow", "options:key=flow", f"options:dst_port={udp_port}"]
    for name in ports:
        words += ["--", "--may-exist", "add-port", bridge, name]
    _vsctl(words, f"add ports to Open vSwitch bridge {bridge}")


def remove_ports(record: Path, job_id: int, bridge: str, ports: Sequence[str]) -> None:
    """Take a job's ports away, and the bridge with the last job's. Absent is fine.

    :raise HostError: ovs-vswitchd does not answer.
    """
    jobs = read_jobs(record)
    if job_id not in jobs:
        return
    with packetsockets.held(find_process(), ports):
        if jobs == [job_id]:
            _vsctl(["--", "--if-exists", "del-br", bridge], f"remove Open vSwitch bridge {bridge}")
            if tap.exists(bridge):  # made, and never found by Open vSwitch
                with netlink.opened(f"remove {bridge}") as links:
                    links.remove(bridge)
        elif ports:
            _vsctl(removal_words(ports), f"remove ports from Open vSwitch bridge {bridge}")
    _write_jobs(record, [each for each in jobs if each != job_id])


def removal_words(ports: Sequence[str]) -> list[str]:
    """Commands of ovs-vsctl(8) that take ports away, wherever they are. Absent is fine."""
    return [word for name in ports for word in ("--", "--if-exists", "del-port", name)]


def load_flows(bridge: str, text: str, limits: Sequence[tuple[int, int]]) -> None:
    """Put a job's meters, then its flows and groups in place, the latter in one bundle: all or nothing.

    :raise HostError: ovs-vswitchd does not answer or refuses.
    """
    ofsocket.match_fragments(RUN_DIR / f"{bridge}.mgmt")
    if limits:
        meters.ensure(RUN_DIR / f"{bridge}.mgmt", limits)
    _bundle(bridge, text)


def remove_flows(bridge: str, text: str, limits: Sequence[tuple[int, int]]) -> None:
    """Take a job's flows, groups and meters away by the removal ``text``. A bridge that is not there has none.

    :raise HostError: ovs-vswitchd refuses.
    """
    if not (RUN_DIR / f"{bridge}.mgmt").exists():
        return
    _bundle(bridge, text)
    if limits:
        meters.remove(RUN_DIR / f"{bridge}.mgmt", [meter for meter, _ in limits])


def _bundle(bridge: str, text: str) -> None:
    try:
        run.run([*_OFCTL, "bundle", bridge, "-"], stdin=text)
    except CommandError as err:
        raise HostError(f"cannot load flows into Open vSwitch bridge {bridge}", hint=_HINT) from err


def _vsctl(words: Sequence[str], what: str) -> None:
    try:
        run.run([*_VSCTL, *words])
    except CommandError as err:
        raise HostError(f"cannot {what}", hint=_HINT) from err


def read_jobs(record: Path) -> list[int]:
    """The jobs with ports on the shared bridge."""
    text = read_text(record, default="")
    jobs: list[int] = json.loads(text) if text else []
    return jobs


def _write_jobs(record: Path, jobs: Sequence[int]) -> None:
    if jobs:
        write_atomic(record, json.dumps(jobs), mode=0o600, sync=True)
    else:
        record.unlink(missing_ok=True)
