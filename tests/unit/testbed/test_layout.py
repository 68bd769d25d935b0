# SPDX-License-Identifier: Apache-2.0
"""The pure part of the testbed: names, addresses, files, mounts and Slurm's configuration."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from pvc import codec
from pvc.testbed import layout, slurmconf
from pvc.testbed.facts import PACKAGES, find_reveals, parse_cgroup_mounts, parse_package_list, read_unified_controllers
from pvc.testbed.model import CgroupMount, File, HostFacts, NodePlan, Reveal, TestbedPlan, TestbedSpec

V1 = (CgroupMount("/sys/fs/cgroup/memory", 1, "memory"),)
V2 = (CgroupMount("/sys/fs/cgroup", 2, ""),)


def facts(**changes: object) -> HostFacts:
    """A machine with everything installed."""
    values: dict[str, object] = {
        "checkout": "/src/pvc",
        "python": "/usr/bin/python3",
        "pvc": "/src/pvc/.venv/bin/pvc",
        "pvc_node": "/src/pvc/.venv/bin/pvc-node",
        "plugin": "/src/pvc/spank/pvc.so",
        "cgroups": V1,
        "controllers": ("cpuset", "freezer", "memory"),
        "has_daemon": True,
        "reveals": (Reveal("/root", ("/root/.pyenv/versions/3.11",)),),
        "passwd": "root:x:0:0:root:/root:/bin/bash\nmunge:x:105:108::/:/bin/false\nme:x:1000:1000::/home/me:/bin/sh\n"
        "student:x:999:999::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        "group": "root:x:0:\nkvm:x:106:me\nadm:x:4:me\nme:x:1000:\n",
        "config_files": (("batch.yaml", "type: slurm\n"),),
    }
    return HostFacts(**(values | changes))  # type: ignore[arg-type]


def plan(spec: TestbedSpec | None = None, **changes: object) -> TestbedPlan:
    """A plan for ``facts(**changes)``."""
    return layout.plan_testbed(
        spec or TestbedSpec("lab"), facts(**changes), "lab", "/state/lab", (bytes(range(64)), "secret")
    )


def file(wanted: TestbedPlan, path: str) -> File:
    """The file of this path."""
    return next(each for each in wanted.files if each.path == path)


def node(wanted: TestbedPlan, name: str) -> NodePlan:
    """The node of this name."""
    return next(each for each in wanted.nodes if each.name == name)


def test_nodes_and_addresses() -> None:
    assert [each.name for each in plan().nodes] == ["login", "n1", "n2", "n3"]
    names = ("login", *layout.node_names(layout.MAX_NODES))
    addresses = [ipaddress.IPv4Address(layout.node_address(name)) for name in names]
    assert len(set(addresses)) == len(addresses)
    assert all(address in layout.NETWORK for address in addresses)


def test_names_fit_into_link_names() -> None:
    assert all(len(name) <= 15 for name in layout.node_names(layout.MAX_NODES))


def test_underlay_carries_1500_bytes_in_vxlan() -> None:
    assert layout.MTU >= 1500 + 50


def test_users_replace_those_of_the_machine() -> None:
    lines = file(plan(), "etc/passwd").content.splitlines()
    assert [line.split(":")[0] for line in lines] == ["root", "munge", "nobody", "student", "teacher", "mallory"]
    assert "student:*:30001:30001:student:/home/student:/bin/bash" in lines
    groups = file(plan(), "etc/group").content.splitlines()
    users = ["student:*:30001:", "teacher:*:30002:", "mallory:*:30003:"]
    assert groups == ["root:x:0:", "kvm:x:106:student,teacher,mallory", "adm:x:4:", *users]


def test_secrets_are_private() -> None:
    wanted = plan()
    assert file(wanted, "etc/pvc/etcd-password") == File("etc/pvc/etcd-password", "secret\n", 0o600)
    key = file(wanted, "etc/munge/munge.key")
    assert (key.mode, key.user) == (0o400, "munge")
    assert len(key.content) >= 32


def test_every_file_has_its_directory() -> None:
    wanted = plan()
    made = {each.path for each in wanted.directories}
    assert {str(Path(each.path).parent) for each in wanted.files} <= made
    for directory in wanted.directories:
        parent = str(Path(directory.path).parent)
        assert parent == "." or parent in made


def test_everything_that_is_bound_exists() -> None:
    wanted = plan()
    made = {f"/state/lab/{each.path}" for each in [*wanted.directories, *wanted.files]}
    for each in wanted.nodes:
        own = {bind.source for bind in each.view.binds if bind.source.startswith("/state/")}
        assert own <= made


def test_nodes_do_not_share_what_is_a_nodes_own() -> None:
    wanted = plan()
    for target in ("/var/lib/pvc", "/var/tmp", "/var/log", "/var/lib/slurm"):
        sources = [bind.source for each in wanted.nodes for bind in each.view.binds if bind.target == target]
        assert len(set(sources)) == 4, target
    for target in ("/home/student", "/etc/slurm", "/var/lib/pvc-images"):
        sources = [bind.source for each in wanted.nodes for bind in each.view.binds if bind.target == target]
        assert len(sources) == 4
        assert len(set(sources)) == 1, target


def test_every_node_shows_taps_to_its_users_as_usual_distributions_do() -> None:
    for node in plan().nodes:
        assert [(each.target, each.mode) for each in node.view.devices] == [("/dev/net/tun", 0o666)]


def test_mount_points_below_a_farm_are_its_own() -> None:
    for each in plan().nodes:
        for farm in each.view.farms:
            below = [
                b.target.removeprefix(f"{farm.target}/")
                for b in each.view.binds
                if b.target.startswith(f"{farm.target}/")
            ]
            assert {name.split("/")[0] for name in below} <= set(farm.own)


def test_the_plan_travels_as_json() -> None:
    for each in plan().nodes:
        assert codec.loads(NodePlan, codec.dumps(each)) == each


def test_plan_is_deterministic() -> None:
    assert plan() == plan()


def test_services_of_nodes() -> None:
    wanted = plan()
    assert [each.name for each in node(wanted, "login").services] == ["munged", "slurmctld", "etcd"]
    compute = node(wanted, "n1").services
    assert [each.name for each in compute] == ["munged", "slurmd", "ovsdb-server", "ovs-vswitchd", "pvc-node"]
    assert [each.name for each in compute if each.restart] == ["ovsdb-server", "ovs-vswitchd", "pvc-node"]


@pytest.mark.parametrize(
    "wanted", [plan(TestbedSpec("lab", daemon=False)), plan(has_daemon=False)], ids=["unwanted", "absent"]
)
def test_no_daemon(wanted: TestbedPlan) -> None:
    assert "pvc-node" not in [each.name for each in node(wanted, "n1").services]


def test_plugstack() -> None:
    line = "required /src/pvc/spank/pvc.so pvc=/src/pvc/.venv/bin/pvc pvc-node=/src/pvc/.venv/bin/pvc-node\n"
    assert file(plan(), "etc/slurm/plugstack.conf").content == line
    for wanted in (plan(plugin=None), plan(TestbedSpec("lab", plugin=False))):
        assert "required" not in file(wanted, "etc/slurm/plugstack.conf").content


def test_commands_of_a_checkout_that_is_not_installed() -> None:
    wanted = plan(pvc=None, pvc_node=None)
    script = file(wanted, "bin/pvc")
    assert script.mode == 0o755
    assert "/src/pvc" in script.content
    assert "pvc-node=/usr/local/bin/pvc-node" in plan(pvc_node=None).files[-1].content or file(wanted, "bin/pvc-node")


def test_slurm_conf() -> None:
    text = file(plan(), "etc/slurm/slurm.conf").content
    assert "SlurmctldHost=login(10.99.0.1)" in text
    assert text.count("NodeName=n") == 3
    assert "NodeAddr=10.99.0.13 CPUs=16 Boards=1 SocketsPerBoard=2 CoresPerSocket=8" in text
    assert slurmconf.CPUS * slurmconf.MEMORY_PER_CPU_MIB <= slurmconf.REAL_MEMORY_MIB
    assert "ProctrackType=proctrack/cgroup" in text


def test_cgroup_conf_pins_the_version() -> None:
    assert "CgroupPlugin=cgroup/v1" in slurmconf.cgroup_conf(V1, ("freezer",))
    assert slurmconf.cgroup_conf(V2, ("cpuset", "memory")).splitlines() == [
        "CgroupPlugin=cgroup/v2",
        "IgnoreSystemd=yes",
        "ConstrainCores=no",
        "ConstrainRAMSpace=yes",
        "ConstrainDevices=yes",
    ]


@pytest.mark.parametrize(("cgroups", "controllers"), [(V1, ("memory",)), (V2, ("memory", "pids")), (V2, ())])
def test_cgroups_that_slurm_cannot_use(cgroups: tuple[CgroupMount, ...], controllers: tuple[str, ...]) -> None:
    wanted = plan(cgroups=cgroups, controllers=controllers)
    text = file(wanted, "etc/slurm/slurm.conf").content
    assert "ProctrackType=proctrack/linuxproc" in text
    assert "task/cgroup" not in text
    conf = file(wanted, "etc/slurm/cgroup.conf").content
    assert "CgroupPlugin=cgroup/v1" in conf
    assert "=yes" not in conf


def test_controllers_of_the_unified_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    (tmp_path / "cgroup.procs").write_text("1\n")
    assert read_unified_controllers(tmp_path) == {"cpuset", "cpu", "memory"}
    (tmp_path / "cgroup.type").write_text("domain\n")
    assert read_unified_controllers(tmp_path) == {"cpu"}
    (tmp_path / "cgroup.procs").write_text("")
    assert read_unified_controllers(tmp_path) == {"cpuset", "cpu", "memory"}


MOUNTS_V1 = """\
25 22 0:22 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
29 25 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
30 25 0:24 / /other/memory rw,relatime - cgroup cgroup rw,memory
"""


def test_cgroup_mounts_of_version_1() -> None:
    assert parse_cgroup_mounts(MOUNTS_V1) == (
        CgroupMount("/sys/fs/cgroup/cpu,cpuacct", 1, "cpu,cpuacct"),
        CgroupMount("/sys/fs/cgroup/memory", 1, "memory"),
    )


def test_cgroup_mounts_of_version_2() -> None:
    line = "30 25 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
    assert parse_cgroup_mounts(line) == V2


def test_cgroup_mounts_absent() -> None:
    assert parse_cgroup_mounts("22 1 8:1 / / rw - ext4 /dev/vda rw\n") == ()


def test_reveals(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "venv" / "lib").mkdir(parents=True)
    (tmp_path / "open").mkdir()
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 1 and parent != Path("/"):
            return  # the directory of the tests is closed itself
    tmp_path.chmod(0o755)
    closed.chmod(0o700)
    needed = [str(closed / "venv"), str(closed / "venv" / "lib"), str(tmp_path / "open")]
    assert find_reveals(needed, covered=()) == (Reveal(str(closed), (str(closed / "venv"),)),)


def test_reveals_of_what_is_closed_itself(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "pvc").mkdir(parents=True)
    (closed / "file").touch()
    closed.chmod(0o700)
    found = find_reveals([str(closed)], covered=())
    assert [path for reveal in found for path in reveal.needed] == [str(closed / "file"), str(closed / "pvc")]


def test_reveals_below_a_covered_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    covered = str(tmp_path.parent)
    assert Reveal(covered, (str(tmp_path),)) in find_reveals([str(tmp_path)], covered=(covered,)) or not (
        tmp_path.parents[1].stat().st_mode & 1
    )


def test_package_list() -> None:
    assert parse_package_list("# for all\n\niproute2   links\nmunge\n") == ("iproute2", "munge")
    listed = parse_package_list((Path(__file__).parents[3] / "conf" / "debian-packages.txt").read_text())
    assert set(PACKAGES) <= set(listed)
