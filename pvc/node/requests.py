# SPDX-License-Identifier: Apache-2.0
"""What Slurm's prolog and epilog ask, by the socket or by the cold path: the same code."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager

from pvc import log
from pvc.errors import HostError, PvcError, is_shortage
from pvc.node.context import Context
from pvc.node.facts import KEYS, parse_job, parse_job_id
from pvc.node.setup import WAS_THERE, set_up
from pvc.node.teardown import LEFT, NOTHING, tear_down
from pvc.texts import clean_text, is_clean

LOG = logging.getLogger(__name__)
# "ensure" is what a step asks that was started without a prolog (spank/late.c).
VERBS = ("setup", "ensure", "teardown")
REQUEST_KEY = "SPANK_PVC_REQUEST"


def parse(text: str) -> tuple[str, dict[str, str]]:
    """(verb, values) of "PVC1 VERB", then "KEY=VALUE" lines.

    :raise ValueError: malformed, an unknown verb, or a key that nobody should send.
    """
    first, *lines = text.rstrip("\n").split("\n")
    verb = first.removeprefix("PVC1 ")
    if verb not in VERBS:
        raise ValueError(f"{verb[:40]!r} is no verb of this protocol")
    values: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if key == REQUEST_KEY and not is_clean(value, len(value)):
            # The one value that comes from the user: a refusal is for the user, an error would drain the node.
            value = "invalid"
        if not equals or key not in KEYS or key in values or not value.isprintable():
            raise ValueError(f"{line[:60]!r} is not part of this protocol")
        values[key] = value
    return verb, values


def naming(values: Mapping[str, str]) -> AbstractContextManager[None]:
    """What is logged inside bears the job, its cluster and its owner, as far as Slurm has told them."""
    job = values.get("SLURM_JOB_ID", "?")
    leader, user = values.get("SLURM_HET_JOB_ID", ""), values.get("SLURM_JOB_USER") or values.get("SLURM_JOB_UID")
    # All components of a heterogeneous job are one cluster, which has the number of the first.
    fields = {"PVC_JOB": job, "PVC_CLUSTER": leader if leader.strip("0") else job}
    return log.context(f"job {job}", **fields, **({"PVC_USER": user} if user else {}))


def handle(context: Context, verb: str, values: Mapping[str, str]) -> tuple[int, str]:
    """Set up or tear down; (exit code, a line). Anything but 0 means that this node is at fault: the shim drains it."""
    operation, began = "teardown" if verb == "teardown" else "setup", time.monotonic()
    try:
        if verb == "teardown":
            message = tear_down(context, parse_job_id(values))
        else:
            message = set_up(context, parse_job(values), values.get(REQUEST_KEY, ""), again=verb == "setup")
    except Exception as err:  # noqa: BLE001 - the shim understands codes, not tracebacks
        context.metrics.fail(operation, err)
        said = clean_text(f"{type(err).__name__}: {err}" if not isinstance(err, PvcError) else str(err))
        if is_shortage(err):
            # Of a set-up nothing is recorded, so supervisors are told that there is none; reclaim tears down.
            LOG.error("%s: not now: %s", verb, said)
            return 0, f"not now: {said}"
        LOG.error("%s: %s", verb, said)
        return HostError.exit_code, said
    if message not in (WAS_THERE, NOTHING) and not message.startswith(LEFT):
        context.metrics.observe(operation, time.monotonic() - began)
    message = clean_text(message)
    LOG.info("%s: %s", verb, message)
    return 0, message
