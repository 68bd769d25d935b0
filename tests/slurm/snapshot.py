# SPDX-License-Identifier: Apache-2.0
"""Print what a node holds as JSON; run by root in the node with the system's own Python."""

import glob
import json
import os
import re
import subprocess


def output(*argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout


def processes():
    """Every process but this one and its relatives, without pids."""
    mine, pid = set(), os.getpid()
    while pid > 0:
        mine.add(pid)
        with open(f"/proc/{pid}/stat") as stream:
            pid = int(stream.read().rpartition(")")[2].split()[1])
        if pid == 1:
            break
    found = []
    for path in glob.glob("/proc/[0-9]*"):
        try:
            with open(f"{path}/cmdline") as stream:
                words = stream.read().replace("\0", " ").strip()
            owner = os.stat(path).st_uid
        except OSError:
            continue
        if words and int(os.path.basename(path)) not in mine | {1}:
            found.append(f"{owner} {words}")
    return found


def namespaces():
    """A way to enter each network namespace that a process or a name keeps, this one first."""
    seen, found = {os.stat("/proc/self/ns/net").st_ino}, [("host", [])]
    paths = glob.glob("/run/netns/*") + glob.glob("/run/pvc/netns/*") + glob.glob("/proc/[0-9]*/ns/net")
    for path in sorted(paths, key=lambda each: each.startswith("/proc")):
        try:
            inode = os.stat(path).st_ino
        except OSError:
            continue
        if inode not in seen:
            seen.add(inode)
            name = path if not path.startswith("/proc") else "unnamed"
            found.append((name, ["nsenter", f"--net={path}"]))
    return found


def links(spaces):
    found = []
    for name, enter in spaces:
        for line in json.loads(output(*enter, "ip", "-j", "link") or "[]"):
            found.append(f"{name} {line['ifname']} {line.get('operstate')}")
        found += [f"{name} rule {line.strip()}" for line in output(*enter, "ip", "rule").splitlines()]
        found += [f"{name} route {line.strip()}" for line in output(*enter, "ip", "route").splitlines()]
        for key in ("net.ipv4.ip_forward", "net.ipv4.conf.all.route_localnet", "net.ipv4.conf.all.rp_filter"):
            found.append(f"{name} {key} {output(*enter, 'sysctl', '-n', key).strip()}")
    return found


def nftables(spaces):
    return [
        f"{name} {line}" for name, enter in spaces for line in output(*enter, "nft", "list", "ruleset").splitlines()
    ]


def mounts():
    """All but what other tests of the machine mount below /tmp, which its nodes see; pvc mounts nothing there."""
    with open("/proc/self/mountinfo") as stream:
        found = [" ".join([line.split()[4], *line.split(" - ")[1].split()[:2]]) for line in stream]
    return [text for text in found if not text.startswith("/tmp/")]


def cgroups():
    """Slurm keeps its top directory (and its own empty ones) once a step ran; jobs' and ours count."""
    paths = {os.path.relpath(each, "/sys/fs/cgroup") for each, _, _ in os.walk("/sys/fs/cgroup")}
    return [path for path in paths if not re.search(r"/slurm(_[^/]*)?(/(system|uid_\d+))?$", f"/{path}")]


def device_of(path):
    try:
        return os.lstat(path).st_dev
    except FileNotFoundError:
        return None  # removed just now


def files():
    found = []
    for top in ("/run/pvc", "/var/lib/pvc", "/var/tmp", "/tmp", "/dev/shm", "/run/netns", "/run/lock"):
        device = os.stat(top).st_dev if os.path.exists(top) else None
        for base, directories, names in os.walk(top):
            # What the host shows through (an environment below /tmp) is none of the node's.
            directories[:] = [each for each in directories if device_of(os.path.join(base, each)) == device]
            found += [os.path.join(base, name) for name in [*directories, *names]]
    found += glob.glob("/run/*")
    return found


def etcd():
    if not os.path.exists("/etc/pvc/etcd-password"):
        return []
    with open("/etc/pvc/etcd-password") as stream:
        user = f"--user=root:{stream.read().strip()}"
    argv = [
        "env",
        "ETCDCTL_API=3",
        "etcdctl",
        "--endpoints=http://login:2379",
        user,
        "get",
        "",
        "--prefix",
        "--keys-only",
    ]
    return [line for line in output(*argv).splitlines() if line]


spaces = namespaces()
parts = {
    "processes": processes(),
    "links": links(spaces),
    "nftables": nftables(spaces),
    "mounts": mounts(),
    "cgroups": cgroups(),
    "files": files(),
    "etcd": etcd(),
}
print(json.dumps({name: sorted(texts) for name, texts in parts.items()}))
