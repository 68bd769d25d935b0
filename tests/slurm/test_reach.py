# SPDX-License-Identifier: Apache-2.0
"""The daily commands for a running cluster; others than its owner are refused at each of the ways in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pvc.ops.jobdir import JobDir
from pvc.ops.keys import KeyMaker
from tests.attacks.victim import attacking
from tests.slurm.clusters import Cluster
from tests.slurm.images import import_agent
from tests.slurm.terminal import Terminal
from tests.slurm.testbed import Done, Testbed, find_pids
from tests.waits import wait_until

LONG = 600.0


@pytest.fixture(scope="module")
def image(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small guest, with the agent in it."""
    return import_agent(testbed, tmp_path_factory.mktemp("agent"))


@pytest.fixture(scope="module")
def cluster(testbed: Testbed, image: str) -> Iterator[Cluster]:
    """Two VMs on two nodes, whose agents answer."""
    testbed.wait_no_jobs()
    made = Cluster(testbed, f"{image}:2", "-c", "1", "-N", "2")
    try:
        made.wait_running()
        pvc(made, "wait", "--for", "agent", "--for", "ssh", "--timeout", "300s")
        yield made
    finally:
        made.close()
        testbed.wait_no_jobs()


def pvc(made: Cluster, command: str, *words: str, user: str = "student", code: int = 0, stdin: str = "") -> Done:
    """A command of pvc about the cluster, on the login node."""
    argv = ["pvc", command, "-j", str(made.job_id), *words]
    done = made.tb.run(argv, user=user, check=False, timeout=LONG, stdin=stdin)
    assert done.code == code, f"{argv} ended with {done.code}\n{done.out}\n{done.err}"
    return done


def shell(made: Cluster, line: str, *, user: str = "student") -> Done:
    """A line for bash on the login node, without a judgement."""
    return made.tb.run(["bash", "-c", line], user=user, check=False, timeout=LONG)


def read_banner(made: Cluster, port: int, *, user: str = "student") -> str:
    """What a program of a user hears first at a port of the login node's loopback."""
    return shell(made, f"exec 3<>/dev/tcp/127.0.0.1/{port}; timeout 90 head -n 1 <&3", user=user).out.strip()


def in_guest(made: Cluster, line: str) -> None:
    """Run a line of shell in vm0."""
    pvc(made, "exec", "-w", "vm0", "--", "sh", "-c", line)


def test_logs_of_consoles_and_supervisors(cluster: Cluster) -> None:
    both = pvc(cluster, "logs", "vm[0-1]").out
    assert {"vm0: GUEST-READY", "vm1: GUEST-READY"} <= set(both.splitlines())
    assert "\x1b" not in both
    assert len(pvc(cluster, "logs", "-n", "2").out.splitlines()) == 2
    steps = pvc(cluster, "logs", "vm1", "--source", "supervisor").out
    assert re.search(r"^\S+ vm1 network$", steps, re.MULTILINE)
    assert re.search(r"^\S+ vm1 reachable$", steps, re.MULTILINE)
    assert "vm0" not in steps
    assert "there is no vm7" in pvc(cluster, "logs", "vm7", code=2).err
    assert "No such file" in pvc(cluster, "logs", "vm1", "-s", "cloud-init", code=7).err
    in_guest(cluster, "mkdir -p /var/log; printf 'one\\ntwo\\n' > /var/log/cloud-init-output.log")
    assert pvc(cluster, "logs", "-s", "cloud-init", "-n", "1").out == "two\n"
    following = cluster.tb.start(
        ["pvc", "logs", "-j", str(cluster.job_id), "vm[0-1]", "-s", "cloud-init", "-n", "1", "--follow"]
    )
    assert following.stdout.readline() == "vm0: two\n"
    # One that is not there yet is waited for
    line = "mkdir -p /var/log; until pidof tail; do sleep 0.2; done; echo three >> /var/log/cloud-init-output.log"
    pvc(cluster, "exec", "-w", "vm1", "--", "sh", "-c", line)
    assert following.stdout.readline() == "vm1: three\n"
    pvc(cluster, "exec", "--", "killall", "tail")
    assert following.communicate(timeout=LONG)[0] == ""
    assert following.returncode == 0


