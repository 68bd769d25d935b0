# SPDX-License-Identifier: Apache-2.0
"""What the state store must know of this node's clusters; an emptied store is told again."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pvc.errors import PvcError
from pvc.host import underlay
from pvc.node.context import Context
from pvc.plan import actions
from pvc.plan.inputs import Inputs
from pvc.slurm import nodenames
from pvc.slurm.job import read_cluster_name
from pvc.state import membership
from pvc.state.ledger import Ledger, UnreadableError, read_jobs

LOG = logging.getLogger(__name__)


def read_member(context: Context, node: str) -> membership.Member:
    """This node as the store should know it.

    :raise PvcError: Slurm does not answer, or the node has not the address of its name.
    """
    own = underlay.read_own(node, context.config().batch.underlay_device, locate=nodenames.locate)
    return membership.Member(node, own.address, read_cluster_name() or "")


def list_claims(context: Context, but: int) -> list[actions.ClaimMembership]:
    """Of the jobs that are set up on this node, without one."""
    found: list[actions.ClaimMembership] = []
    for job_id in read_jobs(context.state_dir):
        ledger = Ledger(context.state_dir, job_id)
        try:
            if job_id != but and ledger.read_ready() is not None:
                found += [step for step in ledger.read_actions() if isinstance(step, actions.ClaimMembership)]
        except UnreadableError:
            continue  # which is told where it matters
    return found


def register_again(context: Context) -> None:
    """Tell the store of all clusters here that it does not know.

    :raise PvcError: the store does not answer.
    """
    claims = list_claims(context, but=0)
    # A node has one name, which every record has.
    node = next((claim.node for claim in claims), "")
    store = context.store()
    forgotten = membership.find_forgotten(store, node, [claim.job_id for claim in claims])
    for job_id, inputs in _read_inputs(context) if forgotten else ():
        job = inputs.job
        if job.cluster_id not in forgotten:
            continue
        member = membership.Member(job.node, inputs.facts.address, job.cluster)
        networks = [each.network for each in inputs.memberships()]
        with context.job_lock(job_id):
            if Ledger(context.state_dir, job_id).read_ready() is None:
                continue  # it has left meanwhile
            taken = membership.restore(store, job.cluster_id, member, networks, inputs.grants.vnis)
        LOG.warning("job %d: the state store had forgotten its cluster, and knows it again", job_id)
        for text in taken:
            context.tell(job_id, f"{text}: the store was emptied while it ran; end one of the two")


def _read_inputs(context: Context) -> Iterator[tuple[int, Inputs]]:
    for job_id in read_jobs(context.state_dir):
        ledger = Ledger(context.state_dir, job_id)
        try:
            inputs = ledger.read_inputs() if ledger.read_ready() is not None else None
        except PvcError:
            continue
        if inputs is not None:
            yield job_id, inputs
