# SPDX-License-Identifier: Apache-2.0
"""What of Slurm's own configuration on a node does not go together with pvc: an old plug-in, ports of srun."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pvc import __version__
from pvc.errors import JobError
from pvc.model.network import EthernetNetwork
from pvc.ops.checkup import Finding, fail, ok

PLUGIN = "pvc.so"
_PLUGSTACK = "/etc/slurm/plugstack.conf"
# spank/dispatch.c
_MARK = re.compile(rb"pvc plug-in of ([0-9A-Za-z.+~-]+);")
_DEPTH = 8  # of files that include others


def check_plugin(settings: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the pvc.so that plugstack.conf(5) names is of this pvc; ``settings`` are Slurm's (scontrol show config).

    :raise JobError: a file cannot be read.
    """
    releases = read_plugins(settings)
    if not releases:
        yield fail(
            "plug-in", f"{_plugstack(settings)} names no {PLUGIN}", "see conf/plugstack.conf, and restart slurmd"
        )
    for path, release in releases.items():
        there = f"pvc {release}" if release else "an older version"
        if release == __version__:
            yield ok("plug-in", f"{path} is of {there}")
        else:
            fix = "make spank and make -C spank install, for the Slurm of this node; then restart slurmd"
            yield fail("plug-in", f"{path} is of {there}, and this is {__version__}", fix)


def read_plugins(settings: Mapping[str, str]) -> dict[Path, str | None]:
    """The version of each pvc.so that plugstack.conf(5) names; None: it is so old that it does not tell.

    :raise JobError: a file cannot be read.
    """
    plugstack = _plugstack(settings)
    try:
        found = list(dict.fromkeys(_find_plugins(plugstack, settings.get("PluginDir", ""), _DEPTH)))
        marks = {path: _MARK.search(path.read_bytes()) for path in found}
    except OSError as err:
        raise JobError(f"{err.filename} cannot be read: {err.strerror}", hint=f"see {plugstack}") from err
    return {path: mark[1].decode() if mark else None for path, mark in marks.items()}


def _plugstack(settings: Mapping[str, str]) -> Path:
    return Path(settings.get("PlugStackConfig") or _PLUGSTACK)


def _find_plugins(path: Path, folders: str, depth: int) -> Iterator[Path]:
    for line in path.read_text(errors="replace").splitlines():
        words = line.partition("#")[0].split()
        if len(words) >= 2 and words[0] == "include" and depth:
            pattern = Path(words[1]) if Path(words[1]).is_absolute() else path.parent / words[1]
            for each in sorted(pattern.parent.glob(pattern.name)):
                yield from _find_plugins(each, folders, depth - 1)
        elif len(words) >= 2 and words[0] in ("required", "optional") and Path(words[1]).name == PLUGIN:
            places = (Path(folder) / words[1] for folder in folders.split(":"))  # an absolute path is itself
            yield next((place for place in places if place.exists()), Path(words[1]))


def check_srun_ports(networks: Iterable[EthernetNetwork], settings: Mapping[str, str]) -> Iterator[Finding]:
    """Whether srun listens (slurm.conf(5), SrunPortRange) where a network's reverse-nat leads to VMs."""
    said = settings.get("SrunPortRange", "")
    match = re.fullmatch(r"(\d+)-(\d+)", said)
    if match is None or said == "0-0":
        return
    low, high = int(match[1]), int(match[2])
    for network in networks:
        for entry in network.reverse_nat:
            first, last = max(low, entry.min_host_port), min(high, entry.max_host_port)
            if first <= last:
                text = (
                    f"network {network.name}: ports {first} to {last} of its reverse-nat are also in Slurm's "
                    f"SrunPortRange={said}, where srun has to listen on nodes"
                )
                yield fail("ports", text, "give one of both another range: networks.yaml, or slurm.conf")
