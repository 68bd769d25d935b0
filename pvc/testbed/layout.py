# SPDX-License-Identifier: Apache-2.0
"""From what was asked and what the machine is to everything that ``up`` makes: pure.

The nodes of a testbed hang on one bridge in a network namespace of the testbed's own, so every testbed
may use the same addresses and names.
"""

from __future__ import annotations

import ipaddress
import json

from pvc.testbed import slurmconf
from pvc.testbed.model import (
    Bind,
    Device,
    Directory,
    Farm,
    File,
    HostFacts,
    Link,
    NodePlan,
    Service,
    StateDir,
    TestbedPlan,
    TestbedSpec,
    Tmpfs,
    View,
)

LOGIN = slurmconf.CONTROLLER
NETWORK = ipaddress.IPv4Network("10.99.0.0/16")
# A second network for tunnels of Open vSwitch: its own process forwards where the kernel has no module for it, and then
# the addresses of tunnels must be on a bridge of its own. The kernel's are on the first.
TUNNELS = ipaddress.IPv4Network("10.98.0.0/16")
TUNNEL_SUFFIX, TUNNEL_BRIDGE, TUNNEL_LINK = "-ovs", "br-phy", "eth1"
# Jumbo frames, as the data networks of clusters have them: guests keep the usual 1500 bytes inside VXLAN
# (50 bytes more) without anybody having to lower an MTU, and a veth pair carries 9000 at no cost.
MTU = 9000
# Far above the machine's own users; the kernel counts processes per user id across namespaces.
USERS = {"student": 30001, "teacher": 30002, "mallory": 30003}
MAX_NODES = 250
# The nodes' own directory below /run: the host's directories that farms link to, and the users' commands.
OWN = "/run/pvc-testbed"
# Where nodes with a root of their own have pvc's checkout, and the environment with its dependencies.
CHECKOUT = "/opt/pvc"
ENVIRONMENT = "/opt/pvc-testbed"
COMMANDS = ("pvc", "pvc-node")
ETCD_PORT = 2379
SLURMCTLD_PORT = 6817
IMAGES = "/var/lib/pvc-images"
_MUNGE_SOCKET = "/run/munge/munge.socket.2"
_OVS_SOCKET = "/run/openvswitch/db.sock"


def node_names(count: int) -> tuple[str, ...]:
    """The compute nodes."""
    return tuple(f"n{number}" for number in range(1, count + 1))


def node_address(name: str) -> str:
    """The address of a node on the testbed's network; the login node has the first one."""
    return str(NETWORK[1 if name == LOGIN else 10 + int(name[1:])])


def tunnel_address(name: str) -> str:
    """The address of a compute node on the network for tunnels of Open vSwitch."""
    return str(TUNNELS[10 + int(name[1:])])


def tunnel_bridge(address: str) -> str:
    """What makes the bridge that holds this address, for ``ovsdb-tool transact``.

    Its MAC is not left to Open vSwitch, which makes one of the row's id: those of copied databases are all the same.
    """
    interfaces: list[dict[str, str | int]] = [
        {"name": TUNNEL_LINK},
        {"name": TUNNEL_BRIDGE, "type": "internal", "mtu_request": MTU},
    ]
    steps: list[object] = ["Open_vSwitch"]
    for at, row in enumerate(interfaces):
        steps.append({"op": "insert", "table": "Interface", "row": row, "uuid-name": f"interface{at}"})
        port = {"name": row["name"], "interfaces": ["named-uuid", f"interface{at}"]}
        steps.append({"op": "insert", "table": "Port", "row": port, "uuid-name": f"port{at}"})
    ports = ["set", [["named-uuid", f"port{at}"] for at, _ in enumerate(interfaces)]]
    mac = "02:00:" + ":".join(f"{byte:02x}" for byte in ipaddress.IPv4Address(address).packed)
    config = ["map", [["hwaddr", mac]]]
    bridge = {"name": TUNNEL_BRIDGE, "datapath_type": "netdev", "ports": ports, "other_config": config}
    steps.append({"op": "insert", "table": "Bridge", "row": bridge, "uuid-name": "bridge"})
    steps.append({"op": "insert", "table": "Open_vSwitch", "row": {"bridges": ["named-uuid", "bridge"]}})
    return json.dumps(steps)


