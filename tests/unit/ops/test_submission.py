# SPDX-License-Identifier: Apache-2.0
"""What is checked before Slurm is asked for anything."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.cli import main
from pvc.errors import UsageError
from pvc.model.vm import Accel
from pvc.ops import handover
from pvc.ops.submission import (
    ClusterWishes,
    add_directives,
    parse_guest_memory,
    prepare,
    read_user_data,
)
from pvc.plan.qemumemory import needed_memory_mib
from pvc.slurm.job import Selection
from tests.unit.ops.worlds import make_config


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's commands read a site of the test's own, with templates a and b of different sizes."""
    config = make_config(tmp_path)
    plain = config.templates["plain"]
    config.templates["a"] = replace(plain, name="a", memory=512)
    config.templates["b"] = replace(plain, name="b", cores=4, memory=1024, resource_set="lan", gres=("gpu:1",))
    config.templates["c"] = replace(plain, name="c", slurm_args=("--qos=low",))
    config.templates["d"] = replace(plain, name="d", slurm_args=("--qos=high",))
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    monkeypatch.setattr("pvc.ops.submission.load_user_config", lambda: config)
    monkeypatch.setattr("pvc.ops.submission.gives_whole_nodes", lambda *_, **__: False)
    monkeypatch.setattr("pvc.ops.submission.read_selection", Selection)


def test_what_is_asked_of_slurm() -> None:
    submission = prepare(ClusterWishes("plain:3", slurm=("-p", "fast"), cpus=2, memory="1G", nodes="3"))
    memory = needed_memory_mib(1024, Accel.AUTO)
    assert submission.options == [
        *("--pvc=plain:3", "--job-name=pvc", "--comment=pvc plain:3", "--ntasks=3", "--cpus-per-task=2"),
        *(f"--mem={memory}M", "--nodes=3", "-p", "fast"),
    ]
    assert submission.variables == {"PVC_CPUS_PER_VM": "2", "PVC_RESOLVED": "plain:3 1;cpus=2;nat:3"}
    assert handover.decode(submission.text).order.request.count == 3


def test_templates_of_different_sizes_are_components() -> None:
    submission = prepare(ClusterWishes("a:2,b:4", slurm=("--time=9",)))
    small, large = (needed_memory_mib(each, Accel.AUTO) for each in (512, 1024))
    assert submission.options == [
        *("--pvc=a:2,b:4", "--job-name=pvc", "--comment=pvc a:2,b:4"),
        *("--ntasks=2", "--cpus-per-task=1", f"--mem-per-cpu={small}M", "--time=9", ":"),
        *("--ntasks=4", "--cpus-per-task=4", f"--mem-per-cpu={-(-large // 4)}M", "--gres=gpu:1", "--time=9"),
    ]
    assert submission.variables == {"PVC_RESOLVED": "a:2,b:4 1;sizes=2:1,4:4;nat:2,lan:4"}
    assert handover.decode(submission.text).order.memory_mib == (small, large)


def test_the_command_lines_size_is_for_all() -> None:
    submission = prepare(ClusterWishes("a,plain:2", cpus=3, memory="1G"))
    assert ":" not in submission.options
    assert submission.variables["PVC_RESOLVED"] == "a,plain:2 1;cpus=3;nat:3"


def test_one_node_is_one_ordinary_job_for_all_sizes() -> None:
    submission = prepare(ClusterWishes("a:2,b:4", nodes="1"))
    small, large = (needed_memory_mib(each, Accel.AUTO) for each in (512, 1024))
    assert submission.options[3:] == [
        *("--ntasks=1", "--cpus-per-task=18", f"--mem={2 * small + 4 * large}M"),
        *("--nodes=1", "--gres=gpu:1"),
    ]
    order = handover.decode(submission.text).order
    assert order.memory_mib == (small, large)
    assert order.request.encode() == "1;sizes=2:1,4:4;nat:2,lan:4"


def test_a_distribution_that_packs_is_told_to_the_nodes() -> None:
    for words, packed in (
        (("--distribution=block:cyclic,Pack",), True),
        (("--distribution", "pack"), True),
        (("-m", "*,Pack"), True),
        (("--distribution=Pack", "--distribution=block,NoPack"), False),
        (("--distribution=cyclic",), False),
        (("--distribution=cyclic:block,Pack",), False),
    ):
        submission = prepare(ClusterWishes("plain:3", slurm=words))
        assert (";pack;" in submission.variables["PVC_RESOLVED"]) is packed
        assert handover.decode(submission.text).order.request.pack is packed


@pytest.mark.parametrize(("nodes", "found"), [("2", ["1", "1"]), ("3", ["1", "2"]), ("6", ["2", "4"]), (None, [])])
def test_nodes_go_to_the_parts_as_their_cores_are(nodes: str | None, found: list[str]) -> None:
    options = prepare(ClusterWishes("a:2,b:4", nodes=nodes)).options
    assert [word.partition("=")[2] for word in options if word.startswith("--nodes=")] == found


