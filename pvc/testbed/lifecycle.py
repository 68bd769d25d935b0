# SPDX-License-Identifier: Apache-2.0
"""Bring a testbed up and down, crash and boot its nodes."""

from __future__ import annotations

import logging
import os
import secrets
import select
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pvc import codec, files, run
from pvc.errors import HostError, UsageError
from pvc.testbed import cgroups, facts, layout, osroot, processes, slurmconf
from pvc.testbed.model import HostFacts, NodePlan, Record, TestbedPlan, TestbedSpec
from pvc.testbed.place import Place

# Minutes where everything is emulated; what ends early is noticed at once, whatever the limit.
START_TIMEOUT_S = 180.0
IDLE_TIMEOUT_S = 120.0
_CTLD_LOG = "nodes/login/log/slurm/slurmctld.log"

LOG = logging.getLogger(__name__)

Tell = Callable[[str], None]


def up(place: Place, spec: TestbedSpec, tell: Tell) -> bool:
    """Make the testbed, or complete it; False when there was nothing to do.

    :raise UsageError: it runs with other settings.
    :raise HostError: the machine lacks something, or a part does not start.
    """
    if not 1 <= spec.nodes <= layout.MAX_NODES:
        raise UsageError(f"a testbed has 1 to {layout.MAX_NODES} nodes, not {spec.nodes}")
    facts.check_machine()
    with place.locked():
        record = place.read_record()
        if record is not None and place.find_switch() is not None:
            if record.spec != spec:
                raise UsageError(
                    f"testbed {place.name!r} is up with other settings ({describe(record.spec)})",
                    hint=f"pvc testbed down --name {place.name}",
                )
            dead = [node for node in record.nodes if place.find_node(node) is None]
            for node in dead:
                tell(f"{node} is down: booting it")
                _boot(place, node)
            return bool(dead)
        if place.exists():
            tell("taking down what is left of an earlier one")
            _remove(place)
        try:
            _make(place, spec, tell)
        except OSError as err:
            _remove(place)
            raise HostError(f"cannot make the testbed in {place.state_dir}") from err
        except HostError:
            # Its logs say why, and stay until the next "up" or "down"; the processes go.
            with suppress(HostError):
                cgroups.kill_processes(place.mounts, place.key)
            raise
        except BaseException:
            _remove(place)
            raise
    return True


def describe(spec: TestbedSpec) -> str:
    """The settings of a testbed in words."""
    words = [f"{spec.nodes} nodes{f' of Debian {spec.os}' if spec.os else ''}"]
    if not spec.plugin:
        words.append("without the SPANK plug-in")
    if not spec.daemon:
        words.append("without pvc-node's daemon")
    return ", ".join(words)


def _make(place: Place, spec: TestbedSpec, tell: Tell) -> None:
    began = time.monotonic()
    host = facts.read_facts()
    if spec.os:
        host = _with_root(host, osroot.ensure_root(spec.os, tell))
    if not slurmconf.has_tracking(host.cgroups, host.controllers):
        tell("Slurm cannot use this machine's cgroups: its jobs have no memory limits here")
    plan = layout.plan_testbed(
        spec, host, place.key, os.fspath(place.state_dir), (secrets.token_bytes(64), secrets.token_urlsafe(24))
    )
    _write(place, plan, host)
    if host.root is not None and host.plugin is not None:
        osroot.build_plugin(Path(host.root), Path(host.checkout), place.state_dir / "bin" / "pvc.so")
    compiling = _start_compiling(host)
    cgroups.ensure_cgroup(place.mounts, place.key, "switch")
    switch = _start_switch(place, plan)
    tell(f"directories and switch {time.monotonic() - began:.2f} s")
    waits = [start_node(place, node, switch) for node in plan.nodes]
    _wait_up(waits, lambda text: tell(f"{text} {time.monotonic() - began:.2f} s"))
    wait_idle(place, [node.name for node in plan.nodes if node.name != layout.LOGIN])
    compiling.wait(START_TIMEOUT_S)
    tell(f"nodes idle {time.monotonic() - began:.2f} s")
    record = Record(spec, tuple(node.name for node in plan.nodes))
    files.write_atomic(place.state_dir / "testbed.json", codec.dumps(record))