def cgroup_path(mount: str, testbed: str, node: str = "") -> str:
    """The cgroup of a node (or of the whole testbed) below a hierarchy's mount point."""
    return f"{mount}/pvc-testbed/{testbed}" + (f"/{node}" if node else "")


def plan_testbed(
    spec: TestbedSpec, facts: HostFacts, key: str, state_dir: str, secrets: tuple[bytes, str]
) -> TestbedPlan:
    """Directories, files and nodes of a testbed; ``secrets`` are munge's key and etcd's root password."""
    names = (LOGIN, *node_names(spec.nodes))
    nodes = tuple(_plan_node(spec, facts, key, state_dir, name) for name in names)
    return TestbedPlan(spec, _directories(names), _files(spec, facts, names, secrets), nodes)


def _directories(names: tuple[str, ...]) -> tuple[StateDir, ...]:
    shared = [
        StateDir("etc"),
        StateDir("etc/slurm"),
        StateDir("etc/munge", 0o700, "munge"),
        StateDir("etc/pvc"),
        StateDir("bin"),
        StateDir("home"),
        StateDir("images"),
        StateDir("nodes"),
        *(StateDir(f"home/{user}", 0o700, user) for user in USERS),
    ]
    for name in names:
        base = f"nodes/{name}"
        shared += [
            StateDir(base),
            StateDir(f"{base}/slurm"),
            StateDir(f"{base}/slurm/slurmd"),
            StateDir(f"{base}/slurm/slurmctld", 0o700, "slurm"),
            StateDir(f"{base}/log"),
            StateDir(f"{base}/log/slurm", 0o755, "slurm"),
            StateDir(f"{base}/log/munge", 0o700, "munge"),
            StateDir(f"{base}/munge", 0o711, "munge"),
            StateDir(f"{base}/openvswitch"),
            StateDir(f"{base}/etcd", 0o700),
            StateDir(f"{base}/pvc", 0o700),
            StateDir(f"{base}/var-tmp", 0o1777),
        ]
    return tuple(shared)


def _files(spec: TestbedSpec, facts: HostFacts, names: tuple[str, ...], secrets: tuple[bytes, str]) -> tuple[File, ...]:
    key, password = secrets
    addresses = [(name, node_address(name)) for name in names]
    tunnels = [(name + TUNNEL_SUFFIX, tunnel_address(name)) for name in names if name != LOGIN]
    hosts = "".join(f"{address} {name}\n" for name, address in (*addresses, *tunnels))
    slurm_conf = slurmconf.slurm_conf(
        cluster=spec.name,
        controller_address=node_address(LOGIN),
        addresses=addresses[1:],
        tracking=slurmconf.has_tracking(facts.cgroups, facts.controllers),
    )
    plugstack = slurmconf.plugstack_conf(
        plugin=facts.plugin if spec.plugin else None, pvc=pvc_path(facts), pvc_node=pvc_node_path(facts)
    )
    files = [
        File("etc/hosts", f"127.0.0.1 localhost\n{hosts}"),
        File("etc/passwd", passwd(facts.passwd)),
        File("etc/group", group(facts.group)),
        File("etc/resolv.conf", "# no name server: /etc/hosts has the nodes\n"),
        File("etc/munge/munge.key", key.hex(), 0o400, "munge"),
        File("etc/pvc/etcd-password", password + "\n", 0o600),
        File("etc/slurm/slurm.conf", slurm_conf),
        File("etc/slurm/cgroup.conf", slurmconf.cgroup_conf(facts.cgroups, facts.controllers)),
        File("etc/slurm/plugstack.conf", plugstack),
        *(File(f"etc/pvc/{name}", text) for name, text in facts.config_files),
        *(File(f"nodes/{name}/hostname", name + "\n") for name in names),
        *(File(f"bin/{name}", text, 0o755) for name, text in _commands(facts)),
    ]
    return tuple(files)


def pvc_path(facts: HostFacts) -> str:
    """The command ``pvc`` as the nodes find it."""
    return facts.pvc or "/usr/local/bin/pvc"