def test_logs_that_are_followed_end_with_the_vm(cluster: Cluster) -> None:
    following = cluster.tb.start(["pvc", "logs", "-j", str(cluster.job_id), "vm1", "--follow"])
    assert any("GUEST-READY" in line for line in iter(following.stdout.readline, ""))
    pvc(cluster, "stop", "vm1", "--grace", "0s")
    _, err = following.communicate(timeout=300)
    assert following.returncode == 0, err
    # What a VM said before it ended is still there
    assert "GUEST-READY" in pvc(cluster, "logs", "vm1").out
    status = pvc(cluster, "status").out
    assert re.search(r"^vm1 +n2 +stopped", status, re.MULTILINE)
    assert "vm1: is stopped" in pvc(cluster, "wait", "--for", "agent", "--timeout", "60s", code=7).err
    pvc(cluster, "start", "vm1")
    pvc(cluster, "wait", "--for", "agent", "--timeout", "300s")


def test_waiting_for_what_was_asked(cluster: Cluster) -> None:
    pvc(cluster, "wait", "--for", "port:22", "--for", "cmd:test -x /bin/busybox", "--timeout", "300s")
    late = pvc(cluster, "wait", "vm0", "--for", "port:81", "--timeout", "1s", code=7).err
    assert "vm0: nothing answers at its port 81 yet" in late
    assert "pvc logs vm0" in late
    assert "cmd:false ended with 1" in pvc(cluster, "wait", "vm1", "--for", "cmd:false", "--timeout", "1s", code=7).err
    assert "has no cloud-init" in pvc(cluster, "wait", "vm0", "--for", "cloud-init", code=7).err
    assert "nothing to wait for" in pvc(cluster, "wait", "--for", "tea", code=2).err


def test_what_cloud_init_says_of_itself(cluster: Cluster) -> None:
    """The small guest has none: what one would write, and a program that says the same."""
    says = "printf '#!/bin/sh\\necho status: %s\\n' {} > /bin/cloud-init; chmod +x /bin/cloud-init"
    writes = "mkdir -p /run/cloud-init; cat > /run/cloud-init/status.json"
    failed = {"errors": ["no such package"], "finished": 1.5, "recoverable_errors": {}}
    warned = {"errors": [], "finished": 1.5, "recoverable_errors": {"WARNING": ["what is that?"]}}

    def set_report(word: str, last: dict[str, object]) -> None:
        report = json.dumps({"v1": {"modules-final": last, "stage": None}}, indent=1)
        pvc(cluster, "exec", "-w", "vm0", "--", "sh", "-c", f"{says.format(word)}; {writes}", stdin=report)

    try:
        set_report("error", failed)
        vm0, vm1 = json.loads(pvc(cluster, "status", "--json").out)["vms"]
        assert vm0["cloud_init"] == {"finished": True, "errors": ["no such package"], "warnings": []}
        assert vm1["cloud_init"] is None
        assert "! vm0: cloud-init failed: no such package; pvc exec vm0" in pvc(cluster, "status").out
        wrong = pvc(cluster, "wait", "vm0", "--for", "cloud-init", code=7).err
        assert "vm0: cloud-init failed: no such package" in wrong
        set_report("done", warned)
        assert "vm0: cloud-init warns: what is that?" in pvc(cluster, "wait", "vm0", "--for", "cloud-init").err
        assert "! vm0: cloud-init warns: what is that?" in pvc(cluster, "status").out
    finally:
        in_guest(cluster, "rm -rf /bin/cloud-init /run/cloud-init")


def test_a_guest_that_hangs_is_noticed(cluster: Cluster) -> None:
    """It was reachable, and its agent there: both are asked anew, and status says so."""
    stop = "for name in nc pvc-agent; do kill -{} $(pidof $name); done"
    line = f"(sleep 1; {stop.format('STOP')}; sleep 40; {stop.format('CONT')}) > /dev/null 2>&1 &"
    pvc(cluster, "exec", "-w", "vm1", "--detach", "--", "sh", "-c", line)

    def says_so() -> bool:
        return "! vm1: its agent is silent: the guest does not answer" in pvc(cluster, "status").out

    wait_until(says_so, 120, "nothing is said of the agent")
    assert "vm1: has a silent agent" in pvc(cluster, "wait", "--for", "agent", "--timeout", "1s", code=7).err
    assert "vm1: does not answer ssh any more" in pvc(cluster, "wait", "--timeout", "1s", code=7).err
    pvc(cluster, "wait", "--for", "agent", "--for", "ssh", "--timeout", "300s")
    assert "vm1: its agent" not in pvc(cluster, "status").out


