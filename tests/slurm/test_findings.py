# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a node is found by ``pvc doctor --node``, and what it says to do about it mends it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from tests.slurm.testbed import Testbed

NODE = "n1"


@dataclass(frozen=True)
class Case:
    """Something that goes wrong: ``breaking`` is a root's shell on the node; ``words`` and ``fix`` are in the finding.

    ``cure``: what somebody does who follows the fix; nothing: the fix is a command, and is run as it is printed.
    """

    breaking: str
    area: str
    words: str
    fix: str
    cure: str = ""


def _other(path: str, edit: str) -> str:
    """A shell that shows another content of a file on this node."""
    return f"cp {path} /run/other && {edit} /run/other && mount --bind /run/other {path}"


def _file(key: str, edit: str) -> dict[str, str]:
    path = f"/etc/pvc/{key}.yaml"
    return {"breaking": _other(path, edit), "cure": f"umount {path}"}


def _hidden(program: str) -> dict[str, str]:
    path = f"$(command -v {program} || echo /usr/sbin/{program})"
    return {"breaking": f"mount --bind /dev/null {path}", "cure": f"umount -c {path} || umount /usr/*bin/{program}"}


_PLUGIN = "$(awk '/pvc.so/ {print $2}' /etc/slurm/plugstack.conf)"
_NETS, _ADDRESS = "networks.yaml:", "$(getent ahostsv4 $(hostname) | awk '{print $1; exit}' | cut -d. -f1,2).0.0/16"
_ETCD_PASSWORD = "/etc/pvc/etcd-password"

CASES = {
    "state-open": Case(
        "chmod 755 /var/lib/pvc",
        "files",
        "is open to others than root (mode 755)",
        "chmod 700 /var/lib/pvc",
    ),
    "state-owner": Case("chown 1000 /var/lib/pvc", "files", "belongs to uid 1000", "chown root /var/lib/pvc"),
    "state-full": Case(
        "mount -t tmpfs -o size=1m,mode=700 tmpfs /var/lib/pvc",
        "files",
        "set-ups are refused when there is none",
        "make room in /var/lib/pvc",
        "umount /var/lib/pvc",
    ),
    "runtime-closed": Case("chmod 700 /run/pvc", "files", "users cannot reach /run/pvc", "chmod 755 /run/pvc"),
    "locks-open": Case("chmod 777 /run/pvc/locks", "files", "is open to others", "chmod 700 /run/pvc/locks"),
    "socket-closed": Case("chmod 600 /run/pvc/node.sock", "files", "users cannot", "chmod 666 /run/pvc/node.sock"),
    "roots-socket-open": Case(
        "chmod 666 /run/pvc/node.sock.root", "files", "is open to others", "chmod 600 /run/pvc/node.sock.root"
    ),
    "password-open": Case(f"chmod 644 {_ETCD_PASSWORD}", "files", "is open to others", f"chmod 600 {_ETCD_PASSWORD}"),
    "password-wrong": Case(
        _other(_ETCD_PASSWORD, "echo wrong >"), "etcd", "password", "etcd-password", f"umount {_ETCD_PASSWORD}"
    ),
    "run-dir-open": Case("chmod 777 /var/tmp/pvc", "run-dir", "must be a directory of root", "chmod go-w /var/tmp/pvc"),
    "cache-dir-open": Case(
        area="image-cache-dir",
        words="must be a directory of root",
        fix="name another directory as image-cache-dir in batch.yaml",
        **_file("batch", "mkdir -m 777 -p /run/cache; echo '  image-cache-dir: /run/cache' >>"),
    ),
    "file-wrong": Case(
        area="configuration",
        words="networks.yaml:",
        fix="pvc config check",
        **_file("networks", "echo 'colour: red' >>"),
    ),
    "ext-network-taken": Case(
        area="ranges",
        words="nat.settings.ext-network",
        fix="range",
        **_file("networks", f'sed -i "s#10.201.0.0/16#{_ADDRESS}#"'),
    ),
    "int-network-taken": Case(
        area="ranges",
        words="nat.settings.int-network",
        fix="range",
        **_file("networks", f'sed -i "0,/10.200.0.0.16/s##{_ADDRESS}#"'),
    ),
    "underlay-absent": Case(
        area="ranges",
        words="this node has no network device eth7",
        fix="",
        **_file("batch", "echo '  underlay-device: eth7' >>"),
    ),
    "kvm-demanded": Case(
        area="kvm", words="batch.yaml demands it", fix="load kvm_intel", **_file("batch", "echo '  accel: kvm' >>")
    ),
    "program-absent": Case(
        area="programs", words="not installed: dnsmasq", fix="apt install dnsmasq-base", **_hidden("dnsmasq")
    ),
    "tun-absent": Case(
        "mount -t tmpfs tmpfs /dev/net", "kernel", "there is no /dev/net/tun", "modprobe tun", "umount /dev/net"
    ),
    "plug-in-old": Case(
        f"sed 's/pvc plug-in of 0/pvc plug-in of 9/' {_PLUGIN} >/run/old.so && mount --bind /run/old.so {_PLUGIN}",
        "plug-in",
        "is of pvc 9.",
        "make spank and make -C spank install",
        f"umount {_PLUGIN}",
    ),
    "plug-in-absent": Case(
        _other("/etc/slurm/plugstack.conf", "sed -i s/^required/#/"),
        "plug-in",
        "names no pvc.so",
        "see conf/plugstack.conf",
        "umount /etc/slurm/plugstack.conf",
    ),
    "srun-ports": Case(
        "echo SrunPortRange=60500-60999 >>/etc/slurm/slurm.conf && scontrol reconfigure",
        "ports",
        "ports 60500 to 60999 of its reverse-nat are also in Slurm's SrunPortRange",
        "give one of both another range",
        "sed -i /^SrunPortRange/d /etc/slurm/slurm.conf && scontrol reconfigure",
    ),
    "daemon-silent": Case(
        "kill -STOP $(pgrep -of 'pvc-node serve')",
        "pvc-node",
        "does not answer at /run/pvc/node.sock",
        "systemctl enable --now pvc-node",
        "kill -CONT $(pgrep -of 'pvc-node serve')",
    ),
}


def look(tb: Testbed) -> dict[tuple[str, str], str]:
    """What is not well: the fix by area and text."""
    found = json.loads(tb.run(["pvc", "doctor", "--node", "--json"], node=NODE, user="root", check=False).out)
    return {(each["check"], each["text"]): each["fix"] or "" for each in found if each["verdict"] != "ok"}


@pytest.fixture(scope="module")
def quiet(testbed: Testbed) -> dict[tuple[str, str], str]:
    """What is said of this machine as it is: that it has no KVM, for one."""
    return look(testbed)


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_found_and_mended(tb: Testbed, quiet: dict[tuple[str, str], str], name: str) -> None:
    case = CASES[name]
    cure = case.cure
    try:
        tb.root(case.breaking, NODE)
        new = {key: fix for key, fix in look(tb).items() if key not in quiet}
        ours = [(text, fix) for (area, text), fix in new.items() if area == case.area]
        assert len(ours) == 1, new
        ((text, fix),) = ours
        assert case.words in text
        assert case.fix in fix
        cure = cure or fix.partition("; or ")[0]
    finally:
        tb.root(cure or case.fix, NODE)
    assert look(tb) == quiet