def pvc_node_path(facts: HostFacts) -> str:
    """The command ``pvc-node`` as the nodes find it."""
    return facts.pvc_node or "/usr/local/bin/pvc-node"


def _commands(facts: HostFacts) -> list[tuple[str, str]]:
    """Scripts for commands that are not installed: the checkout, run by this interpreter."""
    commands = []
    for name, installed, module in (("pvc", facts.pvc, "main"), ("pvc-node", facts.pvc_node, "node")):
        if not installed:
            code = f'import sys; sys.path.insert(0, "{facts.checkout}"); from pvc.cli.{module} import main; main()'
            commands.append((name, f"#!/bin/sh\nexec {facts.python} -I -c '{code}' \"$@\"\n"))
    return commands


def passwd(host: str) -> str:
    """The nodes' /etc/passwd: the machine's system users and the testbed's."""
    lines = [line for line in host.splitlines() if _is_system(line) and line.split(":")[0] not in USERS]
    lines += [f"{user}:*:{uid}:{uid}:{user}:/home/{user}:/bin/bash" for user, uid in USERS.items()]
    return "\n".join(lines) + "\n"


def group(host: str) -> str:
    """The nodes' /etc/group; who may use /dev/kvm by its group may use it there as well."""
    lines = []
    for line in host.splitlines():
        fields = line.split(":")
        if len(fields) < 4 or fields[0] in USERS or not _is_system(line):
            continue
        lines.append(":".join([*fields[:3], ",".join(USERS) if fields[0] == "kvm" else ""]))
    lines += [f"{user}:*:{uid}:" for user, uid in USERS.items()]
    return "\n".join(lines) + "\n"


def _is_system(line: str) -> bool:
    fields = line.split(":")
    return len(fields) >= 3 and fields[2].isdigit() and (int(fields[2]) < 1000 or int(fields[2]) >= 60000)


def _plan_node(spec: TestbedSpec, facts: HostFacts, key: str, state_dir: str, name: str) -> NodePlan:
    services = _login_services() if name == LOGIN else _compute_services(spec, facts)
    return NodePlan(
        testbed=key,
        name=name,
        address=node_address(name),
        prefix_length=NETWORK.prefixlen,
        mtu=MTU,
        state_dir=f"{state_dir}/nodes/{name}",
        cgroups=facts.cgroups,
        view=_view(facts, state_dir, name),
        services=services,
        etcd_auth=name == LOGIN,
        tunnel_address=None if name == LOGIN else tunnel_address(name),
    )


def _view(facts: HostFacts, state_dir: str, name: str) -> View:
    node = f"{state_dir}/nodes/{name}"
    etc = ("slurm", "munge", "pvc")
    texts = ("hosts", "passwd", "group", "resolv.conf")
    binds = [
        *(Bind(f"{state_dir}/etc/{each}", f"/etc/{each}") for each in (*etc, *texts)),
        Bind(f"{node}/hostname", "/etc/hostname"),
        Bind(f"{state_dir}/bin", f"{OWN}/bin", read_only=True),
        *(Bind(f"{state_dir}/home/{user}", f"/home/{user}") for user in USERS),
        *(Bind(f"{node}/{each}", f"/var/lib/{each}") for each in ("slurm", "munge", "openvswitch", "etcd", "pvc")),
        Bind(f"{state_dir}/images", IMAGES),
        Bind(f"{node}/log", "/var/log"),
        Bind(f"{node}/var-tmp", "/var/tmp"),
        *_shown(facts),
    ]
    covered = {"/tmp": 0o1777, "/dev/shm": 0o1777, "/home": 0o755, "/root": 0o711}
    if facts.root is None:
        covered |= {reveal.closed: 0o755 for reveal in facts.reveals if reveal.closed not in covered}
    return View(
        tmpfs=(Tmpfs("/run"), *(Tmpfs(target, mode) for target, mode in covered.items())),
        farms=(
            Farm("/etc", f"{OWN}/host/etc", (*etc, *texts, "hostname", "shadow", "gshadow")),
            Farm(
                "/var/lib",
                f"{OWN}/host/var-lib",
                ("slurm", "munge", "openvswitch", "etcd", "pvc", "pvc-images", "pvc-testbed"),
            ),
            Farm("/usr/local/bin", f"{OWN}/host/bin", ("pvc", "pvc-node")),
        ),
        binds=tuple(binds),
        directories=(
            Directory("/run/munge", 0o755, "munge"),
            Directory("/run/openvswitch"),
            Directory("/run/lock", 0o1777),
            Directory("/run/pvc"),
        ),
        links=(
            Link("/usr/local/bin/pvc", facts.pvc or f"{OWN}/bin/pvc"),
            Link("/usr/local/bin/pvc-node", facts.pvc_node or f"{OWN}/bin/pvc-node"),
        ),
        # As udev makes it on usual distributions, whatever it is on this machine: open to all users.
        devices=(Device(f"{OWN}/tun", "/dev/net/tun", 10, 200, 0o666),),
        root=facts.root,
    )