def test_status_tells_how_busy_guests_are(cluster: Cluster) -> None:
    pvc(cluster, "pause", "vm1")
    loads: list[dict[str, float] | None] = []

    def ask() -> bool:  # a guest on a busy machine may need longer than status waits
        loads[:] = [vm["load"] for vm in json.loads(pvc(cluster, "status", "--json").out)["vms"]]
        return loads[0] is not None

    try:
        wait_until(ask, 120, "no load of vm0")
    finally:
        pvc(cluster, "resume", "vm1")
    busy, paused = loads
    assert busy is not None
    assert 0 < busy["memory_used_mib"] < busy["memory_total_mib"]
    assert busy["load1"] >= 0
    assert paused is None


def test_status_again_and_again_on_a_terminal(cluster: Cluster) -> None:
    terminal = Terminal(cluster.tb.argv(["pvc", "status", "-j", str(cluster.job_id), "--watch", "--interval", "0.3s"]))
    terminal.resize(160, 30)
    terminal.expect(r"2 VMs on 2 nodes: 2 reachable")
    # What the agents say of their guests; who is paused says nothing
    terminal.expect(r"vm1 +n2 +reachable .* \d+\.\d\d +\d+M +\d+M")
    pvc(cluster, "pause", "vm0")
    terminal.expect(r"1 reachable, 1 paused")
    terminal.expect(r"! vm0: paused on request; pvc resume vm0")
    pvc(cluster, "resume", "vm0")
    terminal.expect(r"2 reachable")
    terminal.type("q")
    terminal.expect(r"\x1b\[\?1049l")
    assert terminal.wait() == 0


def test_forwards_for_their_owner_alone(cluster: Cluster) -> None:
    _, other = json.loads(pvc(cluster, "status", "--json").out)["vms"]
    place = f"vm0:{other['addresses'][0]}:22"
    ready = pvc(cluster, "forward", "--background", "0:vm0:22", "0:vm1:22", f"0:{place}").out
    assert place in ready
    first, second, beyond = (int(port) for port in re.findall(r"127\.0\.0\.1:(\d+) -> vm\d:[\d.:]*22$", ready, re.M))
    # The guest's server takes one connection at a time, and rests between them
    for port in (first, second, beyond):
        wait_until(partial(read_banner, cluster, port), 120, "no banner")
    assert read_banner(cluster, first, user="teacher") == ""
    log = shell(cluster, f"cat ~/.pvc/jobs/{cluster.job_id}/forward.log").out
    assert re.search(r"refused a connection of uid \d+", log)
    assert len(pvc(cluster, "forward", "--list").out.splitlines()) == 4
    taken = pvc(cluster, "forward", f"{first}:vm1:22", code=2).err
    assert "choose another port" in taken
    # A VM that boots again is waited for; its agent may be there before its server is
    pvc(cluster, "reset", "vm1")
    assert read_banner(cluster, second) in ("", "SSH-2.0-busybox")
    assert "vm1 does not answer, trying again" in shell(cluster, f"cat ~/.pvc/jobs/{cluster.job_id}/forward.log").out
    wait_until(lambda: read_banner(cluster, second) == "SSH-2.0-busybox", 200, "no banner after the reset")
    pvc(cluster, "forward", "--stop", "vm0")
    assert "nothing is forwarded" in pvc(cluster, "forward", "--list").err


# Connections of another user's, as many as it can have, made again whenever they are closed.
CROWD = """
import resource, select, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
links, poll, made = {}, select.poll(), 0
def come():
    link = socket.socket()
    link.setblocking(False)
    link.connect_ex(("127.0.0.1", int(sys.argv[1])))
    links[link.fileno()] = link
    poll.register(link, select.POLLIN | select.POLLRDHUP)
for _ in range(500):
    come()
print("there", flush=True)
poll.register(0, select.POLLIN)
while True:
    for number, _ in poll.poll():
        if number == 0:
            print(made)
            sys.exit()
        poll.unregister(number)
        links.pop(number).close()
        made += 1
        come()
"""


def test_a_crowd_at_a_forwarded_port(cluster: Cluster) -> None:
    """Another user's connections are closed as they come, and keep neither the owner out nor fill the owner's log."""
    ready = pvc(cluster, "forward", "--background", "0:vm0:22").out
    (port,) = (int(number) for number in re.findall(r"127\.0\.0\.1:(\d+) -> vm0:22$", ready, re.M))
    wait_until(partial(read_banner, cluster, port), 120, "no banner")
    with attacking(cluster.tb, CROWD, str(port), node="login", user="teacher") as crowd:
        for _ in range(3):
            wait_until(partial(read_banner, cluster, port), 120, "no banner beside a crowd")
        made = crowd.communicate("x\n", timeout=60)[0]
    assert int(made) > 500
    log = shell(cluster, f"cat ~/.pvc/jobs/{cluster.job_id}/forward.log").out
    assert re.search(r"refused a connection of uid \d+", log)
    assert len(log) < 5000
    pvc(cluster, "forward", "--stop", "vm0")


