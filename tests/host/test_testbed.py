# SPDX-License-Identifier: Apache-2.0
"""``pvc testbed`` on this machine: what it makes, what it leaves (nothing), and what it survives."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pvc
from pvc.cli import main as cli
from pvc.errors import HostError, UsageError
from pvc.images.repository import Repositories
from pvc.model.site import Repository
from pvc.testbed import facts, lifecycle, osroot
from pvc.testbed.model import TestbedSpec
from pvc.testbed.place import find_place
from tests.slurm.testbed import PVC, Testbed, own_name, remove_stale, start_testbed
from tests.waits import wait_until

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def shared() -> Iterator[Testbed]:
    """A small testbed for the tests that leave it as it is."""
    remove_stale()
    name = own_name("-host")
    try:
        yield start_testbed(name, nodes=2, by_command=True)
    finally:
        lifecycle.down(find_place(name))


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a testbed of the test's own, which is gone afterwards."""
    own = own_name("-own")
    yield own
    lifecycle.down(find_place(own))


def host_state(name: str) -> dict[str, list[str]]:
    """What of a testbed the host can see; other testbeds' things are left out."""
    place = find_place(name)
    everything = {
        "mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
        "links": subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.splitlines(),
        "cgroups": [
            os.path.join(base, each)
            for mount in place.mounts
            for base, names, _ in os.walk(mount.path)
            for each in names
            if place.key in os.path.join(base, each)
        ],
        "processes": [pid for pid in os.listdir("/proc") if pid.isdigit() and in_testbed(pid, place.key)],
        "directories": [
            str(each) for each in [place.state_dir, place.state_dir.parent / f".{name}.lock"] if each.exists()
        ],
    }
    everything["mounts"] = [line for line in everything["mounts"] if name in line]
    everything["links"] = [line.split(": ")[1] for line in everything["links"]]
    return everything


def in_testbed(pid: str, key: str) -> bool:
    """Whether a process is in a testbed's cgroups."""
    try:
        return f"/pvc-testbed/{key}" in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def test_up_and_down_leave_nothing(name: str) -> None:
    accounts = [Path(path).read_bytes() for path in ("/etc/passwd", "/etc/group", "/etc/hosts")]
    before = host_state(name)
    running = start_testbed(name, nodes=2)
    assert running.node_states() == {"n1": "idle", "n2": "idle"}
    assert running.run(["srun", "-N2", "sh", "-c", "echo $SLURMD_NODENAME $(id -un)"]).out.split() != []
    assert host_state(name)["processes"]
    assert lifecycle.down(find_place(name))
    assert host_state(name) == before
    assert [Path(path).read_bytes() for path in ("/etc/passwd", "/etc/group", "/etc/hosts")] == accounts
    assert not lifecycle.down(find_place(name))


def test_up_again_does_nothing(shared: Testbed) -> None:
    pids = [shared.place.find_node(node) for node in ("login", "n1", "n2")]
    assert not lifecycle.up(shared.place, TestbedSpec(shared.name, 2), lambda _text: None)
    assert [shared.place.find_node(node) for node in ("login", "n1", "n2")] == pids


def test_up_with_other_settings_is_refused(shared: Testbed) -> None:
    with pytest.raises(UsageError, match=r"other settings \(2 nodes\)") as caught:
        lifecycle.up(shared.place, TestbedSpec(shared.name, 3), lambda _text: None)
    assert caught.value.hint == f"pvc testbed down --name {shared.name}"


def test_two_side_by_side(shared: Testbed, name: str) -> None:
    other = start_testbed(name, nodes=1)
    jobs = [running.run(["srun", "-N1", "hostname"]).out for running in (shared, other)]
    assert jobs == ["n1\n", "n1\n"]
    Path(other.home() / "here").touch()
    assert not (shared.home() / "here").exists()
    lifecycle.down(other.place)
    assert shared.run(["srun", "-N2", "hostname"]).out.split() != []


@pytest.mark.skipif(not osroot.find_root("trixie").path.is_dir(), reason="no root: pvc testbed up --os trixie, once")
def test_nodes_of_another_release(name: str) -> None:
    """A cluster, on programs that are not this machine's. Only with a root that is there: making one takes a mirror."""
    running = start_testbed(name, nodes=1, release="trixie")
    assert running.slurm() == (24, 11)
    running.run(["mkdir", ".pvc"])
    (running.home() / ".pvc" / "templates.yaml").write_text("bare: {resource-set: nat, memory: 64M}\n")
    script = "import sys, pvc; print(*sys.version_info[:2], pvc.__version__)"
    done = running.run(["pvc", "alloc", "-Q", "bare", running.python, "-c", script])
    assert done.out == f"3 13 {pvc.__version__}\n"
    running.wait_idle()
    with pytest.raises(UsageError, match=r"other settings \(1 nodes of Debian trixie\)"):
        start_testbed(name, nodes=1, release="")


