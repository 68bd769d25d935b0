# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pvc.model.host import Grants
from pvc.model.network import Layer
from pvc.plan import addresses
from pvc.plan.inputs import Inputs, collect
from pvc.plan.probes import parse_frame, plan_probes, render_frame
from tests.unit.plan.worlds import NAT, SITE, facts_of, job_of, request_of

NONCE = bytes(range(8))


def inputs_of(nodes: int, *sets: tuple[str, int], layer: Layer = Layer.L3) -> Inputs:
    job, request = job_of(nodes, 4), request_of(*sets, cpus=2)
    site = replace(SITE, networks={**SITE.networks, "nat": replace(NAT, layer=layer, reverse_nat=())})
    return collect(job, request, site, facts_of(job), Grants({"nat": 5001, "back": 5002}, 0, ()))


def test_the_label_of_each_other_node_is_the_target() -> None:
    nat, back = plan_probes(inputs_of(3, ("both", 4), ("nat", 2)))
    assert nat.targets == {"n2": addresses.label_mac(0), "n3": addresses.label_mac(1)}
    assert back.targets == {"n2": addresses.label_mac(0)}
    assert (nat.sender, nat.listener) == (("pvc-12", "vx0"), ("pvc-12", "vx0"))
    assert (nat.sizes, nat.carrier, nat.underlay_mtu) == ((100, 1500), "UDP 4789", 1550)


def test_where_addresses_are_learnt_frames_go_between_vms() -> None:
    (layer2,) = plan_probes(inputs_of(3, ("nat", 6), layer=Layer.L2))
    assert layer2.source == addresses.vm_mac(NAT, 0, 0)
    assert layer2.targets == {"n2": addresses.vm_mac(NAT, 0, 2), "n3": addresses.vm_mac(NAT, 0, 4)}
    assert layer2.sender == ("pvc-12", "br0")


def test_one_node_needs_no_probes() -> None:
    assert plan_probes(inputs_of(1, ("nat", 2))) == ()


def test_frames_come_back() -> None:
    (probe,) = plan_probes(inputs_of(2, ("nat", 4)))
    for size in probe.sizes:
        frame = render_frame(probe, "n2", NONCE, 7, size)
        assert len(frame) == 14 + size
        assert frame[:6].hex(":") == probe.targets["n2"]
        assert parse_frame(frame, NONCE) == (7, size)
        assert parse_frame(frame[:-1], NONCE) is None  # cut short on the way
        assert parse_frame(frame, bytes(8)) is None


@given(st.binary(max_size=200))
def test_no_frame_breaks_the_reader(data: bytes) -> None:
    assert parse_frame(data, NONCE) is None
    parse_frame(data[:12].ljust(12, b"\0") + b"\x88\xb5PVCP" + NONCE + data, NONCE)
