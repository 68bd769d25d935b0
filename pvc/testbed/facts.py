# SPDX-License-Identifier: Apache-2.0
"""What the testbed needs to know of the machine, and what the machine lacks."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pvc import run
from pvc.config import share
from pvc.errors import HostError
from pvc.testbed.model import CgroupMount, HostFacts, Reveal

# What a testbed starts, by the Debian package that has it.
PACKAGES = {
    "etcd-server": ("etcd",),
    "iproute2": ("ip",),
    "munge": ("munged",),
    "openvswitch-switch": ("ovs-vswitchd", "ovsdb-server", "ovsdb-tool"),
    "slurm-client": ("srun", "sinfo"),
    "slurmctld": ("slurmctld",),
    "slurmd": ("slurmd",),
}
# Covered in every node by file systems of its own; what the commands need from there is shown again.
_COVERED = ("/tmp", "/home", "/root", "/run", "/var/tmp")
_TOP = Path(__file__).resolve().parents[2]


def find_missing_packages() -> tuple[str, ...]:
    """Debian packages that the testbed needs and whose programs are not here."""
    return tuple(
        package
        for package, programs in PACKAGES.items()
        if any(shutil.which(program, path=run.PATH) is None for program in programs)
    )


def check_machine() -> None:
    """Refuse early what cannot work.

    :raise HostError: not root, or packages are missing; the hint is the command that installs them.
    """
    if os.geteuid() != 0:
        raise HostError("a testbed makes namespaces and mounts: it needs root", hint="run the same command with sudo")
    missing = find_missing_packages() or _find_packages_without_user()
    if missing:
        raise HostError(
            f"the testbed needs {', '.join(missing)}",
            hint=f"apt-get install -y --no-install-recommends {' '.join(find_packages_to_install(missing))}",
        )


def _find_packages_without_user() -> tuple[str, ...]:
    """Packages whose programs are here and whose users are not: half installed."""
    users = {line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()}
    return tuple(package for user, package in (("munge", "munge"), ("slurm", "slurmctld")) if user not in users)


def find_packages_to_install(missing: Sequence[str]) -> tuple[str, ...]:
    """All that pvc uses on a machine and that dpkg does not know as installed, so that one command is enough."""
    try:
        listed = parse_package_list((share.find_share() / "conf" / "debian-packages.txt").read_text())
        known = run.run(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *listed], ok_codes=(0, 1))
    except (OSError, HostError):
        return tuple(missing)
    installed = {line.split()[1] for line in known.splitlines() if line.startswith("installed ")}
    return tuple(sorted({*missing, *(package for package in listed if package not in installed)}))


def parse_package_list(text: str) -> tuple[str, ...]:
    """The packages of conf/debian-packages.txt: the first word of each line that is no comment."""
    lines = (line.split() for line in text.splitlines())
    return tuple(words[0] for words in lines if words and not words[0].startswith("#"))


def read_facts() -> HostFacts:
    """Read everything that the plan needs.

    :raise HostError: no cgroups are mounted.
    """
    pvc, pvc_node = _find_command("pvc"), _find_command("pvc-node")
    plugin = _TOP / "spank" / "pvc.so"
    cgroups = parse_cgroup_mounts(Path("/proc/self/mountinfo").read_text())
    if not cgroups:
        raise HostError("no cgroups are mounted here", hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    for path in (_TOP / "pvc" / "__init__.py", plugin, *(Path(each) for each in (pvc, pvc_node) if each)):
        if path.exists() and not path.stat().st_mode & stat.S_IROTH:
            raise HostError(f"the testbed's users cannot read {path}", hint=f"chmod -R go+rX {_TOP}")
    needed = {str(_TOP), sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable))}
    needed |= {os.path.dirname(os.path.dirname(path)) for path in (pvc, pvc_node) if path}
    return HostFacts(
        checkout=str(_TOP),
        python=sys.executable,
        pvc=pvc,
        pvc_node=pvc_node,
        plugin=str(plugin) if plugin.exists() else None,
        cgroups=cgroups,
        controllers=_read_controllers(cgroups),
        has_daemon=(_TOP / "pvc" / "cli" / "node.py").exists(),
        reveals=find_reveals(needed),
        passwd=Path("/etc/passwd").read_text(),
        group=Path("/etc/group").read_text(),
        config_files=tuple(_config_files()),
    )


def _read_controllers(cgroups: Sequence[CgroupMount]) -> tuple[str, ...]:
    names: set[str] = set()
    for mount in cgroups:
        names |= read_unified_controllers(Path(mount.path)) if mount.version == 2 else set(mount.options.split(","))
    return tuple(sorted(names))


def read_unified_controllers(top: Path) -> set[str]:
    """Controllers that cgroups below a mount of the unified hierarchy can get.

    All that the top has, unless it is not the kernel's root (in a container: then it has a type) and has processes:
    it cannot hand on more than it does already (cgroups(7), "no internal processes").
    """
    inside = (top / "cgroup.type").exists() and (top / "cgroup.procs").read_text().strip()
    return set((top / ("cgroup.subtree_control" if inside else "cgroup.controllers")).read_text().split())


def _config_files() -> list[tuple[str, str]]:
    directory = share.find_share() / "conf" / "testbed" if (_TOP / "conf" / "batch.yaml").exists() else None
    if directory is None or not directory.is_dir():
        return []
    return [(path.name, path.read_text()) for path in sorted(directory.iterdir()) if path.is_file()]


def _find_command(name: str) -> str | None:
    """The command as it was installed: beside this interpreter, or in the checkout's environment."""
    for place in (Path(sys.prefix) / "bin" / name, _TOP / ".venv" / "bin" / name):
        if place.exists():
            return str(place)
    return None