def test_images_are_built_once_and_then_without_a_network(shared: Testbed) -> None:
    site = Repositories([Repository("site", str(shared.place.state_dir / "images"))])
    build = [*PVC, "testbed", "build", "--name", shared.name, "debian"]
    offline = ["unshare", "--net", "--", *build]
    said = []
    for argv in (build, offline, None, offline):
        if argv is None:
            site.delete("debian", every=True)
        else:
            said.append(subprocess.run(argv, check=True, stderr=subprocess.PIPE, text=True).stderr.splitlines()[-1])
    assert [line.partition(" after ")[0] for line in said] == [
        "image 'debian' is there",
        "image 'debian' is there already",
        "image 'debian' is there",
    ]
    assert shared.run(["pvc", "image", "list"]).out.split()
    refused = subprocess.run([*build[:-1], "no-such"], stderr=subprocess.PIPE, text=True)
    assert (refused.returncode, "no recipe 'no-such'" in refused.stderr) == (2, True)


def test_same_name_in_two_directories(shared: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVC_TESTBED_DIR", str(tmp_path))
    place = find_place(shared.name)
    assert place.key != shared.place.key
    try:
        assert start_testbed(shared.name, nodes=1).run(["srun", "hostname"]).out == "n1\n"
    finally:
        assert lifecycle.down(place)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("PVC_TESTBED_DIR")
    assert shared.node_states() == {"n1": "idle", "n2": "idle"}


@pytest.mark.parametrize("file", [".", "switch.pid", "nodes/n1/init.pid", "nodes/login/log/slurm/slurmctld.log"])
def test_up_after_a_killed_up(name: str, file: str) -> None:
    """Once a file of the testbed is there."""
    with subprocess.Popen(
        [*PVC, "testbed", "up", "--name", name, "--nodes", "2"], stderr=subprocess.DEVNULL, start_new_session=True
    ) as killed:
        wait_until((find_place(name).state_dir / file).exists)
        os.killpg(killed.pid, signal.SIGKILL)
    again = start_testbed(name, nodes=2)
    assert again.run(["srun", "-N2", "true"]).code == 0
    lifecycle.down(again.place)
    assert not host_state(name)["processes"]
    assert not host_state(name)["cgroups"]


def test_down_of_half_a_testbed(name: str) -> None:
    running = start_testbed(name, nodes=1)
    for path in ("testbed.json", "switch.pid", "nodes/n1/init.pid", "nodes/login/init.pid"):
        (running.place.state_dir / path).unlink()
    assert lifecycle.down(running.place)
    assert not any(host_state(name)[part] for part in ("processes", "cgroups", "directories", "mounts"))


def test_crash_and_boot(shared: Testbed) -> None:
    shared.root("touch /var/lib/pvc/kept /run/pvc/lost /tmp/lost /dev/shm/lost", "n2")
    shared.crash("n2")
    assert shared.place.find_node("n2") is None
    with pytest.raises(HostError, match="down already"):
        shared.crash("n2")
    assert shared.run(["ping", "-c1", "-W1", "n2"], check=False, user="root").code != 0
    code = subprocess.run(shared.argv(["true"], node="n2"), capture_output=True, text=True, check=False)
    assert code.returncode == 6
    assert "node 'n2' is down" in code.stderr
    shared.boot("n2")
    found = shared.root(
        "ls /var/lib/pvc/kept /run/pvc/lost /tmp/lost /dev/shm/lost; rm /var/lib/pvc/kept", "n2", check=False
    )
    assert found.split() == ["/var/lib/pvc/kept"]
    assert shared.run(["srun", "-w", "n2", "hostname"]).out == "n2\n"


def test_up_boots_what_is_down(shared: Testbed) -> None:
    shared.crash("n1")
    said: list[str] = []
    assert lifecycle.up(shared.place, TestbedSpec(shared.name, 2), said.append)
    assert said[0].startswith("n1 is down")
    assert shared.node_states()["n1"] == "idle"


def test_a_user_inside(shared: Testbed) -> None:
    done = shared.run("id -un; pwd; hostname; echo $PATH; env | sort; cat /etc/hostname", node="n2")
    assert done.out.splitlines()[:3] == ["student", "/home/student", "n2"]
    assert "PVC_" not in done.out
    Path(shared.home() / "note").write_text("x")
    assert shared.run("cat ~/note", node="n1").out == "x"
    assert shared.run("cat ~student/note", user="teacher", check=False).code != 0
    assert shared.run(["pvc", "--version"]).out.startswith("pvc ")
    assert shared.run("getent hosts n1 n2 login").out.count("10.99.") == 3


def test_the_host_is_read_only_inside(shared: Testbed) -> None:
    for path in ("/x", "/usr/x", "/etc/slurm/../ssh/x", "/var/x"):
        assert shared.run(["touch", path], user="root", check=False).code != 0, path
    for path in ("/etc/own", "/run/own", "/tmp/own", "/var/lib/own"):
        assert shared.run(f"touch {path} && rm {path}", user="root").code == 0
        assert not Path(path).exists()


def test_users_have_no_access_to_etcd(shared: Testbed) -> None:
    command = "ETCDCTL_API=3 etcdctl --endpoints=http://login:2379 get '' --prefix"
    assert shared.run(command, check=False).code != 0
    assert shared.run(["cat", "/etc/pvc/etcd-password"], node="n1", check=False).code != 0
    allowed = "ETCDCTL_API=3 etcdctl --endpoints=http://login:2379 --user=root:$(cat /etc/pvc/etcd-password)"
    assert shared.root(f"{allowed} put a b && {allowed} get a && {allowed} del a", "n1").split() == [
        "OK",
        "a",
        "b",
        "1",
    ]


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143), ("true", 0)],
)
def test_exit_code_is_the_commands(shared: Testbed, command: str, code: int) -> None:
    assert shared.run(command, check=False).code == code


