# SPDX-License-Identifier: Apache-2.0
"""pvc is taken from a node as its manual says: nothing of it stays."""

from __future__ import annotations

import signal
from dataclasses import asdict

from tests.slurm.test_faults import kill
from tests.slurm.testbed import Testbed

# The manual's last steps (pvc-node(8)); what of these is mounted in a testbed stays as an empty directory.
REMOVE = "rm -rf /run/pvc /var/tmp/pvc; find /var/lib/pvc -mindepth 1 -delete"
# The testbed's own: its mounts, the images of its site, and its daemon, which init would start again if it ended.
OWN = ("/var/lib/pvc", "/etc/pvc", "/usr/local/bin/pvc", "pvc-testbed", "pvc-node serve", "/run/pvc-", "/bin/python")


def test_a_node_without_pvc(tb: Testbed, bare: str) -> None:
    for resources in ("nat", "nat-ovs", "lan-ovs"):
        words = ["pvc", "alloc", "-Q", "-c", "1", "-w", "n3", "--resource-set", resources, "-E", "true", bare]
        tb.run(words, timeout=300)
    tb.wait_no_jobs()
    tb.root("scontrol update nodename=n3 state=drain reason=removal", "login")
    try:
        assert "; 0 jobs of pvc" in tb.root("pvc-node status", "n3")
        kill(tb, "n3", "pvc-node serve", signal.SIGSTOP)
        tb.root("pvc-node reclaim", "n3")
        done = tb.run(["umount", "/run/pvc/netns"], node="n3", user="root", check=False)
        # Where this machine has one, it shows through, and stays.
        own = OWN if done.code == 0 else (*OWN, "mounts: /run/pvc/netns", "files: /run/pvc")
        assert done.code == 0 or "not mounted" in done.err
        tb.root(f"{REMOVE} || test {done.code} -ne 0", "n3")
        left = asdict(tb.snapshot("n3"))
        found = [f"{part}: {each}" for part, texts in left.items() for each in texts if "pvc" in each]
        assert not [each for each in found if not any(word in each for word in own)], found
        assert tb.root("sysctl -n net.ipv4.ip_forward", "n3") == "0\n"
    finally:
        tb.root("scontrol update nodename=n3 state=resume", "login")
        tb.crash("n3")
        tb.boot("n3")
