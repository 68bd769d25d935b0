# SPDX-License-Identifier: Apache-2.0
"""Numbers and devices of a node, handed out to jobs by their ledgers."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import CommandError, HostError, JobError, UsageError, is_shortage
from pvc.files import locked
from pvc.model.host import PciDevice
from pvc.model.network import PciNetwork, ResourceSet
from pvc.node import setup
from pvc.node.context import Context, read_boot_id
from pvc.plan.node import find_share
from pvc.plan.placement import place
from pvc.state.ledger import Ledger, Record, Refusal
from tests.unit.plan.worlds import SITE, facts_of, job_of, request_of

ADDRESSES = tuple(f"0000:3b:00.{number}" for number in range(4))


def take(context: Context, job_id: int, count: int) -> tuple[str, ...]:
    """What a job gets that wants ``count`` devices on this node."""
    gpu = PciNetwork("gpu", ADDRESSES, "nouveau")
    site = replace(SITE, devices={"gpu": gpu}, resource_sets={"gpu": ResourceSet("gpu", ("gpu",))})
    job, request = job_of(1, count, job_id=job_id), request_of(("gpu", count), cpus=1)
    devices = {address: PciDevice("nouveau", number) for number, address in enumerate(ADDRESSES)}
    facts, placement = replace(facts_of(job), devices=devices), place(job.nodes, job.cpus, request)
    needs = setup._Needs(job, request, placement, find_share(placement, job.node), site, (), facts)
    ledger, record = Ledger(context.state_dir, job_id), Record(job_id, 1000, "boot")
    ledger.open(record)
    try:
        return setup._take_devices(context, ledger, record, needs)["gpu"]
    except UsageError:
        ledger.remove()
        raise


def test_no_device_is_two_jobs(context: Context) -> None:
    assert take(context, 12, 2) == ADDRESSES[:2]
    assert take(context, 13, 1) == ADDRESSES[2:3]
    with pytest.raises(UsageError, match="2 devices wanted, 1 of 4 are free"):
        take(context, 14, 2)
    Ledger(context.state_dir, 12).remove()
    assert take(context, 14, 3) == (*ADDRESSES[:2], ADDRESSES[3])


def test_what_a_job_got_is_recorded_beside_the_rest(context: Context) -> None:
    assert take(context, 12, 1) == ADDRESSES[:1]
    record = Ledger(context.state_dir, 12).read_record()
    assert record is not None
    assert (record.devices, record.uid) == (ADDRESSES[:1], 1000)


def test_a_component_whose_siblings_are_not_known_is_refused(context: Context) -> None:
    alone = replace(job_of(1, 4, job_id=13), het_job_id=12)
    with pytest.raises(JobError, match="did not tell which nodes the other components of job 13 have"):
        setup.plan_dry(context, alone, "1;sizes=1:4,1:4;nat:2")


def test_what_planning_cannot_do_is_refused_and_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    """A request is a user's; nothing of it reaches root's log raw."""
    with pytest.raises(JobError, match="cannot plan this request: KeyError"), setup._planning():
        raise KeyError("\x1b]0;owned\x07\nroot: all is well")
    assert "KeyError" in caplog.text
    assert "\x1b" not in caplog.text
    assert not any(line.startswith("root:") for line in caplog.text.splitlines())
    for honest in (UsageError("no"), OSError(5, "broken")):
        with pytest.raises(type(honest)), setup._planning():
            raise honest


def test_steps_of_a_refused_job_wait_for_no_lock(context: Context) -> None:
    """Each asks, and there may be thousands at once."""
    job = job_of(1, 1, job_id=12)
    refusal = Refusal(2, "no", None)
    Ledger(context.state_dir, 12).open(Record(12, job.uid, read_boot_id(), refusal=refusal))
    with locked(context.runtime_dir / "locks" / "12"):
        assert setup.set_up(context, job, "", again=False) == "was there"


def test_a_refusal_that_the_ledger_had_no_room_for_lasts_until_the_next_set_up(context: Context) -> None:
    job = job_of(1, 1, job_id=12)
    refused = Record(12, job.uid, read_boot_id(), refusal=Refusal(3, "no room", None))
    Ledger(context.runtime_dir, 12).open(refused)
    with locked(context.runtime_dir / "locks" / "12"):
        assert setup.set_up(context, job, "", again=False) == "was there"
    assert context.read_record(12) == refused
    assert setup.set_up(context, job, "nonsense").startswith("refused: ")
    found = context.read_record(12)
    assert found is not None
    assert found == Ledger(context.state_dir, 12).read_record()
    assert found.refusal is not None
    assert found.refusal.message != "no room"


def test_a_fault_names_the_path_that_it_is_about(context: Context, tmp_path: Path) -> None:
    err = setup._explain(PermissionError(errno.EPERM, "Operation not permitted", "/proc/sys/net/ipv4/ip_forward"))
    assert str(err) == "the set-up failed: Operation not permitted (/proc/sys/net/ipv4/ip_forward)"
    assert str(setup._explain(OSError(errno.EIO, "broken", 7))) == "the set-up failed: broken"
    place = tmp_path / "state" / "jobs"
    place.parent.mkdir()
    place.touch()
    with pytest.raises(HostError) as caught:
        setup.set_up(context, job_of(1, 1, job_id=12), "")
    assert f"({place}" in str(caught.value)


@pytest.mark.parametrize(
    ("err", "short"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (BlockingIOError(errno.EAGAIN, "no processes"), True),
        (CommandError(["nft"], -9, ""), True),
        (CommandError(["nft"], 1, "no"), False),
        (OSError(errno.EIO, "broken"), False),
        (KeyError("x"), False),
    ],
)
def test_what_users_can_use_up_is_told_from_faults(err: Exception, short: bool) -> None:
    outer = HostError("cannot do MakeRunDir")
    outer.__cause__ = err
    assert is_shortage(err) == is_shortage(outer) == short