def _shown(facts: HostFacts) -> tuple[Bind, ...]:
    """What else of this machine the nodes see: what is covered or closed, or with a root of their own, pvc alone."""
    if facts.root is not None:
        own = (Bind(f"{facts.checkout}/bin/{name}", f"{ENVIRONMENT}/bin/{name}", read_only=True) for name in COMMANDS)
        return (Bind(facts.checkout, CHECKOUT, read_only=True), *own)
    return tuple(Bind(path, path, read_only=True) for reveal in facts.reveals for path in reveal.needed)


def _munged() -> Service:
    argv = ("/usr/sbin/munged", "--foreground", "--num-threads=2", "--log-file=/var/log/munge/munged.log")
    return Service("munged", argv, user="munge", ready=_MUNGE_SOCKET)


def _login_services() -> tuple[Service, ...]:
    url = f"http://0.0.0.0:{ETCD_PORT}"
    peer = "http://127.0.0.1:2380"
    etcd = (
        "/usr/bin/etcd",
        "--name=login",
        "--data-dir=/var/lib/etcd/data",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls=http://{node_address(LOGIN)}:{ETCD_PORT}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=login={peer}",
        # A single member elects itself after one time-out.
        "--heartbeat-interval=20",
        "--election-timeout=200",
        # A password is checked for each connection; the default cost takes 60 ms of CPU.
        "--bcrypt-cost=4",
        "--logger=zap",
    )
    return (
        _munged(),
        Service(
            "slurmctld",
            ("/usr/sbin/slurmctld", "-D"),
            after=(_MUNGE_SOCKET,),
            ready=f"{node_address(LOGIN)}:{SLURMCTLD_PORT}",
        ),
        Service("etcd", etcd, ready=f"{node_address(LOGIN)}:{ETCD_PORT}"),
    )


def _compute_services(spec: TestbedSpec, facts: HostFacts) -> tuple[Service, ...]:
    database = "/var/lib/openvswitch/conf.db"
    controller = f"{node_address(LOGIN)}:{SLURMCTLD_PORT}"
    services = [
        _munged(),
        # A slurmd that finds no controller tries again a second later.
        Service("slurmd", ("/usr/sbin/slurmd", "-D"), after=(_MUNGE_SOCKET, controller), ready="/run/slurmd.pid"),
        Service(
            "ovsdb-server",
            ("/usr/sbin/ovsdb-server", database, f"--remote=punix:{_OVS_SOCKET}", "--pidfile", "--no-chdir"),
            ready=_OVS_SOCKET,
            restart=True,
        ),
        Service(
            "ovs-vswitchd",
            ("/usr/sbin/ovs-vswitchd", f"unix:{_OVS_SOCKET}", "--pidfile", "--no-chdir"),
            after=(_OVS_SOCKET,),
            ready=f"/run/openvswitch/{TUNNEL_BRIDGE}.mgmt",
            restart=True,
        ),
    ]
    if spec.daemon and facts.has_daemon:
        services.append(
            Service(
                "pvc-node",
                (pvc_node_path(facts), "serve"),
                after=(controller,),
                ready="/run/pvc/node.sock",
                restart=True,
                timeout_s=20.0,
            )
        )
    return tuple(services)
