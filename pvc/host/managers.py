# SPDX-License-Identifier: Apache-2.0
"""Services that configure a node's devices, by their own words: which devices they have, and which they would take."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvc import run
from pvc.errors import CommandError
from pvc.files import read_text
from pvc.plan.unmanaged import (
    NETWORKD,
    NETWORKMANAGER,
    NetworkFile,
    left_by_networkmanager,
    parse_network_file,
    parse_unmanaged,
    taken_by_networkd,
)

_TIMEOUT_S, _COLUMNS = 20.0, 5
_NETWORKD_STATE = Path("/run/systemd/netif/state")
# systemd.network(5): a name in an earlier one hides the same in a later one.
NETWORK_DIRS = tuple(Path(each, "systemd/network") for each in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"))


@dataclass(frozen=True)
class Manager:
    """A service that runs: the devices that it has for its own, and of names that were asked for, those that it would
    take, with the file that says so ("" where none is needed).
    """

    name: str
    held: tuple[str, ...]
    taken: Mapping[str, str]


def read_managers(names: Sequence[str]) -> tuple[Manager, ...]:
    """Those that run.

    :raise CommandError: one does not answer.
    """
    return tuple(each for each in (_read_networkmanager(names), _read_networkd(names)) if each is not None)


def _read_networkmanager(names: Sequence[str]) -> Manager | None:
    if shutil.which("nmcli", path=run.PATH) is None:
        return None
    try:
        said = _ask("nmcli", "-t", "-f", "DEVICE,STATE", "device")
    except CommandError:
        return None  # 8 says that it does not run (nmcli(1), EXIT STATUS), 1 that there is no D-Bus
    found = [line.rpartition(":") for line in said.splitlines() if ":" in line]
    # Of what others configured it only keeps an eye, whatever becomes of it (tried, 1.42).
    held = tuple(name for name, _, state in found if state not in ("unmanaged", "connected (externally)"))
    left = parse_unmanaged(_ask("NetworkManager", "--print-config"))
    return Manager(NETWORKMANAGER, held, {name: "" for name in names if not left_by_networkmanager(name, left)})


def _read_networkd(names: Sequence[str]) -> Manager | None:
    # It writes this when it starts (sd-network), and without it there may be no bus to ask at.
    if shutil.which("networkctl", path=run.PATH) is None or not _NETWORKD_STATE.exists():
        return None
    rows = [line.split() for line in _ask("networkctl", "list", "--no-legend", "--no-pager").splitlines()]
    rows = [row for row in rows if len(row) == _COLUMNS]
    # IDX LINK TYPE OPERATIONAL SETUP (networkctl(1)); where the service does not run, nobody knows the fourth.
    if all(row[3] in ("-", "n/a") for row in rows):
        return None
    held = tuple(row[1] for row in rows if row[4] != "unmanaged")
    files = _read_files(NETWORK_DIRS)
    return Manager(NETWORKD, held, {name: by for name in names if (by := taken_by_networkd(name, files)) is not None})


def _read_files(directories: Sequence[Path]) -> tuple[NetworkFile, ...]:
    found: dict[str, Path] = {}
    for directory in directories:
        for path in directory.glob("*.network"):
            found.setdefault(path.name, path)
    return tuple(parse_network_file(name, read_text(path, default="")) for name, path in sorted(found.items()))


def _ask(*argv: str) -> str:
    return run.run(argv, timeout_s=_TIMEOUT_S)