@pytest.mark.parametrize(
    ("wishes", "text"),
    [
        (ClusterWishes("a:2,b:4", nodes="2-3"), "say one number"),
        (ClusterWishes("a:2,b:4", nodes="7"), "take 2 to 6 nodes"),
        (ClusterWishes("a,b,a", nodes="2"), "take 3 to 3 nodes"),
        (ClusterWishes("a,b", slurm=("-w", "n1")), "--nodelist is not for a cluster of VMs of 2 sizes"),
        (ClusterWishes("a,b", slurm=("--array=1-2",)), "--array is not"),
        (ClusterWishes("c,d", nodes="1"), "template 'c' wants --qos=low, template 'd' wants --qos=high"),
        (ClusterWishes("a,c", nodes="1"), "template 'c' does not say how much memory"),
        (ClusterWishes(",".join(["a,b"] * 33)), "64 sizes are the most"),
    ],
)
def test_what_sizes_do_not_allow(wishes: ClusterWishes, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        prepare(wishes)


def test_a_users_comment_stays() -> None:
    options = prepare(ClusterWishes("plain", slurm=("--comment=mine",))).options
    assert [word for word in options if word.startswith("--comment")] == ["--comment=mine"]


@pytest.mark.parametrize(("text", "wanted"), [("256M", 256), ("4G", 4096), ("1000", 1000)])
def test_memory_is_the_guests(text: str, wanted: int) -> None:
    assert parse_guest_memory(text) == wanted


@pytest.mark.parametrize("text", ["1M", "x", "-5", ""])
def test_wrong_memory(text: str) -> None:
    with pytest.raises(UsageError, match="-m"):
        parse_guest_memory(text)


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_wrong_user_data(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "user-data"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="--user-data"):
        read_user_data(os.fspath(path))


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("alloc", 2, "a definition is missing"),
        ("alloc nope", 2, "no template 'nope'"),
        ("alloc plain:0", 2, "a cluster has 1 to 65536 VMs"),
        ("alloc plain:1000000", 2, "a cluster has 1 to 65536 VMs"),
        ("alloc web", 2, "no image 'web'"),
        ("alloc -c 0 plain", 2, "-c"),
        ("alloc -c 5000 plain", 2, "4096"),
        ("alloc -m nothing plain", 2, "-m nothing"),
        ("alloc -n 4 plain:4", 2, "the number of VMs is in the definition"),
        ("alloc --mem=4G plain", 2, "give each VM's memory with -m"),
        ("alloc --mem-per-gpu 4G plain", 2, "give each VM's memory with -m"),
        ("alloc --no-shell plain", 2, "VMs end with the shell or script beside them"),
        ("alloc --container /x plain", 2, "VMs have images of their own"),
        ("batch --wrap true plain sh", 2, "the script comes after the definition"),
        ("alloc --user-data /nope plain", 2, "--user-data: cannot read /nope"),
        ("alloc --resource-set nope plain", 2, "no resource set 'nope'"),
        ("alloc --image nope plain", 2, "no image 'nope'"),
        ("alloc --image x=y plain", 2, "no template 'x'"),
        ("alloc -E /nope plain", 2, "no script or command '/nope'"),
        ("alloc plain /nope", 2, "no script or command '/nope'"),
        ("batch plain", 2, "a batch job needs a script"),
        ("launch", 2, "PVC_LAUNCH is not set"),
        ("start plain", 4, "there is none"),
        ("wait --timeout x", 2, "--timeout"),
        ("stop --grace x", 2, "--grace"),
        ("status -j 77", 4, "job 77 has no running cluster"),
        ("ssh", 2, "which VM?"),
        ("ssh -j 77 vm0", 4, "job 77 has no running cluster"),
        ("scp a b", 2, "no place is in a VM"),
        ("console -j 77", 4, "job 77 has no running cluster"),
    ],
)
def test_bad_input(line: str, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(line.split()) == code
    said = capsys.readouterr()
    assert text in said.err
    assert said.out == ""


def test_resolve_prints_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PVC_CPUS_PER_VM", "2")
    monkeypatch.setattr("pvc.config.load.load_user_config", lambda: make_config(tmp_path))
    assert main.run(["resolve", "--", "plain:2,db"]) == 0
    assert capsys.readouterr().out == "1;cpus=2;nat:2,lan:1\n"


def make_script(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "job.sh"
    path.write_text("\n".join(["#!/bin/sh", *(f"#SBATCH {line}" for line in lines), "true", ""]))
    return os.fspath(path)


def test_lines_of_the_script_are_wishes(tmp_path: Path) -> None:
    script = make_script(tmp_path, "-J mine -N2", "--time=7 --ntasks 9 --mem=4G", "--cpus-per-task 3 --partition x")
    wishes, ignored = add_directives(ClusterWishes("plain:3", slurm=("--time=9",)), script)
    assert wishes == ClusterWishes(
        "plain:3", slurm=("--time=7", "--partition", "x", "--time=9"), name="mine", nodes="2", cpus=3
    )
    assert ignored == ("--ntasks", "9", "--mem=4G")


def test_the_command_line_wins_over_the_script(tmp_path: Path) -> None:
    wishes = ClusterWishes("plain:3", name="other", nodes="1", cpus=2)
    assert add_directives(wishes, make_script(tmp_path, "-J mine -N 2 -c 3")) == (wishes, ())


@pytest.mark.parametrize(
    ("line", "text"),
    [("word", "'word' in an #SBATCH line is no option"), ("-c many", "'many' is no number"), ("-J 'x", "job.sh:2")],
)
def test_lines_that_are_wrong(tmp_path: Path, line: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        add_directives(ClusterWishes("plain"), make_script(tmp_path, line))


@pytest.mark.parametrize("home", ["relative", "FILE", "FILE/below"])
def test_a_home_that_takes_no_cluster_is_said_before_there_is_a_job(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", home.replace("FILE", os.fspath(tmp_path / "file")))
    monkeypatch.chdir(tmp_path)
    assert main.run(["alloc", "plain", "true"]) == 6
    said = capsys.readouterr().err
    assert "is no place for clusters" in said
    assert "$HOME" in said
    assert not (tmp_path / ".pvc").exists()