def _with_root(host: HostFacts, root: Path) -> HostFacts:
    """The facts of a machine whose nodes have another release's root."""
    return replace(
        host,
        root=os.fspath(root),
        python=osroot.PYTHON,
        pvc=f"{layout.ENVIRONMENT}/bin/pvc",
        pvc_node=f"{layout.ENVIRONMENT}/bin/pvc-node",
        plugin=host.plugin and f"{layout.OWN}/bin/pvc.so",
        passwd=(root / "etc" / "passwd").read_text(),
        group=(root / "etc" / "group").read_text(),
    )


def _write(place: Place, plan: TestbedPlan, host: HostFacts) -> None:
    owners = {line.split(":")[0]: int(line.split(":")[2]) for line in layout.passwd(host.passwd).splitlines()}
    place.state_dir.mkdir(mode=0o711, parents=True)
    place.state_dir.chmod(0o711)
    for directory in plan.directories:
        path = place.state_dir / directory.path
        path.mkdir(exist_ok=True)
        path.chmod(directory.mode)
        os.chown(path, owners[directory.user], -1)
    for file in plan.files:
        path = place.state_dir / file.path
        path.write_text(file.content)
        path.chmod(file.mode)
        os.chown(path, owners[file.user], -1)
    database = place.state_dir / "openvswitch.db"
    schema = f"{host.root or ''}/usr/share/openvswitch/vswitch.ovsschema"
    run.run(["ovsdb-tool", "create", database, schema])
    content = database.read_bytes()
    for node in plan.nodes:
        state = Path(node.state_dir)
        (state / "openvswitch" / "conf.db").write_bytes(content)
        (state / "plan.json").write_text(codec.dumps(node))
    _make_bridges(plan)


def _make_bridges(plan: TestbedPlan) -> None:
    """The bridge that each node's Open vSwitch has from its start; all at the same time."""
    running = []
    for node in plan.nodes:
        if node.tunnel_address is not None:
            database = f"{node.state_dir}/openvswitch/conf.db"
            argv = ["ovsdb-tool", "transact", database, layout.tunnel_bridge(node.tunnel_address)]
            running.append(run.spawn(argv, stdout=run.DEVNULL))
    codes = [each.wait(START_TIMEOUT_S) for each in running]
    if any(codes):
        raise HostError("cannot prepare the databases of Open vSwitch")


def _start_compiling(host: HostFacts) -> run.Process[bytes]:
    """Compile pvc's modules as the checkout's owner: the nodes see it read-only, and would do so at every start."""
    package = os.path.join(host.checkout, "pvc")
    owner = os.stat(package)
    argv = [host.python, "-m", "compileall", "-q", package]
    if host.root is not None:
        inside = 'mount --bind "$2" "$1$3" && exec chroot "$1" "$4" -m compileall -q "$3/pvc"'
        argv = ["unshare", "--mount", "sh", "-c", inside, "sh", host.root, host.checkout, layout.CHECKOUT, host.python]
    elif owner.st_uid:
        argv = ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups", "--", *argv]
    return run.spawn(argv, stdout=run.DEVNULL, stderr=run.DEVNULL)


def _start_switch(place: Place, plan: TestbedPlan) -> int:
    """A process whose network namespace has the bridge that joins the nodes.

    A process and not a bind mount of the namespace: a mount would be copied into every namespace made
    meanwhile, other testbeds' too, and keep the network alive there.
    """
    holder = run.spawn(
        ["unshare", "--net", "sleep", "infinity"], stdout=run.DEVNULL, stderr=run.DEVNULL, new_session=True
    )
    cgroups.enter_cgroup(place.mounts, place.key, "switch", holder.pid)
    own, theirs = Path("/proc/self/ns/net"), Path(f"/proc/{holder.pid}/ns/net")
    deadline = time.monotonic() + START_TIMEOUT_S
    while theirs.readlink() == own.readlink():
        if holder.poll() is not None or time.monotonic() > deadline:
            raise HostError("cannot make a network namespace")
        time.sleep(0.001)
    processes.write_daemon(place.state_dir / "switch.pid", holder.pid)
    holder.returncode = 0  # it stays when this command ends
    run.run(
        ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "ip", "-batch", "-"],
        stdin="link set lo up\n"
        + "".join(
            f"link add {bridge} mtu {plan.nodes[0].mtu} type bridge\n"
            f"link set {bridge} addrgenmode none\n"
            f"link set {bridge} up\n"
            for bridge in ("switch", "tunnels")
        ),
    )
    return holder.pid


