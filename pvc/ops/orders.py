# SPDX-License-Identifier: Apache-2.0
"""Orders to single VMs of a running cluster: one message to each of their nodes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pvc import codec
from pvc.errors import EndedError, GuestError, HostError, PvcError, SuspendedError
from pvc.model.failure import Failure
from pvc.model.vm import Order, OrderResult
from pvc.ops.control import Control, in_parallel
from pvc.ops.status import find_node

_MARGIN_S = 90.0  # QEMU starts in less, on a node that is busy
_VM_SET = re.compile(r"vm(\d+|\[[\d,-]+\])([,!&^]vm(\d+|\[[\d,-]+\]))*")


def is_vm_set(word: str) -> bool:
    """Whether a word names VMs, as vm0 or vm[0-3,7], and not a definition, as vm0:1."""
    return _VM_SET.fullmatch(word) is not None


def give_order(
    control: Control, order: Order, ranks: Sequence[int], *, grace_s: float = 0.0
) -> tuple[OrderResult, ...]:
    """What became of the order to each of these VMs; ``grace_s``: how long a guest may take to power down.

    :raise EndedError: the cluster has ended.
    :raise SuspendedError: its job is suspended.
    """
    by_node: dict[str, list[int]] = {}
    for rank in ranks:
        by_node.setdefault(find_node(control.record, rank), []).append(rank)
    endpoints = {endpoint.node: endpoint for endpoint in control.record.endpoints}

    def ask(node: str) -> tuple[OrderResult, ...]:
        request = {"op": "order", "order": order.value, "vms": by_node[node], "grace_s": grace_s}
        try:
            if node not in endpoints:
                raise GuestError(f"there is no supervisor on {node}")
            answer = control.ask(endpoints[node], request, grace_s + _MARGIN_S)
            return codec.from_data(tuple[OrderResult, ...], answer["vms"])
        except (ValueError, KeyError) as err:
            failure = Failure(HostError.exit_code, f"the answer of {node} is not understood: {err}")
        except (EndedError, SuspendedError):
            raise
        except PvcError as err:
            failure = Failure.of(err)
        told = failure.error, failure.hint, failure.exit_code
        return tuple(OrderResult(rank, f"vm{rank}", node, None, "", *told) for rank in by_node[node])

    results = [result for part in in_parallel(ask, sorted(by_node)) for result in part]
    return tuple(sorted(results, key=lambda result: result.rank))


def check_results(results: Sequence[OrderResult]) -> None:
    """:raise PvcError: the order was not carried out everywhere; a GuestError, unless all reasons are of one class."""
    failed = [result for result in results if result.error is not None]
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        texts = list(dict.fromkeys(str(result.error) for result in failed[:5]))
        codes = {result.exit_code for result in failed}
        code = codes.pop() if len(codes) == 1 else None
        hint = next((result.hint for result in failed if result.hint), None)
        raise Failure(code or GuestError.exit_code, "; ".join(texts) + more, hint).rebuild()
