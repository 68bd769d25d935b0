# SPDX-License-Identifier: Apache-2.0
"""A node of its own for the root side's tests: run by test_node.py inside fresh network and mount namespaces.

    python -m tests.host.node_world SCENARIO DATA_PATH

A real etcd, real devices, nftables, dnsmasq and Open vSwitch; nothing of the machine is touched.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pvc.errors import HostError
from pvc.host import dnsmasq, ended, ethernet, netns, ovs
from pvc.model.host import JobFacts
from pvc.model.site import EtcdSettings
from pvc.node import apply, setup, teardown
from pvc.node.context import Context
from pvc.node.reclaim import reclaim
from pvc.node.switchwatch import SwitchWatch
from pvc.node.watch import Watch, find_servers
from pvc.state.etcd import EtcdStore
from pvc.state.ledger import Ledger
from tests.cover import cover
from tests.host.etcdhealth import wait_for_etcd
from tests.host.site import make_underlay, show_devices, start_switch, start_vswitchd
from tests.unit.state import contract
from tests.waits import wait_until

ROOT = Path("/run/world")
CONF, STATE, RUNTIME, RUNS = ROOT / "conf", ROOT / "state", ROOT / "pvc", ROOT / "runs"
# Directories that stay.
EMPTY = {f"{RUNTIME}/vswitchd", f"{STATE}/jobs", f"{RUNTIME}/jobs", f"{RUNTIME}/net", f"{RUNS}/{ended.NAME}"}
NODES, CPUS = ("n1", "n2", "n3"), (4, 4, 4)
REQUEST = "1;cpus=2;nat:6"
DATA_PATH = "PVC_TEST_DATA_PATH"  # of this world and of its processes
JOB_ID = "PVC_TEST_JOB"  # of a process that sets up or tears down
ETCD = EtcdSettings(("10.99.0.1",), 2379, "http", "none", "root", "/nowhere", None)


def context() -> Context:
    return Context(CONF, STATE, RUNTIME)


def job(job_id: int = 12, node: str = "n1") -> JobFacts:
    return JobFacts(job_id, 65534, 65534, node, NODES, CPUS)


def prepare(number: int = 1) -> subprocess.Popen[bytes] | None:
    """Directories, devices and configuration of node ``number`` in this namespace; the first has an etcd."""
    cover("/run", "/var/tmp")
    CONF.mkdir(parents=True)
    show_devices(ROOT)
    hosts = "".join(f"10.99.0.{each} n{each}\n10.98.0.{each} n{each}-ovs\n" for each in (1, 2, 3))
    (ROOT / "hosts").write_text("127.0.0.1 localhost\n" + hosts)
    subprocess.run(["mount", "--bind", ROOT / "hosts", "/etc/hosts"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    make_underlay("eth0")
    subprocess.run(["ip", "addr", "add", f"10.99.0.{number}/24", "dev", "eth0"], check=True)
    settings = {"etcd-servers": ["10.99.0.1"], "etcd-client-port": 2379, "etcd-protocol": "http"}
    batch = {"type": "slurm", "settings": {**settings, "etcd-auth-type": "none", "run-dir": str(RUNS)}}
    (CONF / "batch.yaml").write_text(json.dumps(batch))
    (CONF / "networks.yaml").write_text(json.dumps(networks()))
    sets = {name: {"networks": [name], "default": name == "nat"} for name in networks()}
    (CONF / "resources.yaml").write_text(json.dumps(sets))
    if data_path() == "ovs":
        start_switch("eth1", f"10.98.0.{number}/24")
    return start_etcd() if number == 1 else None


def networks() -> dict[str, Any]:
    """networks.yaml: of both layers, on the data path of this world."""
    common = {
        "dev-prefix": "nat",
        "mtu": 1550,
        "data-path": data_path(),
        "host-if-suffix": "-ovs" if data_path() == "ovs" else "",
    }
    nat = {
        **common,
        "int-network": "10.200.0.0/16",
        "ext-network": "10.201.0.0/16",
        "reverse-nat": {"vm-port": 22, "min-host-port": 60000, "max-host-port": 60999},
    }
    lan = {**common, "network-layer": "L2"}
    return {name: {"type": "ethernet", "settings": each} for name, each in (("nat", nat), ("lan", lan))}


def data_path() -> str:
    return os.environ.get(DATA_PATH, "kernel")


def start_etcd() -> subprocess.Popen[bytes]:
    url = "http://10.99.0.1:2379"
    argv = ["etcd", "--data-dir", str(ROOT / "etcd"), "--listen-client-urls", url, "--advertise-client-urls", url]
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_etcd("10.99.0.1")
    return server


def snapshot() -> dict[str, Any]:
    """All that a set-up may leave on a node."""

    def ask(*argv: str) -> str:
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    links = sorted(link["ifname"] for link in json.loads(ask("ip", "-j", "link")))
    places = (STATE, RUNTIME, RUNS, netns.DIRECTORY, netns.LINKS)
    files = sorted(str(path) for place in places for path in place.rglob("*"))
    store = EtcdStore(ETCD)
    keys = store.read_prefix("")
    store.close()
    return {
        "links": links,
        "files": [name for name in files if "/locks" not in name and name not in EMPTY],
        "nft": ask("nft", "list", "ruleset"),
        "mounts": sorted(line for line in ask("cat", "/proc/self/mounts").splitlines() if "/netns/" in line),
        "forwarding": Path("/proc/sys/net/ipv4/conf/eth0/forwarding").read_text(),
        "reserved": Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text(),
        "dnsmasq": dnsmasqs(),
        "keys": keys,
        "bridges": ask("ovs-vsctl", "list-br") if data_path() == "ovs" else "",
        "ports": ask("ovs-vsctl", "--columns=name", "list", "Interface") if data_path() == "ovs" else "",
    }


def assert_clean(before: dict[str, Any], number: int | None = None) -> None:
    """Nothing is there that was not; the kernel and ovs-vswitchd may still be about what they were told."""
    assert ended.sweep(RUNS).clean
    now = before

    def is_clean() -> bool:
        nonlocal now
        now = snapshot()
        return now == before

    def differences() -> tuple[int | None, dict[str, Any]]:
        return number, {part: (before[part], now[part]) for part in now if now[part] != before[part]}

    wait_until(is_clean, lack=differences)


def dnsmasqs() -> list[int]:
    """Servers of this world that live (a zombie waits for its reaper only)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(RUNTIME) in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
            except OSError:
                continue
    return [pid for pid in found if pid not in (os.getpid(), os.getppid())]


