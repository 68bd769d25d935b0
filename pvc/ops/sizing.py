# SPDX-License-Identifier: Apache-2.0
"""What a definition's VMs are asked of Slurm as: neighbours that are asked for in the same way are one part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pvc.errors import UsageError
from pvc.model.request import MAX_SIZES, Request, Size
from pvc.model.site import SiteConfig, Template
from pvc.ops.definition import find_template, parse_items, resolve_request


@dataclass(frozen=True)
class Part:
    """Contiguous VMs of one size, with the same options for Slurm; more than one make a heterogeneous job.

    ``memory_mib`` is the guest's; None: Slurm's default.
    """

    templates: tuple[str, ...]
    count: int
    cpus: int
    memory_mib: int | None
    args: tuple[str, ...]


def find_parts(definition: str, config: SiteConfig, cpus: int | None, memory_mib: int | None) -> tuple[Part, ...]:
    """The parts in the order of the ranks; ``cpus`` and ``memory_mib`` are the command line's, which are for all VMs.

    :raise UsageError: no definition, or one of too many parts.
    """
    parts: list[Part] = []
    for item in parse_items(definition):
        template = find_template(item.template, config)
        one = Part(
            (template.name,),
            item.count,
            cpus if cpus is not None else template.cores or 1,
            memory_mib if memory_mib is not None else template.memory,
            list_slurm_args([template]),
        )
        last = parts[-1] if parts else None
        if last is not None and (last.cpus, last.memory_mib, last.args) == (one.cpus, one.memory_mib, one.args):
            names = tuple(dict.fromkeys((*last.templates, *one.templates)))
            parts[-1] = Part(names, last.count + one.count, one.cpus, one.memory_mib, one.args)
        else:
            parts.append(one)
    if len(parts) > MAX_SIZES:
        raise UsageError(
            f"{definition!r} changes {len(parts) - 1} times between sizes of VMs, and {MAX_SIZES} sizes are the most",
            hint="name templates of the same cores, memory and Slurm options one after the other",
        )
    return tuple(parts)


def make_sizes(parts: Sequence[Part], *, with_cpus: bool) -> tuple[Size, ...]:
    """The sizes of a request; nothing where all VMs are of one."""
    if len(parts) <= 1:
        return ()
    return tuple(Size(part.count, part.cpus if with_cpus else None) for part in parts)


def spread_nodes(parts: Sequence[Part], nodes: str | None) -> tuple[str | None, ...]:
    """What -N means for each part: the number is divided among them as their cores are, at least one for each.

    :raise UsageError: too few nodes, more than VMs, or a range, which cannot be divided.
    """
    if nodes is None or len(parts) == 1:
        return (nodes,) * len(parts)
    wanted = "each needs nodes of its own"
    if not nodes.isdecimal():
        raise UsageError(
            f"-N {nodes}: the VMs are of {len(parts)} sizes, and {wanted}: say one number",
            hint=f"-N {len(parts)} or more, or -N 1 for all VMs on one node",
        )
    total = int(nodes)
    most = sum(part.count for part in parts)
    if not len(parts) <= total <= most:
        raise UsageError(
            f"-N {nodes}: VMs of {len(parts)} sizes take {len(parts)} to {most} nodes, for {wanted}",
            hint="-N 1 puts all VMs on one node",
        )
    return tuple(str(count) for count in _divide(parts, total))


def _divide(parts: Sequence[Part], total: int) -> list[int]:
    """One after the other, a node goes to the part that has the most cores for each of its nodes."""
    counts = [1] * len(parts)
    for _ in range(total - len(parts)):
        open_parts = [index for index, part in enumerate(parts) if counts[index] < part.count]
        best = max(open_parts, key=lambda index: (parts[index].count * parts[index].cpus / counts[index], -index))
        counts[best] += 1
    return counts


def list_slurm_args(templates: Sequence[Template]) -> tuple[str, ...]:
    """Slurm's options that templates ask for, each once: what one job with VMs of all of them needs.

    :raise UsageError: templates give one option different values.
    """
    found: dict[str, tuple[str, str]] = {}
    for template in templates:
        for word in template.slurm_args:
            option = word.partition("=")[0] if word.startswith("--") else word[:2]
            other, said = found.setdefault(option, (template.name, word))
            if said != word and other != template.name:
                raise UsageError(
                    f"template {other!r} wants {said}, template {template.name!r} wants {word}",
                    hint="on one node (-N 1) all VMs are of one job; leave -N out, or change slurm-args of one of them",
                )
            found[option] = (template.name, word)
    gres = dict.fromkeys(each for template in templates for each in template.gres)
    return (*(word for _, word in found.values()), *([f"--gres={','.join(gres)}"] if gres else []))


def find_shared_args(parts: Sequence[Part], config: SiteConfig) -> tuple[str, ...]:
    """The options of an ordinary job for all parts.

    :raise UsageError: templates give one option different values.
    """
    names = dict.fromkeys(name for part in parts for name in part.templates)
    return list_slurm_args([find_template(name, config) for name in names])


def resolve_by_hand(definition: str, config: SiteConfig, cpus: int | None) -> Request:
    """The request of a job that is made by salloc or sbatch with --pvc=DEFINITION.

    There Slurm's own options say how many cores VMs have, so of the sizes only the number matters: that of components.

    :raise UsageError: malformed, too large, or with an unknown template.
    """
    sizes = () if cpus is not None else make_sizes(find_parts(definition, config, None, None), with_cpus=False)
    return resolve_request(definition, config, cpus, sizes)
