# SPDX-License-Identifier: Apache-2.0
"""The ledger: what pvc-node did, or was about to do, for one job on this node.

    <state>/jobs/<job>/record.json     owner, boot, refusal, grants
    <state>/jobs/<job>/actions         one action a line, written before the effect
    <state>/jobs/<job>/inputs.json     what the plan follows from, to compare the node with it later
    <state>/jobs/<job>/plan.json       the grant and the taps, once all is applied
    <state>/jobs/<job>/upkeep.json     what was found undone by others, and put back

The directory is there as long as anything may have to be undone; removing it is the last act of a
tear-down. It is root's alone.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pvc.codec import dumps, from_data, loads, to_data
from pvc.errors import HostError
from pvc.files import remove_tree, write_atomic
from pvc.model.netview import Upkeep
from pvc.model.node import NodeGrant, Tap
from pvc.plan import actions
from pvc.plan.inputs import Inputs

LOG = logging.getLogger(__name__)
T = TypeVar("T")
# Records bear no mark of their format yet: all of them are as version 0.1.0 writes them.
RECORDS = "0.1.0"
_HINT = "it stays as it is while Slurm has the job; when that has ended, what can be told by its name is removed"
_TYPES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        actions.MakeRunDir,
        actions.MakeCacheDir,
        actions.AddNetns,
        actions.AddBridge,
        actions.AddVxlan,
        actions.AddTaps,
        actions.AddPeers,
        actions.AddPrograms,
        actions.AddSwitchTaps,
        actions.AddGateway,
        actions.AddSwitchPorts,
        actions.LoadFlows,
        actions.AddLeads,
        actions.JoinBridge,
        actions.BindDevice,
        actions.AddUplink,
        actions.LoadRules,
        actions.SetSysctl,
        actions.ForwardIpv6,
        actions.StartDnsmasq,
        actions.ClaimMembership,
    )
}


@dataclass(frozen=True)
class Refusal:
    """Why the request was not met although the node is well; told to the launcher."""

    exit_code: int
    message: str
    hint: str | None


@dataclass(frozen=True)
class Record:
    """Who a job is, and what this node handed out to it. ``boot`` names the boot it was set up in, ``opened_ns`` the
    moment (time_ns(3) of its start): a job can be set up twice.
    """

    job_id: int
    uid: int
    boot: str
    uplink_slot: int | None = None
    ports: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    meters: tuple[int, ...] = ()
    refusal: Refusal | None = None
    opened_ns: int = 0
    mark: str = ""


@dataclass(frozen=True)
class Ready:
    """What an attaching supervisor gets, once everything is applied."""

    grant: NodeGrant
    netns: str
    taps: tuple[Tap, ...]


class UnreadableError(HostError):
    """What a ledger says is not understood: it was written by another version of pvc, or the disk lost some of it.

    Nothing may be concluded from it, and it stays as it is.
    """


class Ledger:
    """One job's directory. The caller holds the job's lock."""

    def __init__(self, state: Path, job_id: int) -> None:
        self.path = state / "jobs" / str(job_id)

    def exists(self) -> bool:
        """Whether anything of the job is recorded."""
        return self.path.is_dir()

    def open(self, record: Record) -> None:
        """Start the ledger of a job.

        :raise OSError: the state directory cannot be written.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.write_record(record)

    def write_record(self, record: Record) -> None:
        """Replace the record."""
        write_atomic(self.path / "record.json", dumps(record), mode=0o600)

    def read_record(self) -> Record | None:
        """The record; None when there is none.

        :raise UnreadableError: it is not understood.
        """
        return _load(Record, self.path / "record.json")

    def intend(self, steps: Sequence[actions.Action]) -> None:
        """Record actions before they are done; on disk, so that a power failure cannot forget a claim."""
        lines = "".join(_encode(step) + "\n" for step in steps)
        fd = os.open(self.path / "actions", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as stream:
            stream.write(lines)
            stream.flush()
            os.fdatasync(stream.fileno())

    def read_actions(self, *, any_left_out: bool = False) -> list[actions.Action]:
        """Recorded actions in order of creation; a torn last line was never acted upon.

        ``any_left_out``: those that are not understood are, instead of an error.

        :raise UnreadableError: one is not understood.
        """
        try:
            lines = (self.path / "actions").read_text().split("\n")
        except FileNotFoundError:
            return []
        steps: list[actions.Action] = []
        for number, line in enumerate(lines[:-1], start=1):
            try:
                steps.append(_decode(line))
            except (ValueError, KeyError, TypeError) as err:
                text = f"{self.path}/actions:{number} is not understood"
                if not any_left_out:
                    raise UnreadableError(text, hint=_HINT) from err
                LOG.warning("%s: it is left out", text)
        return steps

    def keep(self, steps: Sequence[actions.Action]) -> None:
        """Replace the recorded actions by those that are still to be undone."""
        write_atomic(self.path / "actions", "".join(_encode(step) + "\n" for step in steps), mode=0o600, sync=True)

    def write_inputs(self, inputs: Inputs) -> None:
        """Record what the plan follows from."""
        write_atomic(self.path / "inputs.json", dumps(inputs), mode=0o600)

    def read_inputs(self) -> Inputs | None:
        """What the plan followed from; None when that is not known, as after an update of pvc."""
        try:
            return _load(Inputs, self.path / "inputs.json")
        except UnreadableError:
            return None

    def write_ready(self, ready: Ready) -> None:
        """Record that all is applied."""
        write_atomic(self.path / "plan.json", dumps(ready), mode=0o600)

    def read_ready(self) -> Ready | None:
        """What to tell a supervisor; None while the job is not set up.

        :raise UnreadableError: it is not understood.
        """
        return _load(Ready, self.path / "plan.json")

    def write_upkeep(self, upkeep: Upkeep) -> None:
        """Record what the last look at the job's networks found."""
        write_atomic(self.path / "upkeep.json", dumps(upkeep), mode=0o600)

    def read_upkeep(self) -> Upkeep:
        """The same; nothing found, where that is not known."""
        try:
            return _load(Upkeep, self.path / "upkeep.json") or Upkeep()
        except UnreadableError:
            return Upkeep()

    def is_settled(self) -> bool:
        """Whether the set-up has come to an end of which nothing is to be undone now: all is applied, or it is refused
        and undone.
        """
        if (self.path / "plan.json").exists():
            return True
        record = self.read_record()
        return record is not None and record.refusal is not None and not self.read_actions()

    def unready(self) -> None:
        """From here on nobody attaches any more."""
        with suppress(FileNotFoundError):
            (self.path / "plan.json").unlink()

    def remove(self) -> None:
        """Forget the job: nothing of it is left."""
        remove_tree(self.path)


def read_jobs(state: Path) -> list[int]:
    """The jobs with a ledger."""
    try:
        return sorted(int(entry.name) for entry in os.scandir(state / "jobs") if entry.name.isdecimal())
    except FileNotFoundError:
        return []


def _encode(step: actions.Action) -> str:
    return json.dumps([type(step).__name__, to_data(_slim(step))], separators=(",", ":"))


def _decode(line: str) -> actions.Action:
    name, data = json.loads(line)
    step: actions.Action = from_data(_TYPES[name], data)
    return step


def _slim(step: actions.Action) -> actions.Action:
    """What undoing needs: the contents of namespaces go with them, so their size is not on the node's path."""
    match step:
        case actions.AddPeers():
            return replace(step, peers=())
        case actions.AddPrograms():
            return replace(step, ports=(), elsewhere=())
        case actions.LoadRules():
            return replace(step, text="")
        case actions.LoadFlows():
            return replace(step, text="", peers=())
        case actions.StartDnsmasq():
            return replace(step, config="", zones=())
    return step


def _load(kind: type[T], path: Path) -> T | None:
    try:
        return loads(kind, path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as err:
        raise UnreadableError(f"{path} is not understood", hint=_HINT) from err
