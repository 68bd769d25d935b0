# SPDX-License-Identifier: Apache-2.0
"""What measurements print: one form, and pictures that a browser reads."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.bench._plot import Chart, render
from tests.bench._rows import row


def test_all_lines_have_the_same_first_keys() -> None:
    empty, full = (
        row("a"),
        row("b", data_path="ovs", vms=1, peers=2, forks=3, times=[0.3, 0.1, 0.2], budget_wall_s=0.25),
    )
    assert list(empty)[:6] == list(full)[:6] == ["phase", "data_path", "vms", "peers", "forks", "wall_s"]
    assert (full["wall_s"], full["wall_s_min"], full["wall_s_max"], full["runs"]) == (0.2, 0.1, 0.3, 3)
    assert (empty["wall_s"], empty["runs"], full["budget_wall_s"]) == (None, None, 0.25)


def test_a_plot_has_each_line_and_point() -> None:
    points = ((1.0, 80.0), (8.0, 150.0), (64.0, 1200.0))
    text = render(
        "cost <ms>", [Chart("VMs", {"kernel": points, "ovs": points[:2]}), Chart("peers", {"kernel": points})]
    )
    names = [each.tag.rpartition("}")[2] for each in ElementTree.fromstring(text).iter()]
    assert (names.count("polyline"), names.count("circle")) == (3, 8)
