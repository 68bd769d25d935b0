"""What is checked before Slurm is asked for anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pvc.cli import main
from pvc.errors import UsageError
from pvc.model.vm import Accel
from pvc.ops import handover
from pvc.ops.submission import ClusterWishes, allocated_memory_mib, prepare, read_user_data
from pvc.plan.qemu import guest_memory_mib
from tests.unit.ops.worlds import make_config


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's commands read a site of the test's own."""
    config = make_config(tmp_path)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    monkeypatch.setattr("pvc.ops.submission.load_user_config", lambda: config)


def test_what_is_asked_of_slurm() -> None:
    submission = prepare(ClusterWishes("plain:3", slurm=("-p", "fast"), cpus=2, memory="1G", nodes="3"))
    memory = allocated_memory_mib("1G", Accel.AUTO)
    assert submission.options == [
        *("--pvc=plain:3", "--job-name=pvc", "--ntasks=3", "--cpus-per-task=2", f"--mem-per-cpu={-(-memory // 2)}M"),
        *("--nodes=3", "--comment=pvc plain:3", "-p", "fast"),
    ]
    assert submission.variables == {"PVC_CPUS_PER_VM": "2", "PVC_RESOLVED": "plain:3 1;cpus=2;nat:3"}
    assert handover.decode(submission.text).order.request.count == 3


def test_a_users_comment_stays() -> None:
    options = prepare(ClusterWishes("plain", slurm=("--comment=mine",))).options
    assert [word for word in options if word.startswith("--comment")] == ["--comment=mine"]


@pytest.mark.parametrize("accel", list(Accel))
@pytest.mark.parametrize("text", ["256M", "4G", "1000"])
def test_memory_is_the_guests(text: str, accel: Accel) -> None:
    wanted = {"256M": 256, "4G": 4096, "1000": 1000}[text]
    assert guest_memory_mib(allocated_memory_mib(text, accel), accel) == wanted


@pytest.mark.parametrize("text", ["1M", "x", "-5", ""])
def test_wrong_memory(text: str) -> None:
    with pytest.raises(UsageError, match="-m"):
        allocated_memory_mib(text, Accel.TCG)


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
        ("alloc --user-data /nope plain", 2, "cannot read --user-data /nope"),
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