def child(verb: str, kill_at: int | None = None) -> int:
    """The exit code of a process of its own that sets up or tears down, killed at its nth effect if asked."""
    argv = [sys.executable, "-m", "tests.host.node_world", f"_{verb}", *([str(kill_at)] if kill_at is not None else [])]
    return subprocess.run(argv, check=False, timeout=60).returncode


def die_at(number: int) -> None:
    """Kill this process at its nth effect: at even numbers before it, at odd ones after it."""
    count = 0
    create = apply.create
    table = dict(apply._TABLE)

    def killing(function: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any) -> None:
            nonlocal count
            if count == number and number % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            function(*arguments)
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        return wrapped

    apply.create = killing(create)
    for kind, (make, remove) in table.items():
        apply._TABLE[kind] = (make, killing(remove))


# --- scenarios -----------------------------------------------------------------------------------------------------


def round_trip() -> None:
    """Set-up and tear-down leave the node as it was, twice; between them everything is there."""
    before = snapshot()
    for _ in range(2):
        print(setup.set_up(context(), job(), REQUEST))
        ready = Ledger(STATE, 12).read_ready()
        assert ready is not None
        assert [vm.rank for vm in ready.grant.vms] == [0, 1]
        during = snapshot()
        assert during["links"] != before["links"]
        assert len(during["dnsmasq"]) == 1
        assert during["forwarding"].strip() == "1"
        taps = ethernet.open_taps(ready.taps)
        with pytest.raises(HostError, match="held by another process"):
            ethernet.open_taps(ready.taps)
        for fd in taps:
            os.close(fd)
        print(teardown.tear_down(context(), 12))
        assert_clean(before)


def many_jobs() -> None:
    """Jobs share a node: no number is handed out twice, and the setting they share goes with the last."""
    before = snapshot()
    ports: set[int] = set()
    for job_id in (21, 22, 23):
        setup.set_up(context(), job(job_id), REQUEST)
        record = Ledger(STATE, job_id).read_record()
        assert record is not None
        assert not ports & set(record.ports)
        ports |= set(record.ports)
    teardown.tear_down(context(), 22)
    setup.set_up(context(), job(24), REQUEST)
    for job_id in (21, 23):
        teardown.tear_down(context(), job_id)
    assert snapshot()["forwarding"].strip() == "1"
    teardown.tear_down(context(), 24)
    assert_clean(before)


def at_once() -> None:
    """Jobs that begin and end at the same moment do not get into each other's way."""
    before = snapshot()
    for _ in range(3):
        for verb in ("setup", "teardown"):
            argv = [sys.executable, "-m", "tests.host.node_world", f"_{verb}"]
            running = [subprocess.Popen(argv, env={**os.environ, JOB_ID: str(each)}) for each in (31, 32, 33)]
            assert [each.wait(60) for each in running] == [0, 0, 0]
            if verb == "setup":
                assert all(Ledger(STATE, each).read_ready() is not None for each in (31, 32, 33))
        assert_clean(before)


