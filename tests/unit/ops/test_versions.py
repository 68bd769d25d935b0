# SPDX-License-Identifier: Apache-2.0
"""What a launcher, supervisors and nodes leave for others, in the words of other versions."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pvc.codec import Format, OtherVersionError
from pvc.errors import JobError, StateError, UsageError
from pvc.host.drives import find_leases, publish_lease
from pvc.model.cluster import CLUSTER, LAUNCH, ClusterRecord, ClusterSpec
from pvc.model.drive import LEASE, Lease
from pvc.ops import handover
from pvc.ops.forwards import Running
from pvc.ops.jobdir import JobDir
from pvc.state import membership
from pvc.state.memory import MemoryStore
from pvc.state.store import Put
from pvc.supervisor.main import read_spec
from tests.unit.plan.test_services import RICH
from tests.unit.plan.worlds import BACK

OLD = Path(__file__).parents[2] / "data" / "0.1.0"
DOCUMENTS: list[tuple[Format, Any, str]] = [
    (LAUNCH, ClusterSpec, "spec"),
    (CLUSTER, ClusterRecord, "cluster"),
    (CLUSTER, Running, "forward"),
    (LEASE, Lease, "lease"),
]


@pytest.mark.parametrize(("form", "kind", "name"), DOCUMENTS)
def test_documents_of_other_versions(form: Format, kind: Any, name: str) -> None:
    text = (OLD / "user" / f"{name}.json").read_text()
    value = form.loads(kind, text)
    document = json.loads(form.dumps(value))
    assert document.pop("version") == str(form)
    assert document == json.loads(text)
    later = {**document, "version": f"{form.major}.9", "colour": {"of": "it"}}
    assert form.loads(kind, json.dumps(later)) == value
    with pytest.raises(OtherVersionError, match=rf"it is of format 7\.1, and this pvc reads {form.major}\.x"):
        form.loads(kind, json.dumps({"version": "7.1", "all": "else"}))


def test_a_hand_over_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    given = handover.decode((OLD / "user" / "PVC_LAUNCH").read_text())
    assert (given.order.definition, given.wait, given.quiet) == ("plain:3", True, True)
    assert handover.decode(handover.encode(given)) == given
    monkeypatch.setattr(handover, "LAUNCH", Format(2, 0))
    text = handover.encode(given)
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"another version of pvc: it is of format 2\.0, and this pvc reads 1\.x"):
        handover.decode(text)


def test_a_cluster_of_another_version(tmp_path: Path) -> None:
    jobdir = JobDir(tmp_path)
    shutil.copy(OLD / "user" / "cluster.json", jobdir.record_path)
    assert jobdir.read_record().definition == "web:2,db:1"
    jobdir.record_path.write_text('{"version":"2.0"}')
    with pytest.raises(JobError, match=r"it is of format 2\.0, and this pvc reads 1\.x") as caught:
        jobdir.read_record()
    assert "another version of pvc" in (caught.value.find_hint() or "")


def test_a_launcher_of_another_version() -> None:
    def read(line: bytes) -> ClusterSpec:
        reader, writer = os.pipe()
        os.write(writer, line)
        os.close(writer)
        try:
            return read_spec(reader)
        finally:
            os.close(reader)

    assert read((OLD / "user" / "spec.json").read_bytes()).job_id == 7
    with pytest.raises(UsageError, match=r"it is of format 2\.0, and this pvc reads 1\.x"):
        read(b'{"version":"2.0"}\n')


def test_a_lease_of_another_version(tmp_path: Path) -> None:
    drive = tmp_path / "data"
    drive.touch()
    lease = LEASE.loads(Lease, (OLD / "user" / "lease.json").read_text())
    own = publish_lease(drive, lease)
    other = tmp_path / ".data.pvc-lease.0123456789abcdef"
    shutil.copy(OLD / "user" / "lease.json", other)
    assert [each.lease for each in find_leases(drive, own)] == [lease]
    other.write_text('{"version":"2.0"}')
    (found,) = find_leases(drive, own)
    assert (found.lease, found.foreign) == (None, "it is of format 2.0, and this pvc reads 1.x")
    own.withdraw()


def keep(_: str, value: str) -> str:
    return value


def store_of(change: Callable[[str, str], str]) -> MemoryStore:
    """What 0.1.0 had in the store, with changes."""
    store = MemoryStore()
    old = json.loads((OLD / "etcd.json").read_text())
    store.transact([], [Put(key, change(key, value)) for key, value in old.items()])
    return store


def add_field(key: str, value: str) -> str:
    if "/same/" in key:
        return json.dumps({**json.loads(value), "version": "1.9", "colour": "blue"})
    return f"{value} later" if "/nodes/n1" in key else value


@pytest.mark.parametrize("change", [keep, add_field])
def test_nodes_join_and_leave_those_of_other_versions(change: Callable[[str, str], str]) -> None:
    store = store_of(change)
    for node in (1, 2, 3):
        member = membership.Member(f"n{node}", f"10.99.0.{node}", "centre")
        assert membership.join(store, 12, member, [RICH, BACK]) == {"nat": 1108, "back": 1109}
    for node in (1, 2, 3):
        membership.leave(store, 12, f"n{node}")
    assert store.read_prefix("") == {}


def test_a_cluster_that_another_major_version_began() -> None:
    store = store_of(lambda key, value: '{"version":"2.0"}' if "/same/" in key else value)
    with pytest.raises(StateError, match=r"it is of format 2\.0, and this pvc reads 1\.x"):
        membership.join(store, 12, membership.Member("n3", "10.99.0.3", "centre"), [RICH])
    membership.leave(store, 12, "n3")
    assert "v1/jobs/12/nodes/n1" in store.read_prefix("")
