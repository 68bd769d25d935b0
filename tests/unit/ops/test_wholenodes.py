# SPDX-License-Identifier: Apache-2.0
"""How much memory of a node Slurm is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pvc.model.request import Request, SetRequest
from pvc.ops.wholenodes import count_for_memory, find_dealing, gives_whole_nodes, is_packed
from pvc.slurm.job import Partition, Selection, parse_partitions

# As 22.05 and 26.05 tell of them.
PARTITIONS = parse_partitions(
    """\
PartitionName=debug AllowGroups=ALL Default=YES ExclusiveUser=NO Nodes=n[1-3] OverSubscribe=NO State=UP
PartitionName=whole AllowGroups=ALL Default=NO ExclusiveUser=NO Nodes=n[1-3] OverSubscribe=EXCLUSIVE State=UP
PartitionName=whole26 AllowGroups=ALL Default=NO Exclusive=NODE Nodes=n[1-3] OverSubscribe=NO State=UP
PartitionName=users AllowGroups=ALL Default=NO Exclusive=USER Nodes=n[1-3] OverSubscribe=NO State=UP
PartitionName=shared AllowGroups=ALL Default=NO ExclusiveUser=YES Nodes=n[1-3] OverSubscribe=YES:4 State=UP
"""
)


def refuse() -> bool:
    raise AssertionError("Slurm is asked for what is known")


@pytest.mark.parametrize(
    ("count", "nodes", "found"), [(1, None, 1), (1, "1", 1), (4, "1", 4), (4, "4", 1), (4, "8", 1), (1, "1-2", 1)]
)
def test_what_is_known_of_any_node_is_asked_for_it(count: int, nodes: str | None, found: int) -> None:
    assert count_for_memory(count, nodes, (), refuse) == found


@pytest.mark.parametrize(
    ("count", "nodes", "words", "whole", "shared"),
    [
        (4, None, (), 0, None),
        (4, "2", (), 2, None),
        (5, "2", (), 3, None),
        (5, "2-4", (), 0, None),
        (5, None, ("--ntasks-per-node=2",), 2, None),
        (5, None, ("--ntasks-per-node", "3", "--ntasks-per-node", "2"), 2, None),
        (6, "2", ("--ntasks-per-node=4",), 3, None),
        (6, "3", ("--ntasks-per-node=nonsense",), 2, None),
        (6, "3", ("--distribution=block,Pack",), 0, None),
        (6, "3", ("--distribution=Pack", "--ntasks-per-node=4"), 4, None),
    ],
)
def test_whole_nodes(count: int, nodes: str | None, words: Sequence[str], whole: int, shared: int | None) -> None:
    assert count_for_memory(count, nodes, words, lambda: True, Selection) == whole
    assert count_for_memory(count, nodes, words, lambda: False, Selection) is shared


@pytest.mark.parametrize(
    ("words", "environ", "whole"),
    [
        ((), {}, False),
        (("--exclusive",), {}, True),
        (("--exclusive=topo",), {}, True),
        (("--exclusive=user",), {}, False),
        (("--exclusive", "-p", "debug"), {}, True),
        (("--exclusive", "--exclusive=mcs"), {}, False),
        ((), {"SALLOC_EXCLUSIVE": ""}, True),
        ((), {"SALLOC_EXCLUSIVE": "user"}, False),
        ((), {"SBATCH_EXCLUSIVE": ""}, False),
        (("-p", "whole"), {}, True),
        (("-pwhole",), {}, True),
        (("-p", "whole26"), {}, True),
        (("-p", "users"), {}, False),
        (("--partition=debug,whole",), {}, True),
        (("--partition", "shared"), {}, False),
        (("-p", "whole", "-p", "debug"), {}, False),
        ((), {"SALLOC_PARTITION": "whole"}, True),
        (("-p", "debug"), {"SALLOC_PARTITION": "whole"}, False),
    ],
)
def test_what_makes_nodes_whole(words: Sequence[str], environ: dict[str, str], whole: bool) -> None:
    found = gives_whole_nodes(words, environ, "salloc", lambda: PARTITIONS, Selection)
    assert found is whole


def test_a_default_partition_and_the_old_selector_do_so_too() -> None:
    default = (Partition("all", is_default=True, whole_nodes=True),)
    assert gives_whole_nodes((), {}, "sbatch", lambda: default, Selection)
    assert gives_whole_nodes((), {}, "sbatch", lambda: PARTITIONS, lambda: Selection("select/linear"))


def test_a_site_that_packs_fills_a_node() -> None:
    packs = Selection("select/cons_tres", frozenset({"CR_CORE_MEMORY", "CR_PACK_NODES"}))
    assert count_for_memory(5, "2", ("--exclusive",), lambda: True, lambda: packs) == 0
    assert count_for_memory(5, "2", ("--distribution=NoPack",), lambda: True, lambda: packs) == 3


@pytest.mark.parametrize(
    ("distributions", "alone", "by_the_site"),
    [
        ([], False, True),
        (["block"], False, True),
        (["cyclic"], False, False),
        (["cyclic,Pack"], False, False),
        (["block,NoPack"], False, False),
        (["Pack"], True, True),
        (["Pack", "NoPack"], False, False),
    ],
)
def test_what_fills_nodes_one_after_the_other(distributions: list[str], alone: bool, by_the_site: bool) -> None:
    assert is_packed(distributions) is alone
    packs = Selection("select/cons_tres", frozenset({"CR_CORE_MEMORY", "CR_PACK_NODES"}))
    assert is_packed(distributions, lambda: packs) is by_the_site


@pytest.mark.parametrize(
    ("words", "pack", "whole"),
    [
        ((), False, False),
        (("--exclusive",), False, True),
        (("--exclusive", "-N1"), False, False),
        (("-N", "4", "--exclusive"), False, False),
        (("-N2", "-m", "Pack"), True, False),
        (("-N2", "-m", "Pack", "-p", "whole"), True, True),
    ],
)
def test_a_job_by_hand_is_dealt_as_its_options_say(words: Sequence[str], pack: bool, whole: bool) -> None:
    request = Request((SetRequest("nat", 4),))
    found = find_dealing(request, words, {}, "salloc", lambda: PARTITIONS, Selection)
    assert found == replace(request, pack=pack, whole=whole)


def test_partitions_as_sinfo_names_them() -> None:
    assert PARTITIONS[:2] == (Partition("debug", True, False), Partition("whole", False, True))