def count_actions() -> int:
    return len(setup.plan_dry(context(), job(), REQUEST).actions)


def killed_setup() -> None:
    """A kill -9 at every effect of a set-up: the next attempt succeeds, and its tear-down leaves nothing."""
    before = snapshot()
    for number in range(count_actions()):
        assert child("setup", number) == -signal.SIGKILL, number
        if number % 3 == 0:
            assert child("teardown") == 0
            assert_clean(before, number)
        else:
            assert child("setup") == 0
            assert Ledger(STATE, 12).read_ready() is not None
            assert child("teardown") == 0
            assert_clean(before, number)


def killed_teardown() -> None:
    """A kill -9 at every effect of a tear-down: the next attempt ends it."""
    before = snapshot()
    for number in range(count_actions() + 1):
        assert child("setup") == 0
        assert child("teardown", number) == -signal.SIGKILL, number
        assert child("teardown") == 0
        assert_clean(before, number)


def lost_store() -> None:
    """No etcd: the request is refused with exit code 5; a tear-down keeps its debt and pays it later."""
    before = snapshot()
    server = prepare.server  # type: ignore[attr-defined]
    setup.set_up(context(), job(), REQUEST)
    server.kill()
    server.wait()
    print(setup.set_up(context(), job(13), REQUEST))
    record = Ledger(STATE, 13).read_record()
    assert record is not None
    assert record.refusal is not None
    assert record.refusal.exit_code == 5
    assert "etcd at 10.99.0.1:2379" in record.refusal.message
    for job_id in (12, 13):
        assert teardown.tear_down(context(), job_id) == "undone, but for the state store"
    prepare.server = start_etcd()  # type: ignore[attr-defined]
    for job_id in (12, 13):
        assert teardown.tear_down(context(), job_id) == "undone"
    assert_clean(before)


def earlier_boot() -> None:
    """What an earlier boot left is undone at the next start, whatever Slurm says."""
    before = snapshot()
    setup.set_up(context(), job(), REQUEST)
    ledger = Ledger(STATE, 12)
    text = (ledger.path / "record.json").read_text()
    (ledger.path / "record.json").write_text(text.replace('"boot":"', '"boot":"another-'))
    assert reclaim(context(), "n1").clean
    assert_clean(before)


def refusals() -> None:
    """A user's mistake and a wrong configuration are told to the launcher; the node is well and clean."""
    before = snapshot()
    for text, code, part in (
        ("1;cpus=2;nope:2", 2, "no resource set 'nope'"),
        ("1;cpus=2;nat:7", 2, "7 VMs of 2 cores do not fit"),
        ("1;nat:1000000", 2, "cannot be read"),
        ("invalid", 2, "cannot be read"),
        ("", 2, "cannot be read"),
    ):
        setup.set_up(context(), job(), text)
        record = Ledger(STATE, 12).read_record()
        assert record is not None
        assert record.refusal is not None
        assert (record.refusal.exit_code, part in record.refusal.message) == (code, True), record.refusal
        teardown.tear_down(context(), 12)
        assert_clean(before)
    good = (CONF / "networks.yaml").read_text()
    (CONF / "networks.yaml").write_text(good.replace('"mtu": 1550', '"mtu": 1550, "colour": "blue"'))
    setup.set_up(context(), job(), REQUEST)
    record = Ledger(STATE, 12).read_record()
    assert record is not None
    assert record.refusal is not None
    assert record.refusal.exit_code == 3
    assert "colour" in record.refusal.message
    teardown.tear_down(context(), 12)
    (CONF / "networks.yaml").write_text(good)
    assert_clean(before)


def faults() -> None:
    """What this node cannot do is its fault, is said so, and leaves nothing."""
    before = snapshot()
    (ROOT / "empty").touch(mode=0o000)
    (ROOT / "nothing").mkdir()
    for path, hidden, by in (
        ("/usr/sbin/dnsmasq", "/usr/sbin/dnsmasq", ROOT / "empty"),
        ("/dev/net/tun", "/dev/net", ROOT / "nothing"),
    ):
        subprocess.run(["mount", "--bind", by, hidden], check=True)
        with pytest.raises(HostError, match=path.rpartition("/")[2]):
            setup.set_up(context(), job(), REQUEST)
        subprocess.run(["umount", hidden], check=True)
        assert_clean(before)


def stores() -> None:
    """The contract that the memory store fulfils, over a real etcd."""
    store = EtcdStore(ETCD)
    contract.check_transactions(store)
    contract.check_nodes_agree(store)
    contract.check_nodes_that_differ(store)
    contract.check_jobs_never_share_a_vni(store)
    contract.check_sites_that_share_it(store)
    contract.check_what_was_forgotten(store)
    store.close()


