# SPDX-License-Identifier: Apache-2.0
"""Undo a job's share on this node, and keep what could not be undone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pvc.errors import ConfigError, HostError, PvcError, StateError, is_shortage
from pvc.node import apply, strays
from pvc.node.context import Context
from pvc.plan import actions
from pvc.state.ledger import ForeignError, Ledger, UnreadableError

LOG = logging.getLogger(__name__)
NOTHING, LEFT = "nothing to undo", "left as it is"


def tear_down(
    context: Context, job_id: int, wanted: Callable[[Ledger], bool] = lambda _: True, *, by_name: bool = False
) -> str:
    """Undo everything recorded of a job; a line for the log. Nothing recorded is fine.

    What cannot be undone now and is no fault of this node is kept, and undone later by ``reclaim``: what the state
    store cannot be told, what a user still holds, what there is no room or memory for, what is in a place of others.
    What is recorded in another major version is left alone, which is no fault either.
    ``wanted``: asked with the job's ledger when nobody else can change it. ``by_name``: as of ``undo_recorded``.

    :raise HostError: something of this node could not be undone; it is kept in the ledger.
    """
    with context.job_lock(job_id):
        ledger = Ledger(context.state_dir, job_id)
        spare = Ledger(context.runtime_dir, job_id)
        if not ledger.exists():
            spare.remove()
            context.forget_lock(job_id)
            return NOTHING
        try:
            if not wanted(ledger):
                return LEFT
            undo_recorded(context, ledger, by_name=by_name)
        except ForeignError as err:
            spare.remove()
            context.tell(job_id, f"{err}; {err.find_hint()}")
            return f"{LEFT}: {err}"
        except PvcError as err:
            if isinstance(err, HostError) and not is_shortage(err):
                raise
            LOG.warning("job %d: %s; will be tried again", job_id, err)
            context.metrics.fail("teardown", err)
            return f"undone, but for {_name_left(err)}"
        spare.remove()
        context.forget_lock(job_id)
        return "undone"


def undo_recorded(context: Context, ledger: Ledger, *, keep_record: bool = False, by_name: bool = False) -> None:
    """Undo the ledger's actions in reverse and forget them. The caller holds the job's lock.

    ``by_name``: where they are of another major version, what bears the job's name is removed, and the ledger with it.

    :raise ForeignError: they are of another major version; nothing is changed.
    :raise HostError: some could not be undone (kept).
    :raise JobError: only what a user keeps could not be undone (kept).
    :raise StateError: only the state store's could not be undone (kept).
    :raise ConfigError: only the job's directory could not, where others may write to what is above it (kept).
    """
    steps = _read_actions(context, ledger, by_name=by_name)
    ledger.unready()
    left, errors = apply.undo(steps, context.hands())
    try:
        if left or keep_record:
            ledger.keep(left)
        else:
            ledger.remove()
    except OSError as err:
        # All of it stays recorded then, and is undone once more: that finds nothing.
        errors.append(HostError(f"cannot write what is left of job {ledger.path.name}"))
        errors[-1].__cause__ = err
    if errors:
        raise _worst(errors)


def _name_left(err: PvcError) -> str:
    if isinstance(err, ConfigError):
        return "its directory"
    return "the state store" if isinstance(err, StateError) else "what its user keeps"


def _read_actions(context: Context, ledger: Ledger, *, by_name: bool) -> list[actions.Action]:
    """What is to be undone; where that is not understood, what is, and what bears the job's name besides.

    :raise ForeignError: it is of another major version, and ``by_name`` does not allow to undo it nevertheless.
    """
    understood: list[actions.Action] = []
    try:
        return ledger.read_actions()
    except ForeignError as err:
        if not by_name:
            raise
        LOG.warning("%s; what bears the job's name is removed", err)
    except UnreadableError as err:
        LOG.warning("%s; what bears the job's name is removed", err)
        understood = ledger.read_actions(any_left_out=True)
    context.forgetful = True
    return [*strays.collect(context, int(ledger.path.name)), *understood]


def _worst(errors: list[PvcError]) -> PvcError:
    for error in errors:
        LOG.warning("%s", error)
    return max(errors, key=_rank)


def _rank(error: PvcError) -> int:
    """A fault of the node comes before what may be tried again without one."""
    if isinstance(error, StateError):
        return 0
    return 2 if isinstance(error, HostError) and not is_shortage(error) else 1
