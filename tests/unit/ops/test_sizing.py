# SPDX-License-Identifier: Apache-2.0
"""Definitions cut into parts of one size, and nodes divided among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import UsageError
from pvc.ops.sizing import Part, find_parts, list_slurm_args, make_sizes, resolve_by_hand, spread_nodes
from tests.unit.ops.worlds import make_config


def test_size_is_the_command_lines_or_the_templates(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.templates["web"] = replace(config.templates["web"], cores=2)
    config.templates["db"] = replace(config.templates["db"], memory=1024)
    web, db = Part(("web",), 2, 2, None, ()), Part(("db",), 1, 1, 1024, ())
    assert find_parts("web:2,db", config, None, None) == (web, db)
    assert find_parts("web:2,db", config, 8, None) == (replace(web, cpus=8), replace(db, cpus=8))
    assert find_parts("web:2,db", config, 3, 512) == (Part(("web", "db"), 3, 3, 512, ()),)


def test_neighbours_of_one_size_are_one_part(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.templates["db"] = replace(config.templates["db"], cores=2)
    parts = find_parts("web:2,plain,web,db,plain", config, None, None)
    assert [(part.templates, part.count, part.cpus) for part in parts] == [
        (("web", "plain"), 4, 1),
        (("db",), 1, 2),
        (("plain",), 1, 1),
    ]
    assert [size.count for size in make_sizes(parts, with_cpus=True)] == [4, 1, 1]
    assert make_sizes(parts[:1], with_cpus=True) == ()


def test_by_hand_slurm_says_how_many_cores(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.templates["db"] = replace(config.templates["db"], cores=2)
    assert resolve_by_hand("web:2,db", config, None).encode() == "1;sizes=2:0,1:0;nat:2,lan:1"
    assert resolve_by_hand("web:2,plain", config, None).encode() == "1;nat:3"
    assert resolve_by_hand("web:2,db", config, 4).encode() == "1;cpus=4;nat:2,lan:1"


def test_slurm_options_of_templates(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    web = replace(config.templates["web"], slurm_args=("--partition=vm", "-x"), gres=("gpu:1",))
    db = replace(config.templates["db"], slurm_args=("--qos=low", "--partition=vm"), gres=("nic:1", "gpu:1"))
    assert list_slurm_args([web, db]) == ("--partition=vm", "-x", "--qos=low", "--gres=gpu:1,nic:1")
    long = replace(db, slurm_args=("--partition=long",))
    with pytest.raises(UsageError, match="'web' wants --partition=vm, template 'db' wants --partition=long"):
        list_slurm_args([web, long])
    assert list_slurm_args([long]) == ("--partition=long", "--gres=nic:1,gpu:1")


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 64)), min_size=2, max_size=6), st.data())
def test_every_node_is_given_out_and_none_without_a_vm(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    parts = [Part((f"t{index}",), count, cpus, None, ()) for index, (count, cpus) in enumerate(sizes)]
    total = data.draw(st.integers(len(parts), sum(part.count for part in parts)))
    counts = [int(text or 0) for text in spread_nodes(parts, str(total))]
    assert sum(counts) == total
    assert all(1 <= count <= part.count for count, part in zip(counts, parts, strict=True))