def killed_dnsmasq() -> None:
    """A server that is killed is there again, with its names; one that a tear-down ended stays away."""
    before = snapshot()
    setup.set_up(context(), job(), REQUEST)
    watch = Watch(lambda: find_servers(context()))
    watch.start()
    directory = RUNTIME / "net" / "12"
    for _ in range(2):
        pid = dnsmasq.find_process(directory)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: dnsmasq.find_process(directory) not in (None, pid), bear=(OSError,))  # type: ignore[misc]
    # One that ended while nobody watched is found by the next who does.
    setup.set_up(context(), job(13), REQUEST)
    pid = dnsmasq.find_process(RUNTIME / "net" / "13")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    watch.refresh()
    wait_until(lambda: dnsmasq.is_running(RUNTIME / "net" / "13"), bear=(OSError,))
    teardown.tear_down(context(), 12)
    teardown.tear_down(context(), 13)
    watch.refresh()
    time.sleep(0.3)
    assert_clean(before)


def restarted_switch() -> None:
    """An ovs-vswitchd that dies takes all flows along; the next one gets them back, those of all jobs."""
    before = snapshot()
    watch = Watch(SwitchWatch(context()).find)
    watch.start()
    for job_id in (12, 13):
        setup.set_up(context(), job(job_id), REQUEST)
    watch.refresh()
    flows = dump_flows()
    assert len(flows) > 50
    assert "nx-match" in read_fragments()
    for _ in range(2):
        process = ovs.find_process()
        assert process is not None
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: ovs.find_process() is None, bear=(OSError,))
        start_vswitchd()
        wait_until(lambda: dump_flows() == flows, bear=(OSError,))
        wait_until(lambda: "nx-match" in read_fragments(), bear=(OSError,))
    # Who begins to watch the same process has nothing to say; another one is found by the next who watches.
    assert [each.pid for each in SwitchWatch(context()).find()] == [ovs.find_process()]
    (RUNTIME / "vswitchd").write_text("1 1")
    subprocess.run(["ovs-ofctl", "del-flows", "pvc-ovs"], check=True)
    late = Watch(SwitchWatch(context()).find)
    late.start()
    wait_until(lambda: dump_flows() == flows, bear=(OSError,))
    for job_id in (12, 13):
        teardown.tear_down(context(), job_id)
    for each in (watch, late):
        each.refresh()
    assert_clean(before)


def missing_switch() -> None:
    """Without Open vSwitch, or with half of it, the node is at fault, says so at once and is clean."""
    before = snapshot()
    process = ovs.find_process()
    assert process is not None
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: not ovs.listens(ovs.RUN_DIR / f"ovs-vswitchd.{process}.ctl"), bear=(OSError,))
    with pytest.raises(HostError, match="ovs-vswitchd does not answer"):
        setup.set_up(context(), job(), REQUEST)
    start_vswitchd()
    assert_clean(before)
    database = int((ovs.RUN_DIR / "ovsdb-server.pid").read_text())
    os.kill(database, signal.SIGKILL)
    wait_until(lambda: not ovs.listens(ovs.RUN_DIR / "db.sock"), bear=(OSError,))
    with pytest.raises(HostError, match="ovsdb-server does not answer"):
        setup.set_up(context(), job(), REQUEST)


def read_fragments() -> str:
    """How flows see them."""
    argv = ["ovs-ofctl", "-OOpenFlow15", "get-frags", "pvc-ovs"]
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout


def dump_flows() -> list[str]:
    argv = ["ovs-ofctl", "-OOpenFlow15", "--names", "--no-stats", "dump-flows", "pvc-ovs"]
    return sorted(subprocess.run(argv, check=False, capture_output=True, text=True).stdout.splitlines())


DATA_PATHS = ("kernel", "ovs")
OF_OVS = (restarted_switch, missing_switch)
SCENARIOS = (
    killed_dnsmasq,
    round_trip,
    many_jobs,
    at_once,
    killed_setup,
    killed_teardown,
    lost_store,
    earlier_boot,
    refusals,
    faults,
    stores,
    *OF_OVS,
)


def main() -> None:
    name, *arguments = sys.argv[1:]
    if arguments and arguments[0] in DATA_PATHS:
        os.environ[DATA_PATH] = arguments[0]
    if name.startswith("_"):
        if arguments:
            die_at(int(arguments[0]))
        if name == "_setup":
            setup.set_up(context(), job(int(os.environ.get(JOB_ID, "12"))), REQUEST)
        else:
            teardown.tear_down(context(), int(os.environ.get(JOB_ID, "12")))
        return
    run(next(each for each in SCENARIOS if each.__name__ == name))


def run(scenario: Callable[[], None]) -> None:
    """Run a scenario in a node that is prepared."""
    prepare.server = prepare()  # type: ignore[attr-defined]
    try:
        scenario()
    finally:
        prepare.server.kill()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