def _python_env() -> dict[str, str]:
    return {**run.BASE_ENV, "PYTHONPATH": os.fspath(Path(__file__).resolve().parents[2])}


@dataclass
class Starting:
    """A node that is on its way up; ``fd`` is where its init reports."""

    node: NodePlan
    launcher: run.Process[bytes]
    fd: int
    text: str = ""
    up: bool = False


def start_node(place: Place, node: NodePlan, switch: int) -> Starting:
    """Start a node's init.

    :raise HostError: it cannot be started.
    """
    cgroups.ensure_cgroup(place.mounts, place.key, node.name)
    reader, writer = os.pipe()
    state = Path(node.state_dir)
    argv = [sys.executable, "-sP", "-m", "pvc.testbed.init", str(state / "plan.json"), str(writer), str(switch)]
    try:
        with (state / "log" / "init.log").open("ab") as log:
            # It makes the namespaces and ends; PID 1 of the node is its child.
            launcher = run.spawn(
                argv, env=_python_env(), stdout=log, stderr=run.STDOUT, pass_fds=[writer], new_session=True
            )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    return Starting(node, launcher, reader)


def _wait_up(waits: list[Starting], tell: Tell) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while open_waits := [wait for wait in waits if not wait.up]:
            ready = select.select([wait.fd for wait in open_waits], [], [], max(0.0, deadline - time.monotonic()))[0]
            if not ready:
                names = ", ".join(wait.node.name for wait in open_waits)
                raise _start_error(open_waits[0].node, f"{names} did not come up in {START_TIMEOUT_S:g} s")
            for wait in open_waits:
                if wait.fd in ready:
                    _read_report(wait, tell)
                    if wait.up:
                        tell(f"{wait.node.name} up")
    finally:
        for wait in waits:
            os.close(wait.fd)
            if not wait.up:
                wait.launcher.kill()
            wait.launcher.wait()


def _read_report(wait: Starting, tell: Tell) -> None:
    data = os.read(wait.fd, 65536)
    wait.text += data.decode(errors="replace")
    *lines, wait.text = wait.text.split("\n")
    for line in lines:
        LOG.info("%s: %s", wait.node.name, line)
        if line.startswith("failed "):
            raise _start_error(wait.node, f"{wait.node.name}: {line[7:]}")
        if line.startswith("warning "):
            tell(str(_start_error(wait.node, f"{wait.node.name}: {line[8:]}")))
        if line == "up":
            wait.up = True
    if not data and not wait.up:
        raise _start_error(wait.node, f"{wait.node.name}: its init ended")


def _start_error(node: NodePlan, text: str) -> HostError:
    """What failed, and the last lines of the log that most likely says why."""
    log = Path(node.state_dir) / "log"
    candidates = [log / "init.log", *(log / f"{service.name}.log" for service in node.services if service.name in text)]
    shown = []
    for path in candidates:
        last = files.read_text(path, "").splitlines()[-4:]
        if last:
            shown.append("\n  ".join([f"{path}:", *last]))
    return HostError(text + "".join(f"\n{each}" for each in shown))


