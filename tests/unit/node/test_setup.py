"""Numbers and devices of a node, handed out to jobs by their ledgers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import JobError, UsageError
from pvc.model.host import PciDevice
from pvc.model.network import PciNetwork, ResourceSet
from pvc.node import setup
from pvc.node.context import Context
from pvc.plan.node import find_share
from pvc.plan.placement import place
from pvc.state.ledger import Ledger, Record
from tests.unit.plan.worlds import SITE, facts_of, job_of, request_of

ADDRESSES = tuple(f"0000:3b:00.{number}" for number in range(4))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "run" / "locks").mkdir(parents=True)
    (tmp_path / "run" / "locks" / "node").touch()
    return Context(tmp_path / "conf", tmp_path / "state", tmp_path / "run")


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
