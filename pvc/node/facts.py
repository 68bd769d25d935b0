# SPDX-License-Identifier: Apache-2.0
"""A job's facts out of the environment that Slurm gives its prolog; every value is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from pvc.errors import HostError
from pvc.model.host import Component, JobFacts
from pvc.parse import parse_cpus_per_node, parse_name
from pvc.slurm.gres import parse_job_gres
from pvc.slurm.nodes import expand_nodes

_CLUSTER = re.compile(r"[\w.-]{1,255}", re.ASCII)
# What the shim hands over; anything else is dropped at its door.
KEYS = (
    "SLURM_JOB_ID",
    "SLURM_JOB_UID",
    "SLURM_JOB_GID",
    "SLURM_JOB_USER",
    "SLURM_NODELIST",
    "SLURM_JOB_CPUS_PER_NODE",
    "SLURMD_NODENAME",
    "SLURM_CLUSTER_NAME",
    "SLURM_RESTART_COUNT",
    "SLURM_CONF",
    "SLURM_HET_JOB_ID",
    "PVC_HET_COMPONENTS",
    "PVC_GRES",
    "SPANK_PVC_REQUEST",
)


def parse_job_id(values: Mapping[str, str]) -> int:
    """SLURM_JOB_ID.

    :raise HostError: it is missing or no number.
    """
    text = values.get("SLURM_JOB_ID", "")
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 32:
        raise HostError(f"SLURM_JOB_ID is {text!r}, not a job")
    return int(text)


def parse_job(values: Mapping[str, str]) -> JobFacts:
    """The facts of a prolog's job.

    :raise HostError: Slurm's environment is incomplete or malformed.
    """
    job_id = parse_job_id(values)
    try:
        nodes = expand_nodes(values["SLURM_NODELIST"])
        cpus = parse_cpus_per_node(values["SLURM_JOB_CPUS_PER_NODE"])
        for node in nodes:
            parse_name(node)
        facts = JobFacts(
            job_id=job_id,
            uid=_parse_id(values["SLURM_JOB_UID"]),
            gid=_parse_id(values["SLURM_JOB_GID"]),
            node=parse_name(values["SLURMD_NODENAME"]),
            nodes=nodes,
            cpus=cpus,
        )
    except KeyError as err:
        raise HostError(f"Slurm's prolog environment has no {err.args[0]}") from err
    except ValueError as err:
        raise HostError("Slurm's prolog environment cannot be read") from err
    # Whether this node is one of them is a plan's question, and a refusal: owners give nodes back at any time.
    if len(nodes) != len(cpus):
        raise HostError(f"Slurm's prolog environment contradicts itself: {values['SLURM_NODELIST']!r}")
    try:
        gres = parse_job_gres(values["PVC_GRES"]) if "PVC_GRES" in values else None
    except ValueError as err:
        raise HostError("what Slurm says of a job's generic resources cannot be read") from err
    # Slurm 22.05 gives it to every hook; a step that came before its prolog does not tell.
    cluster = values.get("SLURM_CLUSTER_NAME", "")
    if cluster and not _CLUSTER.fullmatch(cluster):
        raise HostError("Slurm's name of the cluster cannot be read")
    return _add_components(replace(facts, gres=gres, cluster=cluster), values)


def _add_components(facts: JobFacts, values: Mapping[str, str]) -> JobFacts:
    """The same with the nodes of all components, where the job is part of a heterogeneous one and they are known.

    :raise HostError: what Slurm says of them is malformed.
    """
    text = values.get("PVC_HET_COMPONENTS")
    try:
        leader = _parse_id(values.get("SLURM_HET_JOB_ID") or "0")
    except ValueError as err:
        raise HostError("Slurm's prolog environment cannot be read") from err
    if not leader or not text:
        return replace(facts, het_job_id=leader)
    components: list[Component] = []
    nodes: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()
    own: tuple[tuple[str, ...], tuple[int, ...]] | None = None
    try:
        for part in text.split(";"):
            number, node_text, cpu_text = part.split("/")
            found = expand_nodes(node_text), parse_cpus_per_node(cpu_text)
            if len(found[0]) != len(found[1]):
                raise ValueError(f"{part!r} contradicts itself")
            components.append(Component(_parse_id(number), len(found[0])))
            nodes, cpus = nodes + tuple(parse_name(node) for node in found[0]), cpus + found[1]
            own = found if components[-1].job_id == facts.job_id else own
    except ValueError as err:
        raise HostError("what Slurm says of a heterogeneous job's components cannot be read") from err
    if own != (facts.nodes, facts.cpus) or components[0].job_id != leader:
        # The job's owner has changed it meanwhile (scontrol update): as if nothing had been told, which is refused.
        return replace(facts, het_job_id=leader)
    return replace(facts, nodes=nodes, cpus=cpus, het_job_id=leader, components=tuple(components))


def _parse_id(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 32:
        raise ValueError(f"{text!r} is not a numeric id")
    return int(text)
