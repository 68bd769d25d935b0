# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import HostError
from pvc.model.host import GresPart, JobGres
from pvc.node import requests
from pvc.node.facts import KEYS, parse_job, parse_job_id

GOOD = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_UID": "1000",
    "SLURM_JOB_GID": "1000",
    "SLURM_NODELIST": "n[1-3]",
    "SLURM_JOB_CPUS_PER_NODE": "2(x2),1",
    "SLURMD_NODENAME": "n2",
}


def test_the_shims_request_is_read() -> None:
    text = "PVC1 setup\n" + "".join(f"{key}={value}\n" for key, value in GOOD.items()) + "\n"
    assert requests.parse(text) == ("setup", GOOD)


@pytest.mark.parametrize(
    "text",
    [
        "PVC1 format\n\n",
        "PVC1 setup\nPATH=/tmp\n\n",
        "PVC1 setup\nSLURM_JOB_ID=1\nSLURM_JOB_ID=2\n\n",
        "PVC1 setup\nSLURM_JOB_ID\n\n",
        "PVC1 setup\nSLURM_JOB_ID=1\x1b[2J\n\n",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="protocol"):
        requests.parse(text)


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        verb, values = requests.parse("PVC1 " + text)
    except ValueError:
        return
    assert verb in requests.VERBS
    assert set(values) <= set(KEYS)


def test_a_request_that_is_no_text_is_refused_to_its_user_and_drains_nothing() -> None:
    verb, values = requests.parse("PVC1 setup\nSLURM_JOB_ID=12\nSPANK_PVC_REQUEST=1;nat:4\x1b\n\n")
    assert (verb, values["SPANK_PVC_REQUEST"]) == ("setup", "invalid")


def test_job_facts_are_expanded() -> None:
    facts = parse_job(GOOD)
    assert facts.nodes == ("n1", "n2", "n3")
    assert facts.cpus == (2, 2, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SLURM_JOB_ID", "0"),
        ("SLURM_JOB_ID", "../../etc"),
        ("SLURM_JOB_UID", "-1"),
        ("SLURM_JOB_UID", "4294967296"),
        ("SLURM_NODELIST", "n[1-"),
        ("SLURM_NODELIST", "n1/../x,n2,n3"),
        ("SLURM_JOB_CPUS_PER_NODE", "2(x2)"),
        ("SLURMD_NODENAME", ""),
    ],
)
def test_facts_that_cannot_be_are_the_nodes_fault(key: str, value: str) -> None:
    with pytest.raises(HostError):
        parse_job({**GOOD, key: value})


def test_a_missing_fact_is_named() -> None:
    with pytest.raises(HostError, match="SLURM_JOB_GID"):
        parse_job({key: value for key, value in GOOD.items() if key != "SLURM_JOB_GID"})
    with pytest.raises(HostError, match="SLURM_JOB_ID"):
        parse_job_id({})


HET = {**GOOD, "SLURM_HET_JOB_ID": "11", "PVC_HET_COMPONENTS": "11/n9/4;12/n[1-3]/2(x2),1;13/a,b/8(x2)"}


def test_facts_of_a_component_are_those_of_all() -> None:
    facts = parse_job(HET)
    assert facts.nodes == ("n9", "n1", "n2", "n3", "a", "b")
    assert facts.cpus == (4, 2, 2, 1, 8, 8)
    assert (facts.job_id, facts.cluster_id, facts.parts) == (12, 11, (1, 3, 2))


def test_what_slurm_gave_is_told_or_not() -> None:
    assert parse_job(GOOD).gres is None
    gres = JobGres((GresPart("gpu", "", (1,)),), {"gpu": 2})
    assert parse_job({**GOOD, "PVC_GRES": "gpu:1(IDX:1);gpu:2"}).gres == gres
    assert parse_job({**HET, "PVC_GRES": "gpu:1(IDX:1);gpu:2"}).gres == gres
    with pytest.raises(HostError, match="generic resources cannot be read"):
        parse_job({**GOOD, "PVC_GRES": "gpu:1(IDX:1)"})


@pytest.mark.parametrize("text", [None, "", "0"])
def test_an_ordinary_job_has_no_components(text: str | None) -> None:
    more = {} if text is None else {"SLURM_HET_JOB_ID": text}
    facts = parse_job({**HET, "SLURM_HET_JOB_ID": "0"} if text == "0" else {**GOOD, **more})
    assert (facts.cluster_id, facts.parts, facts.nodes) == (12, (), ("n1", "n2", "n3"))


def test_without_the_controllers_word_there_are_no_components() -> None:
    facts = parse_job({**GOOD, "SLURM_HET_JOB_ID": "11"})
    assert (facts.het_job_id, facts.components) == (11, ())


@pytest.mark.parametrize(
    "text",
    [
        "12/n[1-3]/2(x2),1",  # the leader is missing
        "11/n9/4;13/n[1-3]/2(x2),1",  # this job is
        "11/n9/4;12/n[1-2]/2(x2)",  # other nodes than in the prolog's environment
        "11/n9/4;12/n[1-3]/2(x3)",
    ],
)
def test_components_that_their_owner_has_changed_meanwhile_are_unknown(text: str) -> None:
    """A set-up is refused then, as where Slurm's controller says nothing."""
    facts = parse_job({**HET, "PVC_HET_COMPONENTS": text})
    assert (facts.het_job_id, facts.components, facts.nodes) == (11, (), ("n1", "n2", "n3"))


def test_a_node_that_its_owner_has_given_back_is_no_fault() -> None:
    assert parse_job({**GOOD, "SLURMD_NODENAME": "n9"}).node == "n9"


@pytest.mark.parametrize(
    "text",
    [
        "11/n9/4,4;12/n[1-3]/2(x2),1",
        "11/../4;12/n[1-3]/2(x2),1",
        "11/n9;12/n[1-3]/2(x2),1",
        "x/n9/4;12/n[1-3]/2(x2),1",
        ";",
    ],
)
def test_components_that_cannot_be_are_the_nodes_fault(text: str) -> None:
    with pytest.raises(HostError):
        parse_job({**HET, "PVC_HET_COMPONENTS": text})