def parse_cgroup_mounts(mountinfo: str) -> tuple[CgroupMount, ...]:
    """The hierarchies that the nodes use: those of version 1 when Slurm's controllers are there, else the unified one.

    Named hierarchies without a controller (systemd's) are left alone.
    """
    first: dict[str, CgroupMount] = {}
    unified: CgroupMount | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        path = before.split()[4]
        if kind == "cgroup2" and unified is None:
            unified = CgroupMount(path, 2, "")
        if kind == "cgroup":
            wanted = [o for o in options.split(",") if o not in {"rw", "ro", "xattr", "noprefix"} and "=" not in o]
            if wanted:
                first.setdefault(",".join(wanted), CgroupMount(path, 1, ",".join(wanted)))
    if any("memory" in mount.options or "freezer" in mount.options for mount in first.values()):
        return tuple(sorted(first.values(), key=lambda mount: mount.path))
    return (unified,) if unified else ()


def find_reveals(needed: Iterable[str], covered: Sequence[str] = _COVERED) -> tuple[Reveal, ...]:
    """Directories to cover because users may not pass them, with what must stay reachable below them."""
    wanted: set[str] = set()
    for path in {os.path.realpath(each) for each in needed} | {os.path.abspath(each) for each in needed}:
        if os.path.isdir(path):
            # What is closed itself cannot be shown as it is, what is in it can.
            closed = _is_closed(Path(path), covered)
            wanted |= {os.path.join(path, name) for name in os.listdir(path)} if closed else {path}
    reveals: dict[str, list[str]] = {}
    for path in sorted(wanted):
        if any(path.startswith(f"{other}/") for others in reveals.values() for other in others):
            continue
        top = next((parent for parent in reversed(Path(path).parents) if _is_closed(parent, covered)), None)
        if top is not None:
            reveals.setdefault(str(top), []).append(path)
    return tuple(Reveal(closed, tuple(paths)) for closed, paths in reveals.items())


def _is_closed(directory: Path, covered: Sequence[str]) -> bool:
    return str(directory) in covered or not directory.stat().st_mode & stat.S_IXOTH