def test_commands_that_cannot_run(shared: Testbed) -> None:
    assert shared.run(["no-such-command"], check=False).code == 127
    assert shared.run(["/etc/hosts"], check=False).code == 126
    done = shared.run(["true"], user="nobody-here", check=False)
    assert done.code == 6
    assert "no user 'nobody-here'" in done.err
    assert shared.run(["true"], node="n9", check=False).code == 6


def test_signals_pass_on(shared: Testbed) -> None:
    command = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    with shared.start(["sh", "-c", command]) as running:
        assert running.stdout.readline() == "ready\n"
        running.terminate()
        assert running.wait(60) == 3
        assert running.stdout.read() == "got\n"


def test_a_killed_exec_takes_its_command_along(shared: Testbed) -> None:
    with shared.start(["sh", "-c", "echo ready; exec sleep 4321"]) as running:
        assert running.stdout.readline() == "ready\n"
        running.kill()
    wait_until(lambda: shared.run(["pgrep", "-f", "^sleep 4321"], check=False).code, lack="it outlived its exec")


def read_until(terminal: int, text: str, timeout_s: float = 60.0) -> str:
    """What a terminal shows until ``text`` is in it."""
    shown = ""
    deadline = time.monotonic() + timeout_s
    while text not in shown:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], shown
        shown += os.read(terminal, 4096).decode()
    return shown


def test_a_terminal_has_job_control(shared: Testbed) -> None:
    argv = shared.argv(["bash", "--norc"])
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, {**os.environ, "TERM": "dumb"})
    os.write(terminal, b"PS1='> '; echo $((40+2)) $-\n")
    shown = read_until(terminal, "42 ")
    assert "no job control" not in shown
    # It says so itself: then the shell has given it the terminal.
    os.write(terminal, b"sh -c 'echo be\"\"gun; exec sleep 1234'\n")
    read_until(terminal, "begun")
    os.write(terminal, b"\x03")
    read_until(terminal, "> ")
    os.write(terminal, b"echo code $?; exit 5\n")
    read_until(terminal, "code 130")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5


def test_the_daemon_is_started_again(shared: Testbed) -> None:
    pgrep = ["pgrep", "-f", "pvc-node serve"]
    first = shared.root(pgrep, "n1").split()
    assert len(first) == 1
    shared.root(["kill", "-9", *first], "n1")
    wait_until(lambda: shared.root(pgrep, "n1", check=False).split() not in ([], first), 120, "no new pvc-node")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(facts.PACKAGES, "munge", ("no-such-munged",))
    with pytest.raises(HostError, match="needs munge") as caught:
        facts.check_machine()
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("apt-get install -y --no-install-recommends ")
    assert "munge" in caught.value.hint.split()


def test_command_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["testbed", "status", "--name", name]) == 1
    assert cli.run(["testbed", "exec", "--name", name, "true"]) == 6
    assert f"pvc testbed up --name {name}" in capsys.readouterr().err
    assert cli.run(["testbed", "up", "--name", "a/b"]) == 2
    assert cli.run(["testbed", "down", "--name", name]) == 0
