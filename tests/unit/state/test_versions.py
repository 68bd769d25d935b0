# SPDX-License-Identifier: Apache-2.0
"""Ledgers of other versions: what 0.1.0 wrote is undone, a later one's additions are left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.node import setup
from pvc.node.context import Context
from pvc.node.teardown import tear_down, undo_recorded
from pvc.state import ledger
from pvc.state.ledger import ForeignError, Ledger, UnreadableError, read_jobs
from tests.unit.plan.worlds import job_of

OLD = Path(__file__).parents[2] / "data" / "0.1.0" / "node"
JOBS = read_jobs(OLD)
SET_UP = [job_id for job_id in JOBS if (OLD / f"jobs/{job_id}/plan.json").exists()]
FILES = ("record.json", "plan.json", "inputs.json", "upkeep.json")


def copy(job_id: int, state: Path) -> Ledger:
    """A job of 0.1.0 with a ledger in ``state``."""
    copied = Ledger(state, job_id)
    shutil.copytree(OLD / "jobs" / str(job_id), copied.path)
    return copied


def write_again(found: Ledger) -> None:
    """Everything in this version's words."""
    record, ready, inputs = found.read_record(), found.read_ready(), found.read_inputs()
    assert record is not None
    found.write_record(record)
    if ready is not None and inputs is not None:
        found.keep(found.read_actions())
        found.write_ready(ready)
        found.write_inputs(inputs)


def contents(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir()}


def test_the_old_records_have_every_action() -> None:
    assert list(range(12, 19)) == JOBS
    found = {type(step).__name__ for job_id in JOBS for step in Ledger(OLD, job_id).read_actions()}
    assert found >= set(ledger._TYPES)


@pytest.mark.parametrize("job_id", JOBS)
def test_what_0_1_0_wrote_is_undone(job_id: int) -> None:
    """Each line of it is an action, with all that was written."""
    old = Ledger(OLD, job_id)
    record = old.read_record()
    assert record is not None
    assert (record.job_id, record.uid, record.boot) == (job_id, 1000, "b0a7/1")
    path = old.path / "actions"
    lines = path.read_text().splitlines() if path.exists() else []
    for line, step in zip(lines, old.read_actions(), strict=True):
        name, fields = json.loads(line)
        assert type(step).__name__ == name
        assert ledger.to_data(step).items() >= fields.items()
    assert old.is_settled()


@pytest.mark.parametrize("job_id", SET_UP)
def test_what_0_1_0_wrote_is_compared_and_served(job_id: int) -> None:
    old = Ledger(OLD, job_id)
    inputs, ready = old.read_inputs(), old.read_ready()
    assert inputs is not None
    assert ready is not None
    plan = inputs.plan()
    assert (plan.grant, plan.netns, plan.taps) == (ready.grant, ready.netns, ready.taps)
    planned = [ledger._slim(step) for step in plan.actions]
    assert planned == old.read_actions()[1:]  # before them the membership is claimed
    assert len(Ledger(OLD, 12).read_upkeep().mended) == 1


@pytest.mark.parametrize("job_id", JOBS)
def test_written_again_it_says_the_same_with_a_version(job_id: int, tmp_path: Path) -> None:
    old, new = Ledger(OLD, job_id), copy(job_id, tmp_path)
    write_again(new)
    assert json.loads((new.path / "record.json").read_text())["version"] == str(ledger.LEDGER)
    assert new.read_record() == old.read_record()
    assert new.read_actions() == old.read_actions()
    assert new.read_ready() == old.read_ready()
    assert new.read_inputs() == old.read_inputs()


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)


def places(data: Any) -> Iterator[dict[str, Any]]:
    """Every object of a document; ``ports`` has the VMs' ports for keys, and no fields."""
    if isinstance(data, dict):
        yield data
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if key != "ports":
            yield from places(value)


