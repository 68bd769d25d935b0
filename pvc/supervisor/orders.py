# SPDX-License-Identifier: Apache-2.0
"""Orders to single VMs: one message names all of a node that are meant, its answer says what became of each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from pvc import codec
from pvc.errors import PvcError, UsageError
from pvc.model.failure import Failure
from pvc.model.vm import Order, OrderResult
from pvc.supervisor.vm import Vm

LOG = logging.getLogger(__name__)
MAX_GRACE_S = 3600.0


def parse_grace(request: dict[str, Any]) -> float:
    """How long guests may take to power down, in seconds.

    :raise UsageError: no such number.
    """
    grace_s = request.get("grace_s", 0)
    if isinstance(grace_s, bool) or not isinstance(grace_s, int | float) or not 0 <= grace_s <= MAX_GRACE_S:
        raise UsageError(f"grace_s must be a number of seconds from 0 to {MAX_GRACE_S:g}")
    return float(grace_s)


async def carry_out(vms: Sequence[Vm], request: dict[str, Any]) -> list[OrderResult]:
    """What became of the order in ``request`` to each of its VMs, in its order.

    :raise UsageError: the request is not an order, or names a VM that this node does not have.
    """
    known = {vm.share.rank: vm for vm in vms}
    ranks, grace_s = request.get("vms"), parse_grace(request)
    try:
        order = Order(str(request.get("order")))
    except ValueError:
        raise UsageError(f"the supervisor knows no order {request.get('order')!r}") from None
    if not isinstance(ranks, list) or not ranks:
        raise UsageError("an order names its VMs")
    for rank in ranks:
        if type(rank) is not int or rank not in known:
            raise UsageError(f"no VM {rank!r} is on this node")
    return await asyncio.gather(*(_order_one(known[rank], order, grace_s) for rank in dict.fromkeys(ranks)))


async def _order_one(vm: Vm, order: Order, grace_s: float) -> OrderResult:
    failure: Failure | None = None
    try:
        match order:
            case Order.RESET:
                await vm.reset()
            case Order.PAUSE:
                await vm.pause()
            case Order.RESUME:
                await vm.resume()
            case Order.STOP:
                await vm.stop(grace_s)
            case Order.START:
                await vm.start()
    except PvcError as err:
        failure = Failure.of(err)
    share = vm.share
    return OrderResult(
        rank=share.rank,
        name=share.name,
        node=share.node,
        phase=vm.phase,
        detail=vm.detail,
        **({} if failure is None else codec.to_data(failure)),
    )
