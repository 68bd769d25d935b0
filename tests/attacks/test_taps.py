# SPDX-License-Identifier: Apache-2.0
"""What a user of a node does with the devices that root makes there for others' VMs."""

from __future__ import annotations

import json

from tests.attacks.victim import Victim, allocs, attack
from tests.waits import wait_until

# Every device of the node, and of each namespace that can be entered, is attached to by name; what worked is said.
_TAKE = """
import ctypes, fcntl, glob, json, os, struct
os.close(os.open("/dev/net/tun", os.O_RDWR))  # or nothing was proved
libc = ctypes.CDLL(None, use_errno=True)

def attach(name, flags):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002 | flags))
        return True
    except OSError:
        return False
    finally:
        os.close(fd)

tried, taken = [], []
def take(where):
    names = [line.split(":")[0].strip() for line in open("/proc/self/net/dev")][2:]
    for name in [*names, "t0n0", "t1n0", "s0n0"]:
        tried.append(name)
        taken.extend([where, name] for flags in (0, 0x4000) if attach(name, flags))

take("the node")
spaces = glob.glob("/run/netns/*") + glob.glob("/run/pvc/netns/*") + glob.glob("/proc/[0-9]*/ns/net")
entered = 0
for path in spaces:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        continue
    if path.startswith("/run/"):
        taken.append([path, "opened"])
    if libc.setns(fd, 0x40000000) == 0:
        entered += 1
        take(path)
    os.close(fd)
print(json.dumps({"tried": tried, "taken": taken, "spaces": spaces}))
"""


def test_nobody_takes_a_tap_by_its_name(victim: Victim) -> None:
    """Neither one that a VM holds, nor that of a VM that was stopped; the VM starts again on it."""
    for words in (["status"], ["stop", "vm0", "--grace", "0s"]):
        victim.pvc(*words)
        done = attack(victim.tb, _TAKE)
        assert done.code == 0, done.err
        said = json.loads(done.out)
        assert said["taken"] == []
        assert "eth0" in said["tried"]
        assert any(f"pvc-{victim.job_id}" in path for path in said["spaces"])
    victim.pvc("start", "vm0")
    wait_until(lambda: _phases(victim)["vm0"] == "booting", 120, "the VM that was stopped does not run again")
    assert allocs(victim.tb).code == 0


def _phases(victim: Victim) -> dict[str, str]:
    return {vm["name"]: vm["phase"] for vm in json.loads(victim.pvc("status", "--json").out)["vms"]}
