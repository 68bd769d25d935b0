# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import HostError
from pvc.model.host import Grants
from pvc.plan import actions
from pvc.plan.inputs import collect
from pvc.state.ledger import Ledger, Ready, Record, UnreadableError, read_jobs
from tests.unit.plan.worlds import SITE, facts_of, job_of, plan_of, request_of

RECORD = Record(12, 1000, "boot", 3, (60000, 60001))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path, 12)
    made.open(RECORD)
    return made


def test_every_action_comes_back_with_what_undoing_needs(ledger: Ledger) -> None:
    plan = plan_of(job_of(3, 4), request_of(("both", 4), cpus=2))
    steps = (actions.ClaimMembership(12, "n1"), *plan.actions)
    ledger.intend(steps[:1])
    ledger.intend(steps[1:])
    read = ledger.read_actions()
    assert [type(step) for step in read] == [type(step) for step in steps]
    for step, back in zip(steps, read, strict=True):
        match step:
            case actions.AddPeers():
                assert back == replace(step, peers=())
            case actions.AddPrograms():
                assert back == replace(step, ports=(), elsewhere=())
            case actions.LoadRules():
                assert back == replace(step, text="")
            case actions.StartDnsmasq():
                assert back == replace(step, config="", zones=())
            case _:
                assert back == step


def test_a_torn_last_line_was_never_acted_upon(ledger: Ledger) -> None:
    ledger.intend([actions.AddNetns("pvc-12")])
    with (ledger.path / "actions").open("a") as stream:
        stream.write('["AddNetns",{"net')
    assert (ledger.path / "actions").read_text().startswith('{"version":"1.0"}\n')
    assert ledger.read_actions() == [actions.AddNetns("pvc-12")]


def test_damage_elsewhere_is_named(ledger: Ledger) -> None:
    (ledger.path / "actions").write_text('["Format","/dev/sda"]\n')
    with pytest.raises(HostError, match="actions:1 is not understood"):
        ledger.read_actions()


def test_record_and_readiness_round_trip(ledger: Ledger) -> None:
    plan = plan_of(job_of(1, 4), request_of(("nat", 2)))
    assert ledger.read_record() == RECORD
    assert ledger.read_ready() is None
    ready = Ready(plan.grant, plan.netns, plan.taps)
    ledger.write_ready(ready)
    assert ledger.read_ready() == ready
    ledger.unready()
    ledger.unready()
    assert ledger.read_ready() is None


@pytest.mark.parametrize("text", ['{"job_id":12', "", '{"job_id":12,"uid":"root","boot":"boot"}', "[]"])
def test_what_is_not_understood_is_not_taken_for_nothing(ledger: Ledger, text: str) -> None:
    (ledger.path / "record.json").write_text(text)
    with pytest.raises(UnreadableError, match=r"record\.json is not understood"):
        ledger.read_record()


def test_what_is_understood_besides(ledger: Ledger) -> None:
    known = actions.AddNetns("pvc-12")
    ledger.intend([known])
    with (ledger.path / "actions").open("a") as stream:
        stream.write('["AddNetns",{"netns":13}]\n["Unknown",{}]\n[1]\n')
    ledger.intend([known])
    with pytest.raises(UnreadableError, match="actions:3"):
        ledger.read_actions()
    assert ledger.read_actions(any_left_out=True) == [known, known]


def test_jobs_are_directories_with_a_number(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "jobs" / ".7.tmp").mkdir()
    assert read_jobs(tmp_path) == [12]
    ledger.remove()
    assert read_jobs(tmp_path) == []
    assert read_jobs(tmp_path / "nowhere") == []


def test_only_root_may_read_it(ledger: Ledger) -> None:
    assert ledger.path.stat().st_mode & 0o077 == 0


def test_the_inputs_give_the_plan_again(ledger: Ledger) -> None:
    job, request = job_of(3, 4), request_of(("both", 2), ("nat", 2), cpus=2)
    facts, grants = facts_of(job), Grants({"nat": 5001, "back": 5002}, 3, (60000, 60001))
    ledger.write_inputs(collect(job, request, SITE, facts, grants))
    inputs = ledger.read_inputs()
    assert inputs is not None
    assert set(inputs.site.resource_sets) == {"both", "nat"}
    assert inputs.plan() == plan_of(job, request, slot=3)


def test_inputs_of_another_version_are_not_known(ledger: Ledger) -> None:
    (ledger.path / "inputs.json").write_text('{"job": 12}')
    assert ledger.read_inputs() is None