# busybox has no server of datagrams
MIRROR = b"""
#include <arpa/inet.h>
int main(void)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(7007)}, peer;
    char data[2048];
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&here, sizeof here))
        return 1;
    for (;;) {
        socklen_t size = sizeof peer;
        ssize_t got = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *)&peer, &size);
        if (got >= 0)
            sendto(fd, data, (size_t)got, 0, (struct sockaddr *)&peer, size);
    }
}
"""


def test_forwards_of_datagrams_and_back(cluster: Cluster) -> None:
    pvc(cluster, "wait", "--for", "agent", "--timeout", "300s")
    subprocess.run(
        ["gcc", "-static", "-Os", "-s", "-x", "c", "-o", cluster.tb.home() / "mirror", "-"], input=MIRROR, check=True
    )
    pvc(cluster, "cp", "mirror", "vm0:/bin/mirror")
    in_guest(cluster, "mirror </dev/null >/dev/null 2>&1 &")
    ready = pvc(cluster, "forward", "--background", "--udp", "0:vm0:7007").out
    port = re.findall(r":(\d+)/udp", ready)[0]
    script = f"""import contextlib, socket
with socket.socket(type=socket.SOCK_DGRAM) as peer:
    peer.settimeout(2)
    for _ in range(30):  # what comes before the guest's program listens is lost, as datagrams are
        peer.sendto(b'over and back', ('127.0.0.1', {port}))
        with contextlib.suppress(TimeoutError):
            print(peer.recv(100).decode())
            break
    server = socket.create_server(('127.0.0.1', 0))
    print(server.getsockname()[1], flush=True)
    server.settimeout(120)
    print(server.accept()[0].recv(100).decode())
"""
    serving = cluster.tb.start([cluster.tb.python, "-c", script])
    assert serving.stdout.readline() == "over and back\n"
    here = serving.stdout.readline().strip()
    back = pvc(cluster, "forward", "--background", "--reverse", f"{here}:vm0:0").out
    there = re.findall(r"vm0:(\d+) ->", back)[0]
    in_guest(cluster, f"echo from-inside | nc 127.0.0.1 {there}")
    out, err = serving.communicate(timeout=120)
    assert out == "from-inside\n\n", err
    pvc(cluster, "forward", "--stop")


def test_plain_ssh_by_name(cluster: Cluster) -> None:
    path = pvc(cluster, "ssh-config").out.strip()
    assert path.endswith(f"/.pvc/jobs/{cluster.job_id}/ssh_config")
    done = shell(cluster, f"ssh -v -F {path} vm1.{cluster.job_id} true")
    assert "remote software version busybox" in done.err


def test_another_user_is_refused_everywhere(cluster: Cluster, tmp_path: Path) -> None:
    """Teacher knows all of the cluster but its keys."""
    tb, teacher = cluster.tb, cluster.tb.home("teacher")
    known = tb.home() / ".pvc" / "jobs" / str(cluster.job_id)
    stolen = JobDir(teacher / ".pvc" / "jobs" / str(cluster.job_id))
    assert shell(cluster, f"cat {known}/tls.key", user="teacher").code != 0
    stolen.path.mkdir(parents=True)
    try:
        stolen.write_keys(KeyMaker(tmp_path, "another").finish())
        shutil.copy(known / "cluster.json", stolen.record_path)
        owner = teacher.stat()
        for path in (stolen.path.parent.parent, stolen.path.parent, stolen.path, *stolen.path.iterdir()):
            os.chown(path, owner.st_uid, owner.st_gid)
        for command, words in {
            "logs": ["vm0"],
            "status": ["vm0"],
            "forward": ["0:vm0:22"],
            "exec": ["vm0", "id"],
            "cp": ["/etc/hostname", "vm0:/tmp/x"],
        }.items():
            done = tb.run(
                ["pvc", command, "-j", str(cluster.job_id), *words], user="teacher", check=False, timeout=LONG
            )
            assert "does not answer" in done.out + done.err, f"{command}: {done.out}{done.err}"
        late = pvc(cluster, "wait", "--for", "agent", "--timeout", "1s", user="teacher", code=7).err
        assert "out of reach" in late
        done = tb.run(["pvc", "carry", str(cluster.job_id), "vm0"], user="teacher", check=False, timeout=LONG)
        assert "does not answer" in done.err
    finally:
        shutil.rmtree(stolen.path)


