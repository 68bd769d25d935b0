# SPDX-License-Identifier: Apache-2.0
"""How far a cluster has come: events in, views out; no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pvc.errors import GuestError, HostError, PvcError
from pvc.model.cluster import NodeEndpoint, NodeShare, Placement
from pvc.model.event import Event, EventKind
from pvc.model.vm import ENDED, Phase

NODE_FAILURE = "Node failure"  # as srun says it
TABLE_ROWS = 20  # more VMs than this are shown as counts


@dataclass
class VmView:
    """A VM as its events tell; ``since`` is seconds after the launch."""

    rank: int
    node: str
    template: str
    phase: Phase = Phase.WAITING
    since: float = 0.0
    detail: str = ""
    last_words: tuple[str, ...] = ()
    hint: str | None = None

    @property
    def name(self) -> str:
        """``vm<rank>``, as the guest is called, too."""
        return f"vm{self.rank}"


@dataclass
class NodeView:
    """A node's supervisor as its events tell."""

    share: NodeShare
    endpoint: NodeEndpoint | None = None
    error: Event | None = None
    lost: str | None = None  # how the supervisor died, when it did
    ended: bool = False


@dataclass
class Progress:
    """The state of all VMs and nodes of one cluster. ``start`` is the launch, seconds since the epoch."""

    start: float
    vms: list[VmView]
    nodes: dict[str, NodeView]
    notices: dict[str, list[str]] = field(default_factory=dict)  # text with {node} -> nodes that said it
    losses: list[str] = field(default_factory=list)  # nodes whose supervisors have died, the first one first
    counts: Counter[Phase] = field(default_factory=Counter)  # kept up to date: ten thousand VMs are not counted anew

    @classmethod
    def of(cls, placement: Placement, templates: Sequence[str], start: float) -> Progress:
        """Nothing has happened yet; ``templates`` names the template of each rank."""
        nodes = {share.node: NodeView(share) for share in placement.shares if share.count}
        vms = [
            VmView(rank, share.node, templates[rank])
            for share in placement.shares
            for rank in range(share.first_rank, share.first_rank + share.count)
        ]
        return cls(start, vms, nodes, counts=Counter({Phase.WAITING: len(vms)}))

    def apply(self, event: Event) -> list[str]:
        """Take an event in; returns what is worth telling a reader of plain lines.

        An event about a node or VM that is not of this cluster is ignored.
        """
        node = self.nodes.get(event.node)
        if node is None:
            return []
        if event.kind is EventKind.LISTENING and event.host and event.port:
            node.endpoint = NodeEndpoint(event.node, event.host, event.port)
        elif event.kind is EventKind.VM and event.phase is not None:
            return self._apply_vm(event)
        elif event.kind is EventKind.NOTICE:
            text = event.detail.replace(event.node, "{node}")
            self.notices.setdefault(text, []).append(event.node)
        elif event.kind is EventKind.ERROR:
            node.error = node.error or event
            self.fail_node(event.node, event.detail, event.time)
        elif event.kind is EventKind.ENDED:
            node.ended = True
        return []

    def take_notices(self) -> list[str]:
        """What nodes noted since the last call, each once, with the names of all that said it."""
        lines = []
        for text, nodes in self.notices.items():
            names = ", ".join(nodes[:4]) + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")
            lines.append(text.replace("{node}", names))
        self.notices = {}
        return lines

    def _apply_vm(self, event: Event) -> list[str]:
        phase = event.phase
        if phase is None or event.rank is None or not 0 <= event.rank < len(self.vms):
            return []
        vm = self.vms[event.rank]
        if vm.node != event.node:
            return []
        before = self.lowest_phase
        vm.detail, vm.last_words, vm.hint = event.detail, event.last_words, event.hint
        if vm.phase is phase:
            return []
        self._set_phase(vm, phase, event.time)
        return self._news(vm, before)

    def _set_phase(self, vm: VmView, phase: Phase, now: float) -> None:
        self.counts[vm.phase] -= 1
        self.counts[phase] += 1
        vm.phase, vm.since = phase, max(0.0, now - self.start)

    def _news(self, vm: VmView, before: Phase | None) -> list[str]:
        """Lines for a log: each VM of a small cluster, steps of a large one, and every failure."""
        if vm.phase is Phase.FAILED:
            said = "".join(f"\n  {vm.name} said: {line}" for line in vm.last_words)
            advice = f"\n  hint: {vm.hint}" if vm.hint else ""
            return [f"{vm.name} on {vm.node} failed: {vm.detail or 'no reason given'}{said}{advice}"]
        if vm.phase is Phase.REACHABLE and len(self.vms) <= TABLE_ROWS:
            return [f"{vm.name} on {vm.node} is reachable after {vm.since:.1f} s"]
        after = self.lowest_phase
        if after is not before and after is not None and after not in (Phase.WAITING, Phase.PAUSED):
            many = len(self.vms) > TABLE_ROWS
            if after is not Phase.REACHABLE or many:
                return [f"{plural(self.counts[after], 'VM')}: {after.value} after {vm.since:.1f} s"]
        return []

    def lose_node(self, name: str, why: str, now: float) -> list[str]:
        """A node's supervisor has died; returns what is worth telling."""
        node = self.nodes.get(name)
        if node is None or node.ended or node.lost is not None:
            return []
        node.lost = why
        self.losses.append(name)
        changed = self.fail_node(name, f"its supervisor on {name} has ended: {why}", now)
        return [f"{plural(len(changed), 'VM')} on {name} failed: the supervisor has ended: {why}"] if changed else []

    def find_failed_nodes(self) -> list[str]:
        """Nodes that Slurm gave up: they do not answer, or an administrator has set them down."""
        return [name for name in self.losses if self.nodes[name].lost == NODE_FAILURE]

    def fail_node(self, name: str, why: str, now: float) -> list[VmView]:
        """Mark the VMs of a node that its supervisor can no longer speak for; returns those that changed."""
        changed = [vm for vm in self.vms if vm.node == name and vm.phase not in ENDED]
        for vm in changed:
            self._set_phase(vm, Phase.FAILED, now)
            vm.detail = why
        return changed

    @property
    def lowest_phase(self) -> Phase | None:
        """The phase that every VM still alive has reached; None: none is alive."""
        return next((phase for phase in Phase if self.counts[phase] and phase not in ENDED), None)

    @property
    def endpoints(self) -> tuple[NodeEndpoint, ...]:
        """Control ports known by now."""
        return tuple(node.endpoint for node in self.nodes.values() if node.endpoint is not None)

    @property
    def is_running(self) -> bool:
        """Every node listens and every VM has been started, or has failed."""
        if self.counts[Phase.WAITING] or self.counts[Phase.NETWORK]:
            return False
        return all(node.endpoint is not None or node.lost is not None for node in self.nodes.values())

    @property
    def is_settled(self) -> bool:
        """Every VM answers, or never will."""
        return not (self.counts[Phase.WAITING] or self.counts[Phase.NETWORK] or self.counts[Phase.BOOTING])

    @property
    def is_dead(self) -> bool:
        """No VM is left."""
        return self.lowest_phase is None

    @property
    def was_stopped(self) -> bool:
        """Every supervisor has ended on request, none by an error."""
        return all(node.ended and node.error is None for node in self.nodes.values())

    def find_error(self) -> PvcError | None:
        """The first error that a node reported, as the user should see it."""
        errors = [node.error for node in self.nodes.values() if node.error is not None]
        if errors:
            first = errors[0]
            same = sum(1 for error in errors if error.detail == first.detail)
            where = first.node if same == 1 else f"{first.node} and {same - 1} more"
            return first.failure.about(where).rebuild()
        # The first one: Slurm ends those of all nodes when it cannot start one.
        for name in self.losses:
            node = self.nodes[name]
            if node.endpoint is None:
                return HostError(
                    f"{name}: the supervisor has ended: {node.lost}", hint=_find_lost_hint(node.lost or "")
                )
        return None

    def find_guest_error(self) -> GuestError:
        """Why no VM is left: the most frequent reason."""
        reasons = Counter(vm.detail for vm in self.vms if vm.phase is Phase.FAILED and vm.detail)
        if not reasons:
            return GuestError("all VMs have ended")
        reason, count = reasons.most_common(1)[0]
        hint = next(vm.hint for vm in self.vms if vm.detail == reason)
        return GuestError(f"no VM is left; {count} of {len(self.vms)} failed: {reason}", hint=hint)


def _find_lost_hint(why: str) -> str | None:
    if "credential expired" in why:
        return "Slurm's credentials hold two minutes (slurm.conf, AuthInfo=cred_expire): the node's clock may be ahead"
    return None


def plural(count: int, what: str) -> str:
    """A number and its noun, as "1 node" or "3 nodes"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
