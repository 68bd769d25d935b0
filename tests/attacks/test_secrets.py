# SPDX-License-Identifier: Apache-2.0
"""A cluster's secrets are looked for on all of a node, while it runs and when it is over.

docs/security.md, "Secrets", says where each lives; what is found elsewhere, or open to others, is a fault.
"""

from __future__ import annotations

import json
import re

from tests.attacks.victim import OWNER, Victim, attack
from tests.slurm.testbed import Testbed, wait_until

# Names and environments of all processes, and all files of places that processes of a node share. Run by root it tells
# who could read what; run by somebody else, what that one can. Needles come on standard input, so they are in neither.
_SEARCH = """
import json, os, stat, sys
needles = [each.encode() for each in NEEDLES]
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    for name in "cmdline", "environ":
        try:
            data = open(f"/proc/{pid}/{name}", "rb").read()
        except OSError:
            continue
        if any(each in data for each in needles) and int(pid) != os.getpid():
            found.append([f"/proc/PID/{name}: " + data[:200].decode(errors="replace"), 0, 0o777])
for top in TOPS:
    for path, directories, files in os.walk(top):
        directories[:] = [each for each in directories if not os.path.ismount(os.path.join(path, each))]
        for name in files:
            each = os.path.join(path, name)
            try:
                facts = os.lstat(each)
                if not stat.S_ISREG(facts.st_mode) or facts.st_size > 16 << 20:
                    continue
                data = open(each, "rb").read()
            except OSError:
                continue
            if any(needle in data for needle in needles):
                mode = facts.st_mode & 0o777
                up = path
                while up != "/":
                    mode = mode if os.stat(up).st_mode & 0o011 else mode & 0o700
                    up = os.path.dirname(up)
                found.append([each, facts.st_uid, mode])
json.dump(found, sys.stdout)
"""
_TOPS = [
    "/run",
    "/var/log",
    "/var/lib/pvc",
    "/var/lib/slurm",
    "/var/lib/etcd",
    "/var/spool",
    "/var/tmp",
    "/tmp",
    "/dev/shm",
]
# The supervisors' and the daemon's dumps: a process that may not be dumped has a /proc that is root's (proc(5)).
_DUMPABLE = """
import json, os
found = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline").read().replace("\\0", " ")
        uid = int(next(line for line in open(f"/proc/{pid}/status") if line.startswith("Uid:")).split()[1])
        if words.rstrip().endswith(" supervise"):
            found[pid] = [uid, os.stat(f"/proc/{pid}/environ").st_uid]
    except (OSError, StopIteration):
        pass
print(json.dumps(found))
"""


def _search(tb: Testbed, node: str, needles: list[str], *, attacker: bool = False) -> list[list[object]]:
    script = f"NEEDLES = {needles!r}\nTOPS = {_TOPS!r}\n{_SEARCH}"
    if attacker:
        done = attack(tb, script, node=node)
        assert done.code == 0, done.err
        text = done.out
    else:
        text = tb.run(["/usr/bin/python3", "-I", "-"], node=node, user="root", stdin=script, timeout=120).out
    found: list[list[object]] = json.loads(text)
    return found


def _read_secrets(victim: Victim) -> list[str]:
    """A line of the middle of each private key of the cluster's, which stand in its directory on the login node."""
    directory = victim.tb.home(OWNER) / f".pvc/jobs/{victim.job_id}"
    found = []
    for path in directory.rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace").replace("\\n", "\n")
            for key in re.findall(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n(.*?)-----END", text, re.DOTALL):
                lines = [line for line in key.split("\n") if line]
                found.append(max(lines[1:] or lines, key=len))
    return sorted(set(found))


def test_secrets_are_nowhere_but_where_they_should_be(victim: Victim) -> None:
    tb, job = victim.tb, victim.job_id
    needles = _read_secrets(victim)
    assert len(needles) >= 2, "TLS key and client's key"
    uid = int(tb.run(["id", "-u", OWNER]).out)
    for node in ("n1", "n2", "login"):
        for path, owner, mode in _search(tb, node, needles):
            assert owner == uid, (node, path)
            assert isinstance(mode, int)
            assert not mode & 0o077, (node, path, oct(mode))
        assert _search(tb, node, needles, attacker=True) == []
    # The search finds what is there: the same needle in a file of the attacker's own.
    own = tb.run(["mktemp", "/tmp/needle.XXXXXX"], node="n1", user="mallory").out.strip()
    try:
        tb.run(["tee", own], node="n1", user="mallory", stdin=needles[0])
        assert [row[0] for row in _search(tb, "n1", needles, attacker=True)] == [own]
    finally:
        tb.run(["rm", "-f", own], node="n1", user="mallory")
    dumpable = json.loads(tb.run(["/usr/bin/python3", "-I", "-"], node="n1", user="root", stdin=_DUMPABLE).out)
    assert dumpable, "the supervisor of n1"
    assert all(proc_uid == 0 for _, proc_uid in dumpable.values()), dumpable
    assert uid in {user for user, _ in dumpable.values()}
    # The owner's commands work with them all the while; when the cluster has ended, nobody has them.
    assert json.loads(victim.pvc("status", "--json").out)["vms"]
    victim.pvc("stop")
    wait_until(lambda: str(job) not in tb.jobs(), 60, "the job has not ended")
    for node in ("n1", "n2", "login"):
        wait_until(lambda node=node: not _search(tb, node, needles), 30, f"secrets stay on {node}")
