# SPDX-License-Identifier: Apache-2.0
"""What locks, boots and Slurm prove of the holder of a persistent drive."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.model.drive import Lease, Life, Mmp, Reach, Witness
from pvc.plan.drives import find_reach, judge, judge_by_slurm, may_share

MINE = Lease("anne", "prod", 7, "c7", "n1", "boot1", "vm0", 1000.0, Mmp.YES)
THEIRS = Lease("bob", "prod", 5, "c5", "n2", "boot2", "vm3", 500.0, Mmp.YES)
LIVE = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "STOPPED", "SIGNALING", "RESIZING", "REQUEUED")


@pytest.mark.parametrize(
    ("fstype", "options", "reach"),
    [
        ("ext4", "rw,relatime", Reach.ALL),
        ("tmpfs", "rw", Reach.ALL),
        ("nfs4", "rw,vers=4.2,local_lock=none", Reach.ALL),
        ("nfs", "rw,vers=3,nolock,local_lock=all", Reach.NODE),
        ("nfs", "rw,vers=3,local_lock=posix", Reach.NODE),
        ("nfs", "rw,vers=3,local_lock=flock", Reach.ALL),
        ("lustre", "rw,flock,lazystatfs", Reach.ALL),
        ("lustre", "rw,localflock", Reach.NODE),
        ("lustre", "rw,lazystatfs", Reach.NODE),
        ("gfs2", "rw,localflocks", Reach.NODE),
        ("cifs", "rw,nobrl", Reach.NODE),
        ("fuse.sshfs", "rw", Reach.NODE),
        ("9p", "rw", Reach.NODE),
        ("beegfs", "rw", Reach.NODE),
    ],
)
def test_whom_locks_keep_away(fstype: str, options: str, reach: Reach) -> None:
    assert find_reach(fstype, options.split(",")) is reach


@pytest.mark.parametrize("reach", Reach)
@pytest.mark.parametrize("theirs", [THEIRS, replace(THEIRS, boot="boot1", node="n1")])
def test_a_held_lock_is_life_wherever_it_is(reach: Reach, theirs: Lease) -> None:
    assert judge(theirs, MINE, reach, locked=True) is Life.ALIVE


def test_a_free_lock_is_death_as_far_as_locks_reach() -> None:
    assert judge(THEIRS, MINE, Reach.ALL, locked=False) is Life.DEAD
    assert judge(THEIRS, MINE, Reach.NODE, locked=False) is Life.UNKNOWN
    here = replace(THEIRS, node="n1", boot="boot1")
    assert judge(here, MINE, Reach.NODE, locked=False) is Life.DEAD
    assert judge(here, MINE, Reach.NODE, locked=None) is Life.UNKNOWN
    assert judge(replace(here, boot="boot0"), MINE, Reach.NODE, locked=None) is Life.DEAD
    # A node of that name in another Slurm cluster is another node.
    assert judge(replace(here, boot="boot0", slurm="other"), MINE, Reach.NODE, locked=None) is Life.UNKNOWN


@pytest.mark.parametrize(
    ("witness", "life"),
    [
        *((Witness(state, node_answers=True, node_boot=400.0), Life.ALIVE) for state in LIVE),
        (Witness("COMPLETED", node_answers=True, node_boot=400.0), Life.DEAD),
        (Witness(None, node_answers=True, node_boot=400.0), Life.DEAD),
        # Slurm gave the job up with the node: perhaps only the network between them is down.
        (Witness("NODE_FAIL", node_answers=False, node_boot=400.0), Life.UNKNOWN),
        (Witness("NODE_FAIL", node_answers=True, node_boot=400.0), Life.UNKNOWN),
        (Witness("CANCELLED", node_answers=False, node_boot=400.0), Life.UNKNOWN),
        (Witness(None, node_answers=False, node_boot=None), Life.UNKNOWN),
        (Witness("NODE_FAIL", node_answers=False, node_boot=501.0), Life.DEAD),
        (Witness("RUNNING", node_answers=True, node_boot=501.0), Life.DEAD),
    ],
)
def test_what_slurm_knows(witness: Witness, life: Life) -> None:
    assert judge_by_slurm(THEIRS, witness) is life


@given(
    st.sampled_from([*LIVE, "COMPLETED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "SOMETHING_NEW", None]),
    st.booleans(),
    st.one_of(st.none(), st.floats(0, 500)),
)
def test_nobody_is_dead_whose_job_lives_or_whose_node_is_silent(
    state: str | None, answers: bool, boot: float | None
) -> None:
    life = judge_by_slurm(THEIRS, Witness(state, answers, boot))
    if life is Life.DEAD:
        assert answers
        assert state in {"COMPLETED", "CANCELLED", "TIMEOUT", None}


def test_who_may_share() -> None:
    one, other = replace(MINE, mmp=Mmp.CLUSTER), replace(MINE, mmp=Mmp.CLUSTER, vm="vm1", node="n2")
    assert may_share(one, other)
    assert not may_share(one, replace(other, mmp=Mmp.YES))
    assert not may_share(replace(one, mmp=Mmp.YES), other)
    assert not may_share(one, replace(other, cluster="an earlier start in the same job"))
    assert not may_share(one, replace(other, slurm="other"))
