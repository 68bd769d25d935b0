# SPDX-License-Identifier: Apache-2.0
"""What probe frames between nodes mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pvc.model.netview import ProbeReport, ProbeShare
from pvc.ops.checkup import Verdict
from pvc.ops.netdoctor import judge

NODES = ("n1", "n2", "n3")
SIZES = (100, 1500)


def reports(heard: Callable[[str, str], tuple[int, ...]], nodes: tuple[str, ...] = NODES) -> list[ProbeReport]:
    """Every node's report, where ``heard(source, target)`` arrives."""
    found = []
    for target in nodes:
        peers = tuple(node for node in nodes if node != target)
        sizes = {source: heard(source, target) for source in peers if heard(source, target)}
        found.append(ProbeReport(target, (ProbeShare("nat", SIZES, peers, sizes, "UDP 4789", 1550),)))
    return found


def said(*given: ProbeReport) -> dict[str, str]:
    return {finding.where: finding.text for finding in judge(given)}


def test_all_well() -> None:
    (finding,) = judge(reports(lambda *_: SIZES))
    assert (finding.verdict, finding.text) == (
        Verdict.OK,
        "network nat: frames of 100 and 1500 bytes arrive on all 6 paths",
    )


def test_a_node_that_hears_nobody_is_named_once() -> None:
    found = said(*reports(lambda _source, target: () if target == "n2" else SIZES))
    assert list(found) == ["n2"]
    assert "nothing arrives from any other node: UDP 4789 is blocked on its way in" in found["n2"]


def test_a_node_that_nobody_hears_is_named_once() -> None:
    found = said(*reports(lambda source, _target: () if source == "n3" else SIZES))
    assert list(found) == ["n3"]
    assert "nothing that it sends arrives anywhere: UDP 4789 is blocked on its way out" in found["n3"]


def test_one_direction_of_one_path() -> None:
    (finding,) = judge(reports(lambda *path: () if path == ("n1", "n2") else SIZES))
    assert finding.where == "n1 -> n2"
    assert "nothing arrives: UDP 4789 is blocked, or n1 has no entry for it" in finding.text
    assert finding.fix is not None
    assert "tcpdump -ni any udp port 4789" in finding.fix


def test_a_firewall_that_is_known_is_named_with_its_command() -> None:
    def behind(target: str, given: list[ProbeReport]) -> list[ProbeReport]:
        shares = {each.node: each.networks[0] for each in given}
        shares[target] = replace(shares[target], remedy=f"open {target}")
        return [ProbeReport(node, (share,)) for node, share in shares.items()]

    deaf = behind("n2", reports(lambda _source, target: () if target == "n2" else SIZES))
    assert [each.fix for each in judge(deaf)] == ["on n2, as root: open n2"]
    pair = behind("n2", reports(lambda _source, target: () if target == "n2" else SIZES, ("n1", "n2")))
    assert [(each.where, each.fix) for each in judge(pair)] == [("n1 -> n2", "on n2, as root: open n2")]
    cut = behind("n3", behind("n1", reports(lambda *_: ())))
    assert [each.fix for each in judge(cut)] == ["on n1, as root: open n1; on n3, as root: open n3"]


def test_two_nodes_say_nothing_of_which_is_at_fault() -> None:
    assert set(said(*reports(lambda *_: (), ("n1", "n2")))) == {"n1 -> n2", "n2 -> n1"}


def test_a_cut_between_all_nodes() -> None:
    (finding,) = judge(reports(lambda *_: ()))
    assert finding.text == "network nat: nothing arrives on any of 6 paths: UDP 4789 is blocked between all nodes"


def test_an_mtu_that_is_too_small() -> None:
    (finding,) = judge(reports(lambda *path: (100,) if path == ("n1", "n3") else SIZES))
    assert finding.where == "n1 -> n3"
    assert "1500-byte frames are lost, 100-byte ones arrive: MTU" in finding.text
    assert "must carry 1550 bytes" in finding.text
    assert finding.fix is not None
    assert "ping -M do -s 1522" in finding.fix


def test_a_node_that_cannot_send_is_not_blamed_on_its_paths() -> None:
    given = reports(lambda *_: SIZES, ("n1", "n2"))
    broken = ProbeShare("nat", SIZES, ("n1",), {}, "UDP 4789", 1550, "cannot use the device br0")
    assert said(given[0], ProbeReport("n2", (broken,))) == {
        "n2": "network nat: its paths were not tried: cannot use the device br0"
    }


def test_many_broken_paths_are_counted() -> None:
    nodes = tuple(f"n{number}" for number in range(8))
    found = list(judge(reports(lambda *_: (100,), nodes)))
    assert len(found) == 21
    assert "and 36 more paths" in found[-1].text


def test_clusters_without_common_networks_have_no_paths() -> None:
    (finding,) = judge([ProbeReport("n1", ()), ProbeReport("n2", ())])
    assert finding.verdict is Verdict.OK
