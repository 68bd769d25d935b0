# SPDX-License-Identifier: Apache-2.0
"""Who has places of their own at pvc-node's socket: the owners of this node's jobs, whatever became of these."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc.node.context import Context, NodeName
from pvc.node.daemon import Daemon
from pvc.node.places import MOST_OF_OWNER, MOST_OF_STRANGERS, Places
from pvc.plan import actions
from pvc.state.ledger import Ledger, Record, Refusal

OWNER, STRANGER = 1000, 2000
REFUSED = Record(12, OWNER, "boot", refusal=Refusal(4, "no room", None))


@pytest.mark.parametrize("place", ["state", "run"])
def test_the_owner_of_a_refused_job_is_none_of_the_crowd(tmp_path: Path, place: str) -> None:
    """It asks for the reason, which is in the runtime directory where the disk of the other one is full."""
    places = Places(tmp_path / "state", tmp_path / "run")
    crowd = [places.take(STRANGER + number) for number in range(MOST_OF_STRANGERS)]
    assert all(share is not None and places.is_stranger(share) for share in crowd)
    assert places.take(STRANGER) is None
    assert places.take(OWNER) is None
    Ledger(tmp_path / place, 12).open(REFUSED)
    mine = [places.take(OWNER) for _ in range(MOST_OF_OWNER)]
    assert mine == [OWNER] * MOST_OF_OWNER
    assert not places.is_stranger(OWNER)
    assert places.take(OWNER) is None
    assert places.take(STRANGER) is None
    Ledger(tmp_path / place, 12).remove()
    for share in mine:
        assert share is not None
        places.give_back(share)
    assert places.take(OWNER) is None


@pytest.mark.allow_run  # which tables and devices there are
@pytest.mark.allow_sockets
def test_a_refused_job_is_no_reason_to_ask_slurm_again_and_again(tmp_path: Path) -> None:
    context = Context(tmp_path / "conf", tmp_path / "state", tmp_path / "run")
    daemon = Daemon(context, NodeName("n1"))
    assert daemon._only_live_jobs()
    ledger = Ledger(context.state_dir, 12)
    ledger.open(REFUSED)
    assert daemon._only_live_jobs()
    ledger.intend([actions.ClaimMembership(12, "n1")])  # what could not be undone is tried again
    assert not daemon._only_live_jobs()
    ledger.remove()
    ledger.open(Record(12, OWNER, "boot"))  # a set-up that goes on, or was cut short
    assert not daemon._only_live_jobs()
