# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

from pvc.config.lines import add_lines
from pvc.errors import ConfigError, Problem


def test_a_problem_that_a_node_finds_gets_its_line(tmp_path: Path) -> None:
    (tmp_path / "networks.yaml").write_text("nat:\n  type: ethernet\n  settings:\n    dev-prefix: nat\n    mtu: 9000\n")
    key, text = "nat.settings.mtu", "9000 is more than eth0 carries (1500)"
    found = add_lines(ConfigError([Problem("networks.yaml", 0, key, text)], hint="lower it"), tmp_path)
    assert str(found) == f"{tmp_path}/networks.yaml:5: {key}: {text}"
    assert found.find_hint() == "lower it"


def test_without_the_key_or_the_file_the_nearest_is_named(tmp_path: Path) -> None:
    problem = Problem("networks.yaml", 0, "nat.settings.mtu", "is wrong")
    assert str(add_lines(ConfigError([problem]), tmp_path)) == f"{tmp_path}/networks.yaml: nat.settings.mtu: is wrong"
    (tmp_path / "networks.yaml").write_text("nat:\n  type: ethernet\n  settings: {dev-prefix: nat}\n")
    assert add_lines(ConfigError([problem]), tmp_path).problems[0].line == 3