@given(data=st.data())
def test_what_is_not_known_changes_nothing_that_is_undone(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    old = Ledger(OLD, data.draw(st.sampled_from(SET_UP)))
    new = copy(int(old.path.name), tmp_path_factory.mktemp("state"))
    if data.draw(st.booleans()):
        write_again(new)

    def spoil(text: str) -> str:
        document = json.loads(text)
        field = f"new-{data.draw(st.text(max_size=3))}"
        data.draw(st.sampled_from(list(places(document))))[field] = data.draw(json_values)
        return json.dumps(document)

    for name in ("record.json", "plan.json"):
        (new.path / name).write_text(spoil((new.path / name).read_text()))
    lines = [spoil(line) for line in (new.path / "actions").read_text().splitlines()]
    # Not before the line with the version
    at = data.draw(st.integers(1, len(lines)))
    lines.insert(at, json.dumps([f"Add{data.draw(st.text(max_size=5))}New", {"netns": "pvc-1"}]))
    (new.path / "actions").write_text("\n".join(lines) + "\n")
    assert new.read_record() == old.read_record()
    assert new.read_ready() == old.read_ready()
    assert new.read_actions() == old.read_actions()


@given(data=st.data())
def test_what_was_cut_off_is_left_alone(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    new = copy(data.draw(st.sampled_from(JOBS)), tmp_path_factory.mktemp("state"))
    if data.draw(st.booleans()):
        write_again(new)
    text = (new.path / "record.json").read_text()
    (new.path / "record.json").write_text(text[: data.draw(st.integers(0, len(text) - 1))])
    before = contents(new.path)
    with pytest.raises(UnreadableError) as caught:
        new.read_record()
    assert not isinstance(caught.value, ForeignError)
    assert contents(new.path) == before


@pytest.mark.parametrize("name", FILES[1:3])
def test_a_plan_is_not_made_without_what_is_not_known(name: str, tmp_path: Path) -> None:
    """Else a node would be changed back to what an earlier version knows."""
    new = copy(12, tmp_path)
    document = json.loads((new.path / name).read_text())
    (new.path / name).write_text(json.dumps({"version": "1.7", "colour": "blue", **document}))
    assert new.read_ready() is not None
    assert (new.read_inputs() is None) == (name == "inputs.json")


def make_foreign(found: Ledger, version: str = "2.0") -> dict[str, bytes]:
    """As another major version wrote it, in all of its files; what they are then."""
    for name in FILES:
        if (path := found.path / name).exists():
            path.write_text(json.dumps({"version": version, "all": "else"}))
    if (path := found.path / "actions").exists():
        path.write_text(f'{{"version":"{version}","more":[]}}\n{{"do":"all else"}}\n')
    return contents(found.path)


@pytest.mark.parametrize("version", ["0.9", "2.0", "17.3"])
def test_another_major_version_is_told_with_both(version: str, tmp_path: Path) -> None:
    new = copy(12, tmp_path)
    make_foreign(new, version)
    for read in (new.read_record, new.read_actions, new.read_ready):
        with pytest.raises(ForeignError, match=rf"it is of format {version}, and this pvc reads 1\.x") as caught:
            read()
        assert "start the pvc-node that wrote it again" in (caught.value.find_hint() or "")
    assert new.read_inputs() is None
    assert new.is_settled()


@pytest.mark.parametrize("version", ["", "1", "1.x", "-1.0", "1.0.0", "١.٠", 1, 1.0, None, [], {}])
def test_what_is_no_version_is_damage(version: Any, tmp_path: Path) -> None:
    new = copy(12, tmp_path)
    document = json.loads((new.path / "record.json").read_text())
    (new.path / "record.json").write_text(json.dumps({**document, "version": version}))
    with pytest.raises(UnreadableError) as caught:
        new.read_record()
    assert not isinstance(caught.value, ForeignError)


@pytest.mark.parametrize("job_id", [12, 18])
def test_a_job_of_another_major_version_ends_without_a_fault(
    job_id: int, context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    """An epilog that failed would drain the node; that nothing was undone is said once, however often it is asked."""
    new = copy(job_id, context.state_dir)
    before = make_foreign(new)
    for _ in range(3):
        assert tear_down(context, job_id).startswith("left as it is: ")
    assert contents(new.path) == before
    assert [record.message for record in caplog.records if "format 2.0" in record.message] != []
    assert caplog.text.count("format 2.0") == 1
    with pytest.raises(ForeignError):
        undo_recorded(context, new)
    assert contents(new.path) == before


@pytest.mark.parametrize("again", [True, False])
def test_a_set_up_over_another_major_version_is_refused(again: bool, context: Context) -> None:
    new = copy(12, context.state_dir)
    before = make_foreign(new)
    said = setup.set_up(context, job_of(1, 2), "1;nat:1", again=again)
    assert contents(new.path) == before
    if not again:  # a step's question: its cluster may run, and nothing about it changes
        assert said.startswith("left as it is: ")
        assert read_jobs(context.runtime_dir) == []
        return
    assert said.startswith("refused: this node cannot set up job 12: ")
    refused = context.read_record(12)
    assert refused is not None
    assert refused.refusal is not None
    assert refused.refusal.exit_code == 4
    assert "format 2.0, and this pvc reads" in refused.refusal.message
    tear_down(context, 12)
    assert read_jobs(context.runtime_dir) == []
    assert contents(new.path) == before
