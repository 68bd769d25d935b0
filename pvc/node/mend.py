# SPDX-License-Identifier: Apache-2.0
"""A cluster's networks on this node compared with their plan, and what others undid put back."""

from __future__ import annotations

import logging
import time

from pvc.errors import PvcError
from pvc.model.netview import Fault, Mended, Upkeep
from pvc.node import apply
from pvc.node.context import Context
from pvc.node.netcheck import observe
from pvc.plan import actions
from pvc.plan.diagnosis import MENDABLE, Differing, compare
from pvc.plan.inputs import Inputs
from pvc.plan.node import NodePlan
from pvc.state.ledger import Ledger

LOG = logging.getLogger(__name__)
_MOST_FAULTS, _MOST_MENDED = 20, 8


def look_after(context: Context, job_id: int) -> bool:
    """Compare, put back, and record what was found; whether anything was put back.

    :raise PvcError: the node cannot be read.
    """
    ledger = Ledger(context.state_dir, job_id)
    if not ledger.exists():
        return False
    with context.job_lock(job_id):
        # A tear-down takes things away on purpose: before it does so, the job is not ready any more.
        inputs = ledger.read_inputs() if ledger.read_ready() is not None else None
        if inputs is None:
            if not ledger.exists():
                context.forget_lock(job_id)
            return False
        plan = inputs.plan()
        found = compare(inputs, plan.actions, observe(plan))
        left = _mend(context, job_id, inputs, plan, found)
        _record(ledger, found, left)
        return left != found


def _mend(
    context: Context, job_id: int, inputs: Inputs, plan: NodePlan, found: tuple[Differing, ...]
) -> tuple[Differing, ...]:
    """What is not as planned after all that can be put back was."""
    tried = False
    for each in found:
        texts = _say(each.faults)
        try:
            if isinstance(each.step, MENDABLE):
                tried = True
                apply.create(each.step, context.hands())
            elif isinstance(each.step, actions.AddSwitchTaps) and apply.silence_again(each.step):
                tried = True
            else:
                context.tell(job_id, texts)
                continue
        except PvcError as err:
            context.tell(job_id, f"{texts}; it cannot be put back: {err}")
        else:
            LOG.warning("job %d: %s; it is put back", job_id, texts)
    return compare(inputs, plan.actions, observe(plan)) if tried else found


def _record(ledger: Ledger, found: tuple[Differing, ...], left: tuple[Differing, ...]) -> None:
    standing = [fault for each in left for fault in each.faults]
    gone = [fault.text for each in found for fault in each.faults if fault not in standing]
    before = ledger.read_upkeep()
    now = time.time()
    mended = (*before.mended, *(Mended(now, text) for text in gone))[-_MOST_MENDED:]
    upkeep = Upkeep(tuple(standing[:_MOST_FAULTS]), mended)
    if upkeep != before:
        ledger.write_upkeep(upkeep)


def _say(faults: tuple[Fault, ...]) -> str:
    more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
    return "; ".join(fault.text for fault in faults[:2]) + more