def wait_idle(place: Place, nodes: list[str], *, timeout_s: float = IDLE_TIMEOUT_S) -> None:
    """Wait until Slurm calls these nodes idle (or has already given them jobs).

    :raise HostError: it does not within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    login = place.find_node(layout.LOGIN)
    states = "no answer"
    while time.monotonic() < deadline and login is not None:
        argv = ["nsenter", f"--target={login}", "--mount", "--net", "--uts", "--ipc", "--pid"]
        states = run.run([*argv, "sinfo", "-h", "-N", "-o", "%N %T"], ok_codes=(0, 1), timeout_s=timeout_s)
        good = {line.split()[0] for line in states.splitlines() if line.split()[-1] in {"idle", "mixed", "allocated"}}
        if good.issuperset(nodes):
            return
        time.sleep(0.03)
    log = place.state_dir / _CTLD_LOG
    last = "\n  ".join(files.read_text(log, "").splitlines()[-6:])
    raise HostError(f"Slurm's nodes are not idle after {timeout_s:g} s: {states.strip()}\n{log}:\n  {last}")


def down(place: Place) -> bool:
    """Remove every trace of the testbed; False when there was none.

    :raise HostError: not root, or something cannot be removed.
    """
    if os.geteuid() != 0:
        raise HostError("a testbed belongs to root", hint="run the same command with sudo")
    if not place.exists() and not place.state_dir.parent.exists():
        return False
    with place.locked():
        if not place.exists():
            return False
        _remove(place)
    return True


def _remove(place: Place) -> None:
    with suppress(FileNotFoundError):
        (place.state_dir / "testbed.json").unlink()  # from here on it is half a testbed
    cgroups.kill_processes(place.mounts, place.key)
    cgroups.remove_cgroups(place.mounts, place.key)
    try:
        files.remove_tree(place.state_dir)
    except OSError as err:
        raise HostError(f"cannot remove {place.state_dir}", hint="is something mounted or open below it?") from err


def crash(place: Place, node: str) -> None:
    """Kill everything in a node at once, as a power failure would.

    :raise HostError: it has no such node, or the node is down.
    """
    _check_node(place, node)
    if place.find_node(node) is None:
        raise HostError(f"node {node!r} is down already", hint=f"pvc testbed boot --name {place.name} {node}")
    with place.locked():
        _cut_power(place, node)


def _cut_power(place: Place, node: str) -> None:
    cgroups.kill_processes(place.mounts, place.key, node)
    cgroups.remove_cgroups(place.mounts, place.key, node)
    switch = place.find_switch()
    if switch is not None:
        # The kernel would remove it in its own time, and its name would be taken for as long.
        run.run(
            ["nsenter", f"--net=/proc/{switch}/ns/net", "ip", "-force", "-batch", "-"],
            stdin=f"link del {node}\nlink del {node}{layout.TUNNEL_SUFFIX}\n",
            ok_codes=(0, 1),
        )


def boot(place: Place, node: str, *, wait: bool = True) -> None:
    """Start a crashed node again: its disk is as it was, /run and /tmp are empty.

    :raise HostError: it has no such node, the node is up, or it does not come up.
    """
    _check_node(place, node)
    if place.find_node(node) is not None:
        raise HostError(f"node {node!r} is up already")
    with place.locked():
        _boot(place, node)
    if wait and node != layout.LOGIN:
        wait_idle(place, [node])


def _boot(place: Place, node: str) -> None:
    switch = place.find_switch()
    if switch is None:
        raise HostError(f"testbed {place.name!r} is not up", hint=f"pvc testbed up --name {place.name}")
    _cut_power(place, node)
    plan = codec.loads(NodePlan, (place.state_dir / "nodes" / node / "plan.json").read_bytes())
    _wait_up([start_node(place, plan, switch)], lambda _text: None)


def _check_node(place: Place, node: str) -> None:
    record = place.read_record()
    if record is None:
        raise HostError(f"testbed {place.name!r} is not up", hint=f"pvc testbed up --name {place.name}")
    if node not in record.nodes:
        raise HostError(f"there is no node {node!r}; there are {', '.join(record.nodes)}")


def require_node(place: Place, node: str) -> int:
    """The pid of a node's init.

    :raise HostError: not root, no such node, or it is down.
    """
    if os.geteuid() != 0:
        raise HostError("a testbed belongs to root", hint="run the same command with sudo")
    _check_node(place, node)
    pid = place.find_node(node)
    if pid is None:
        raise HostError(f"node {node!r} is down", hint=f"pvc testbed boot --name {place.name} {node}")
    return pid


def read_status(place: Place) -> Status | None:
    """What runs now; None when there is no testbed of this name."""
    record = place.read_record()
    if record is None:
        return None
    nodes = tuple(NodeStatus(node, layout.node_address(node), place.find_node(node)) for node in record.nodes)
    return Status(place.name, os.fspath(place.state_dir), record.spec, nodes)


@dataclass(frozen=True)
class NodeStatus:
    """A node as it is now; ``pid`` is that of its init, None when it is down."""

    name: str
    address: str
    pid: int | None


@dataclass(frozen=True)
class Status:
    """A testbed as it is now."""

    name: str
    state_dir: str
    spec: TestbedSpec
    nodes: tuple[NodeStatus, ...]
