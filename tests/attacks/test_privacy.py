# SPDX-License-Identifier: Apache-2.0
"""What a user of a node sees and reaches of another's running cluster."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.attacks.victim import ATTACKER, Victim, allocs, attack
from tests.slurm.testbed import Testbed, find_pids

# Everything of the job's that the attacker can list or read.
_LOOK = """
import os, re, sys
job = re.compile(rf"(?<!\\d){sys.argv[1]}(?!\\d)")
seen = []
for top in ("/run/pvc", "/run/netns", "/var/lib/pvc", "/var/tmp", "/dev/shm"):
    for path, directories, files in os.walk(top):
        for name in [*directories, *files]:
            each = os.path.join(path, name)
            if not job.search(name):
                continue
            try:
                os.close(os.open(each, os.O_RDONLY))
                seen.append(each)
            except OSError:
                pass
print("\\n".join(sorted(seen)))
"""


# What the attacker can change of the job's processes by their cgroups, and whether it can go there itself.
_GROUPS = """
import os, subprocess, sys
pid = sys.argv[1]
lines = open(f"/proc/{pid}/cgroup").read().split("\\n")
tops = [words[4] for words in map(str.split, open("/proc/self/mountinfo")) if " - cgroup" in " ".join(words)]
places = [top + path for top in tops for path in {line.split(":", 2)[2] for line in lines if line}]
found = [place for place in places if os.path.isdir(place)]
done = []
for place in found:
    while place.rstrip("/") not in tops:
        for name, text in (("cgroup.procs", str(os.getpid())), ("cgroup.procs", pid), ("cgroup.kill", "1"),
                           ("cgroup.freeze", "1"), ("memory.max", "1"), ("memory.limit_in_bytes", "1"),
                           ("cpuset.cpus", ""), ("cpu.max", "1000 100000"), ("tasks", str(os.getpid()))):
            try:
                with open(f"{place}/{name}", "w") as stream:
                    stream.write(text)
                done.append(f"{place}/{name}")
            except OSError:
                pass
        try:
            os.mkdir(f"{place}/mallory")
            done.append(f"{place}/mallory")
        except OSError:
            pass
        place = os.path.dirname(place)
print(len(found), *done)
"""


def test_cgroups_of_another_users_job(victim: Victim) -> None:
    """Nobody else moves a process into one, or limits, freezes or kills what is in it."""
    (qemu, *_) = find_pids(victim.tb, "n1", r"^\S*qemu-system")
    seen = attack(victim.tb, _GROUPS, str(qemu))
    assert seen.code == 0, seen.err
    count, *done = seen.out.split()
    assert int(count) >= 1, "a job's processes have a cgroup that the attacker sees"
    assert done == []
    assert find_pids(victim.tb, "n1", r"^\S*qemu-system")[0] == qemu
    phases = [vm["phase"] for vm in json.loads(victim.pvc("status", "--json").out)["vms"]]
    assert phases == ["booting", "booting"]


# Connects to each path that it is given, as a user of the machine that a testbed is on.
_KNOCK = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print("ready")
for path in sys.argv[1:]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        try:
            socket.socket(socket.AF_UNIX, kind).connect(path)
            print(path)
        except OSError:
            pass
"""


def test_what_a_testbed_has_is_no_business_of_the_machines_users(tb: Testbed) -> None:
    """Its services listen in namespaces of their own; what they have on the machine's disk nobody else opens."""
    here = os.stat("/proc/self/ns/net").st_ino
    daemons = [pid for node in tb.nodes() if (pid := tb.place.find_node(node)) is not None]
    assert len(daemons) == 3
    assert all(os.stat(f"/proc/{pid}/ns/net").st_ino != here for pid in daemons)
    sockets = [path for path in tb.place.state_dir.rglob("*") if path.is_socket()]
    # By the node's own root directory, too: what is private there is not shown by the machine's.
    sockets += [Path(f"/proc/{pid}/root/run/pvc/node.sock") for pid in daemons]
    assert all(path.is_socket() for path in sockets)
    argv = ["/usr/bin/python3", "-I", "-c", _KNOCK, *map(str, sockets)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["ready"]
    assert allocs(tb).code == 0


def test_a_cluster_is_closed_to_others(victim: Victim) -> None:
    """No command answers about it, and nothing on its nodes can be opened."""
    for command, *words in (["status"], ["stop"], ["exec", "--", "true"], ["console", "vm0"]):
        done = victim.tb.run(["pvc", command, "-j", str(victim.job_id), *words], user=ATTACKER, check=False)
        assert done.code != 0, done
    seen = attack(victim.tb, _LOOK, str(victim.job_id))
    assert seen.code == 0, seen.err
    assert seen.out.split() == []
    phases = [vm["phase"] for vm in json.loads(victim.pvc("status", "--json").out)["vms"]]
    assert phases == ["booting", "booting"]
    assert allocs(victim.tb).code == 0