def test_a_network_that_drops_all_without_a_word(cluster: Cluster) -> None:
    """As of a laptop whose lid was closed: both ends notice, nothing is left in the guest, and forwards come back."""
    pvc(cluster, "wait", "--for", "agent", "--timeout", "300s")
    tb, job = cluster.tb, ["-j", str(cluster.job_id)]
    record = json.loads((tb.home() / f".pvc/jobs/{cluster.job_id}/cluster.json").read_text())
    port = next(each["port"] for each in record["endpoints"] if each["node"] == "n2")
    forward = tb.start(["pvc", "forward", *job, "0:vm1:22"])
    here = int(re.findall(r":(\d+) ->", forward.stdout.readline())[0])
    wait_until(partial(read_banner, cluster, here), 120, "no banner")
    # One that is silent, one that hears much, one that says much
    lines = ["echo here; exec sleep 1234", "echo here; exec yes", "echo here; exec cat >/dev/null"]
    commands = [
        tb.start(["bash", "-c", f"pvc exec {' '.join(job)} -w vm1 -- sh -c '{line}' <{stdin}"])
        for line, stdin in zip(lines, ["/dev/null", "/dev/null", "/dev/zero"], strict=True)
    ]
    assert [command.stdout.readline() for command in commands] == ["here\n"] * 3
    rules = f"tcp dport {port} drop; tcp sport {port} drop;"
    tb.root(f"nft 'table inet silent {{ chain silence {{ type filter hook input priority 0; {rules} }}; }}'", "n2")
    try:
        shown = pvc(cluster, "status").out
        assert re.search(r"^vm1 +n2 +failed", shown, re.MULTILINE), shown
        assert "does not answer" in shown
        for command in commands:
            _, err = command.communicate(timeout=LONG)
            assert (command.returncode, "the supervisor on n2" in err) == (6, True), err
    finally:
        tb.root("nft delete table inet silent", "n2")
    wait_until(
        lambda: not re.search("sleep 1234|yes|cat", pvc(cluster, "exec", "-w", "vm1", "--", "ps", "-o", "args").out),
        120,
        "what they began goes on",
    )
    wait_until(lambda: read_banner(cluster, here) == "SSH-2.0-busybox", 120, "the forward has not come back")
    assert forward.poll() is None
    forward.terminate()
    forward.communicate(timeout=300)


def test_a_supervisor_that_is_killed(cluster: Cluster) -> None:
    """The last one. Who used its VM is told, and nothing waits for what never comes."""
    pvc(cluster, "wait", "--for", "agent", "--timeout", "300s")
    job = ["-j", str(cluster.job_id)]
    forward = cluster.tb.start(["pvc", "forward", *job, "0:vm1:22"])
    assert "-> vm1:22" in forward.stdout.readline()
    command = cluster.tb.start(["pvc", "exec", *job, "-w", "vm[0-1]", "--", "sh", "-c", "echo here; exec sleep 1000"])
    assert sorted(command.stdout.readline() for _ in range(2)) == ["vm0: here\n", "vm1: here\n"]
    for pid in find_pids(cluster.tb, "n2", "pvc supervise"):
        cluster.tb.root(["kill", "-9", str(pid)], "n2")
    _, err = forward.communicate(timeout=LONG)
    assert (forward.returncode, "the supervisor on n2 has ended, and its VMs with it" in err) == (6, True), err
    assert "hint: pvc logs --source launcher" in err
    # What runs in the other VM goes on
    assert command.poll() is None
    assert "sleep 1000" in pvc(cluster, "exec", "-w", "vm0", "--", "ps").out
    pvc(cluster, "exec", "-w", "vm0", "--", "killall", "sleep")
    _, err = command.communicate(timeout=LONG)
    # 6: its node failed it; of several VMs the largest counts, and a signal's is larger
    assert command.returncode == 143
    assert "the supervisor on n2 has ended the connection" in err or "the supervisor on n2 broke" in err
    assert "out of reach" in pvc(cluster, "wait", "vm1", "--for", "agent", "--timeout", "1s", code=7).err
    assert find_pids(cluster.tb, "login", "pvc (forward|exec)") == []
