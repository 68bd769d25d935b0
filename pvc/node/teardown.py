"""Undo a job's share on this node, and keep what could not be undone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pvc.errors import HostError, PvcError, StateError
from pvc.node import apply
from pvc.node.context import Context
from pvc.state.ledger import Ledger, Record

LOG = logging.getLogger(__name__)


def tear_down(context: Context, job_id: int, wanted: Callable[[Record | None], bool] = lambda _: True) -> str:
    """Undo everything recorded of a job; a line for the log. Nothing recorded is fine.

    What the state store cannot be told now is kept and told later by ``reclaim``. ``wanted``: asked with the job's
    record when nobody else can change it; None is one that was never finished.

    :raise HostError: something of this node could not be undone; it is kept in the ledger.
    """
    with context.job_lock(job_id):
        ledger = Ledger(context.state_dir, job_id)
        if not ledger.exists():
            context.forget_lock(job_id)
            return "nothing to undo"
        if not wanted(ledger.read_record()):
            return "left as it is"
        try:
            undo_recorded(context, ledger)
        except StateError as err:
            LOG.warning("job %d: %s; will be tried again", job_id, err)
            return "undone, but for the state store"
        context.forget_lock(job_id)
        return "undone"


def undo_recorded(context: Context, ledger: Ledger, *, keep_record: bool = False) -> None:
    """Undo the ledger's actions in reverse and forget them. The caller holds the job's lock.

    :raise HostError: some could not be undone (kept).
    :raise StateError: only the state store's could not be undone (kept).
    """
    ledger.unready()
    left, errors = apply.undo(ledger.read_actions(), context.hands())
    if left:
        ledger.keep(left)
        raise _worst(errors)
    if keep_record:
        ledger.keep([])
    else:
        ledger.remove()


def _worst(errors: list[PvcError]) -> PvcError:
    for error in errors:
        LOG.warning("%s", error)
    for error in errors:
        if isinstance(error, HostError):
            return error
    return StateError(str(errors[0]), hint=errors[0].find_hint())
