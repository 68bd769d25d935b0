# SPDX-License-Identifier: Apache-2.0
"""How much memory Slurm is asked for: for each CPU or for each node, as nodes are shared or given whole.

Memory for each CPU counts for all CPUs that a job gets, and of a node that it gets whole these are all: a small
cluster would ask for more memory than the node has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from pvc.model.request import Request
from pvc.slurm.job import Partition, Selection, read_partitions, read_selection
from pvc.slurm.options import find_values

_OF_A_USER = ("user", "mcs")  # salloc(1): the node is shared, but with nobody else's jobs
_LINEAR = "select/linear"
_PACKS = "CR_PACK_NODES"


def count_for_memory(
    count: int,
    nodes: str | None,
    words: Sequence[str],
    is_whole: Callable[[], bool],
    selection: Callable[[], Selection] = read_selection,
) -> int | None:
    """The VMs of a node whose memory ``--mem`` shall ask for; 0: all that the node has; None: ask for each CPU.

    ``count`` VMs are on ``nodes`` (the value of -N); ``words`` are Slurm's options. ``is_whole`` and
    ``selection`` are called only where the answer hangs on them, because they may have to ask Slurm.
    """
    number = int(nodes) if nodes is not None and nodes.isdecimal() else None
    if is_forced(count, nodes):
        return count if number == 1 else 1
    if not is_whole():
        return None
    most = [int(each) for each in find_values(words, "--ntasks-per-node") if each.isdecimal()][-1:]
    if number and not is_packed(find_values(words, "--distribution", "-m"), selection):
        # Slurm deals tasks out evenly to nodes that it gives whole.
        most.append(-(-count // number))
    return min(most, default=0)


def is_forced(count: int, nodes: str | None) -> bool:
    """Whether ``count`` VMs can be on so many nodes (the value of -N) in one way only."""
    return count == 1 or (nodes is not None and nodes.isdecimal() and (int(nodes) == 1 or int(nodes) >= count))


def is_exclusive(words: Sequence[str], environ: Mapping[str, str], program: str) -> bool:
    """Whether whole nodes are asked for by name, in these options or in the environment of ``program``."""
    name = f"{program.upper()}_EXCLUSIVE"
    said = find_values(words, "--exclusive") or ([environ[name]] if name in environ else [])
    return bool(said) and said[-1] not in _OF_A_USER


def is_packed(distributions: Sequence[str], selection: Callable[[], Selection] = Selection) -> bool:
    """Whether the last of these values of --distribution lets Slurm fill nodes one after the other (salloc(1)).

    Where it says nothing of that, the site does, by CR_Pack_Nodes (slurm.conf(5)): ``selection`` is asked then. Of a
    cyclic distribution Slurm (22.05) does not heed it.
    """
    words = distributions[-1].lower().split(",") if distributions else []
    if "nopack" in words or (words and words[0].startswith(("cyclic", "plane", "arbitrary"))):
        return False
    return "pack" in words or _PACKS in selection().parameters


def find_dealing(
    request: Request,
    words: Sequence[str],
    environ: Mapping[str, str],
    program: str,
    partitions: Callable[[], Sequence[Partition]] = read_partitions,
    selection: Callable[[], Selection] = read_selection,
) -> Request:
    """A request for VMs that are placed as Slurm places the tasks of a job with these options.

    :raise JobError: Slurm does not answer.
    """
    nodes = find_values(words, "--nodes", "-N")
    if is_forced(request.count, nodes[-1] if nodes else None):
        return request
    selection = cache(selection)
    # What sbatch (22.05) is told of that counts for steps in the job, and not for the job's own tasks.
    said = find_values(words, "--distribution", "-m") if program != "sbatch" else []
    pack = is_packed(said, selection)
    return replace(request, pack=pack, whole=gives_whole_nodes(words, environ, program, partitions, selection))


def gives_whole_nodes(
    words: Sequence[str],
    environ: Mapping[str, str],
    program: str,
    partitions: Callable[[], Sequence[Partition]] = read_partitions,
    selection: Callable[[], Selection] = read_selection,
) -> bool:
    """Whether a job with these options of ``program`` ("salloc", "sbatch") gets whole nodes.

    :raise JobError: Slurm does not answer.
    """
    if is_exclusive(words, environ, program):
        return True
    wanted = find_values(words, "--partition", "-p")[-1:] or [environ.get(f"{program.upper()}_PARTITION", "")]
    names = set(wanted[0].split(",")) - {""}
    for each in partitions():
        if each.whole_nodes and (each.name in names if names else each.is_default):
            return True
    return selection().type == _LINEAR
