# SPDX-License-Identifier: Apache-2.0
"""Copies to agents that are processes of this machine, from them, and between them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import build_agent
from fleet import Fleet, fleet

from pvc.errors import HostError, UsageError
from pvc.ops.copied import Copies, Place, parse_copy, parse_place
from pvc.ops.copy import copy, is_match
from tests.unit import filenames
from tests.waits import wait_until

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [
    pytest.mark.allow_run,  # agents are programs
    pytest.mark.allow_sockets,  # their ports, and the control port
]


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    program = build_agent(tmp_path_factory.getbasetemp().parent / "pvc-agent")
    with fleet(program, tmp_path_factory.mktemp("guests"), 3) as found:
        yield found


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A directory of the guests: they have one file system, ours."""
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


def run(guests: Fleet, *words: Path | str, **options: bool) -> Copies:
    return copy(guests.control, [os.fspath(word) for word in words], "root", **options)  # type: ignore[arg-type]


def done(guests: Fleet, *words: Path | str, **options: bool) -> Copies:
    found = run(guests, *words, **options)
    found.raise_failed()
    return found


# --- names


def test_every_name_there_and_back(guests: Fleet, there: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for name in filenames.SEEN:
        (tmp_path / "here" / name).write_text(repr(name))
    done(guests, tmp_path / "here", f"vm0:{there}")
    done(guests, f"vm0:{there}/here", tmp_path / "back")
    assert {each.name: each.read_text() for each in (tmp_path / "back").iterdir()} == {
        name: repr(name) for name in filenames.SEEN
    }


@pytest.mark.parametrize("name", filenames.SEEN)
def test_a_name_by_itself(guests: Fleet, there: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    done(guests, tmp_path / name, f"vm0:{there}/")
    assert os.listdir(there) == [name]
    done(guests, f"vm0:{there}/{name}", there / "copy")
    done(guests, f"vm0:{there}/{name}", f"vm1:{there}/again")
    assert ((there / "copy").read_text(), (there / "again").read_text()) == ("x", "x")


def test_places() -> None:
    assert parse_place("vm1:~/a b", 3) == Place("a b", (1,))
    assert parse_place("vm1:~", 3) == Place("", (1,))
    assert parse_place("vm1:~anne/x", 3) == Place("~anne/x", (1,))
    assert parse_place("vm[0-1]:/x:y", 3) == Place("/x:y", (0, 1))
    assert parse_place("host:/x", 3) == Place("host:/x")
    assert parse_place("-", 3).is_stream
    assert not parse_place("./-", 3).is_stream


@pytest.mark.parametrize("words", ["a", "a b", "- b", "vm0:a b c", "vm[0-1]:a -", "- a vm0:", "'' vm0:x"])
def test_what_cannot_be_meant(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(UsageError):
        parse_copy([word.strip("'") for word in words.split()], 3)


# --- sizes and holes


def make_sparse(path: Path, size: int = 3 << 30) -> None:
    with path.open("wb") as stream:
        stream.write(b"a")
        stream.seek(size // 2)
        stream.write(b"b")
        stream.truncate(size)


def check_sparse(path: Path, size: int = 3 << 30) -> None:
    facts = path.stat()
    assert facts.st_size == size
    assert facts.st_blocks * 512 < 1 << 20
    with path.open("rb") as stream:
        assert stream.read(2) == b"a\0"
        stream.seek(size // 2)
        assert stream.read(2) == b"b\0"


def test_holes_stay_holes(guests: Fleet, there: Path, tmp_path: Path) -> None:
    make_sparse(tmp_path / "disk")
    (tmp_path / "hole").touch()
    os.truncate(tmp_path / "hole", 5 << 40)
    sent = done(guests, tmp_path / "disk", tmp_path / "hole", f"vm0:{there}").vms[0]
    assert (sent.files, sent.bytes < 1 << 20) == (2, True)
    (tmp_path / "back").mkdir()
    got = done(guests, f"vm0:{there}/disk", f"vm0:{there}/hole", tmp_path / "back").vms[0]
    assert (got.files, got.bytes < 1 << 20) == (2, True)
    done(guests, f"vm1:{there}/disk", f"vm2:{there}/passed")
    for path in (there / "disk", tmp_path / "back/disk", there / "passed"):
        check_sparse(path)
    for path in (there / "hole", tmp_path / "back/hole"):
        assert (path.stat().st_size, path.stat().st_blocks) == (5 << 40, 0)


def test_files_that_have_no_size(guests: Fleet, there: Path, tmp_path: Path) -> None:
    kernel = Path("/proc/version").read_bytes()
    assert done(guests, "/proc/version", f"vm0:{there}").vms[0].bytes == len(kernel)
    assert done(guests, "vm0:/proc/version", tmp_path / "got").vms[0].bytes == len(kernel)
    assert ((there / "version").read_bytes(), (tmp_path / "got").read_bytes()) == (kernel, kernel)
    # and one whose size is a page, whatever is in it
    done(guests, "vm0:/sys/kernel/mm/transparent_hugepage/enabled", tmp_path)
    assert 5 < (tmp_path / "enabled").stat().st_size < 100


@pytest.mark.parametrize(("source", "target"), [("", "vm0:"), ("vm0:", ""), ("vm0:", "vm1:")])
def test_a_file_that_grows_is_read_to_its_end(
    guests: Fleet, there: Path, tmp_path: Path, source: str, target: str
) -> None:
    log = tmp_path / "log"
    log.write_bytes(bytes(8 << 20))  # more than is on its way at once
    told: list[int] = []

    def append(count: int) -> None:
        told.append(count)
        if len(told) == 1:
            with log.open("ab") as stream:
                stream.write(b"more")

    found = copy(guests.control, [f"{source}{log}", f"{target}{there}/copy"], "root", append)
    found.raise_failed()
    assert (there / "copy").read_bytes() == bytes(8 << 20) + b"more"
    (note,) = found.notes or found.vms[0].notes
    assert note.endswith("changed while it was read")


def test_set_uid_bits_are_their_owners(guests: Fleet, there: Path, tmp_path: Path) -> None:
    (tmp_path / "tool").touch()
    (tmp_path / "tool").chmod(0o6755)
    done(guests, tmp_path / "tool", f"vm0:{there}")
    done(guests, f"vm0:{tmp_path}/tool", f"vm1:{there}/passed")
    assert {stat.S_IMODE((there / name).stat().st_mode) for name in ("tool", "passed")} == {0o755}


# --- where it goes


def test_what_cannot_be_is_said_before_anything_is_sent(guests: Fleet, there: Path, tmp_path: Path) -> None:
    make_sparse(tmp_path / "disk")
    (there / "disk").mkdir()
    (there / "file").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/data").write_bytes(bytes(1 << 20))
    for words, text in (
        ((tmp_path / "disk", f"vm0:{there}"), "Is a directory"),
        ((f"vm0:{tmp_path}/disk", there), "Is a directory"),
        ((tmp_path / "tree", f"vm0:{there}/file"), "Not a directory"),
        ((f"vm0:{tmp_path}/tree", there / "file"), "Not a directory"),
        ((f"vm0:{tmp_path}/tree", f"vm1:{there}/file"), "Not a directory"),
    ):
        (result,) = run(guests, *words).vms
        assert text in (result.error or "")
        assert result.bytes == 0
    with pytest.raises(HostError, match=r"cannot make .*/file/vm0.*Not a directory") as caught:
        run(guests, f"vm[0-1]:{tmp_path}/tree", there / "file")
    assert caught.value.hint == "of several VMs each gets a directory of its name"
    assert sorted(os.listdir(there)) == ["disk", "file"]


# --- between VMs


def test_between_vms(guests: Fleet, there: Path, tmp_path: Path) -> None:
    (tmp_path / "tree/deep").mkdir(parents=True)
    (tmp_path / "tree/deep/data").write_bytes(data := os.urandom(9 << 20))
    (tmp_path / "tree/link").symlink_to("deep/data")
    (tmp_path / "tree/out").symlink_to("/etc/passwd")
    (tmp_path / "tree/run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "tree/run.sh").chmod(0o755)
    (there / "tree").mkdir()  # which both put their files into
    found = run(guests, f"vm0:{tmp_path}/tree", f"vm[1-2]:{there}")
    assert [(each.error, each.files) for each in found.vms] == [(None, 2), (None, 2)]
    assert found.vms[0].problems == ["vm0: tree/out: a link to /etc/passwd: left out (see --links)"]
    assert (there / "tree/deep/data").read_bytes() == data
    assert (os.readlink(there / "tree/link"), (there / "tree/out").is_symlink()) == ("deep/data", False)
    assert os.access(there / "tree/run.sh", os.X_OK)
    done(guests, f"vm0:{tmp_path}/tree", f"vm1:{there}/other", links=True)
    assert os.readlink(there / "other/out") == "/etc/passwd"
    done(guests, f"vm[0-1]:{tmp_path}/tree/run.sh", f"vm2:{there}")
    assert sorted(path.parent.name for path in there.glob("vm*/run.sh")) == ["vm0", "vm1"]


def test_what_fails_between_vms(guests: Fleet, there: Path, tmp_path: Path) -> None:
    (result,) = run(guests, f"vm0:{tmp_path}/nothing", f"vm1:{there}/x").vms
    assert result.error == "vm0: nothing: No such file or directory"
    (tmp_path / "some").write_bytes(os.urandom(5 << 20))
    for result in run(guests, f"vm0:{tmp_path}/some", f"vm[1-2]:{there}/no/such").vms:
        assert "No such file or directory" in (result.error or "")
    (result,) = run(guests, f"vm0:{tmp_path}/some", "vm1:/dev/full/x").vms
    assert "Not a directory" in (result.error or "")
    assert os.listdir(there) == []


# --- globs


def test_globs_are_the_guests(guests: Fleet, there: Path, tmp_path: Path) -> None:
    for name in ("a.log", "b.log", "c.txt", ".hidden.log", "[ab].log"):
        (tmp_path / name).write_text(name)
    assert done(guests, f"vm0:{tmp_path}/*.log", there).vms[0].files == 3
    assert sorted(os.listdir(there)) == ["[ab].log", "a.log", "b.log"]
    # What is called so is meant before what fits.
    done(guests, f"vm0:{tmp_path}/[ab].log", there / "one")
    assert (there / "one").read_text() == "[ab].log"
    done(guests, f"vm[0-1]:{tmp_path}/?.txt", there / "each")
    assert sorted(os.fspath(path.relative_to(there)) for path in there.glob("each/*/*")) == [
        "each/vm0/c.txt", "each/vm1/c.txt",
    ]  # fmt: skip
    done(guests, f"vm0:{tmp_path}/*.txt", f"vm1:{there}/passed")
    assert (there / "passed").read_text() == "c.txt"
    (result,) = run(guests, f"vm0:{tmp_path}/*.none", there).vms
    assert result.error == "*.none: No such file or directory"


@pytest.mark.parametrize(
    ("path", "pattern", "fits"),
    [
        ("/a/x.log", "/a/*.log", True), ("/a/[x]", "/a/[x]", True), ("/a/.bashrc", "/a/*", False),
        ("/a/b/c", "/a/*", False), ("/b/x", "/a/*", False), ("/a/", "/a/*", False), ("/a/..", "/a/*", False),
        ("/a/..", "/a/.*", False), ("/a/.x", "/a/.*", True), ("a1", "a[^2]", True), ("", "*", False),
    ],
)  # fmt: skip
def test_what_a_guest_may_say_that_a_pattern_means(path: str, pattern: str, fits: bool) -> None:
    assert is_match(path, pattern) is fits


# --- standard streams, signals: the command itself

_COMMAND = """
import sys
from pathlib import Path
from pvc import codec
from pvc.cli import main
from pvc.model.cluster import ClusterRecord
from pvc.ops import cluster
from pvc.ops.control import Control
from pvc.ops.jobdir import JobDir

record = codec.loads(ClusterRecord, sys.argv[1])
control = Control(record, JobDir(Path(sys.argv[2])))
cluster.Cluster.control = property(lambda _: control)
cluster.Cluster.find = lambda *_: cluster.Cluster(record)
sys.argv[:3] = ["pvc"]
main.main()
"""


def command(guests: Fleet, *words: str | Path) -> list[str]:
    from pvc import codec

    record = codec.dumps(guests.control.record)
    return [sys.executable, "-c", _COMMAND, record, os.fspath(guests.jobdir.path), *map(os.fspath, words)]


def pvc(guests: Fleet, *words: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(guests, *words), cwd=ROOT, check=False, timeout=60, capture_output=True, **options)  # type: ignore[call-overload,no-any-return]


def complaints(said: bytes) -> str:
    """All but the line about a copy that took its time."""
    return "".join(line for line in said.decode().splitlines(True) if not line.startswith("pvc: copied "))


def test_standard_streams(guests: Fleet, there: Path, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "data").write_bytes(data)
    ran = pvc(guests, "cp", "-", f"vm[0-1]:{there}/piped", input=data)
    assert (complaints(ran.stderr), ran.returncode) == ("", 0)
    assert (there / "piped").read_bytes() == data
    with (tmp_path / "data").open("rb") as stream:
        ran = pvc(guests, "cp", "--json", "-", f"vm0:{there}/file", stdin=stream)
    assert ((there / "file").read_bytes(), json.loads(ran.stdout)[0]["bytes"]) == (data, len(data))
    ran = pvc(guests, "cp", f"vm0:{tmp_path}/data", "-", stdin=subprocess.DEVNULL)
    assert (ran.returncode, ran.stdout) == (0, data)
    make_sparse(tmp_path / "sparse", 1 << 21)
    assert pvc(guests, "cp", f"vm0:{tmp_path}/sparse", "-").stdout == (tmp_path / "sparse").read_bytes()
    make_sparse(tmp_path / "large")
    with (tmp_path / "out").open("wb") as out:
        argv = command(guests, "cp", f"vm0:{tmp_path}/large", "-")
        assert subprocess.run(argv, cwd=ROOT, check=False, timeout=60, stdout=out).returncode == 0
    check_sparse(tmp_path / "out")
    for words, text in (
        (("-", f"vm0:{there}"), b"Is a directory"),
        ((f"vm0:{tmp_path}", "-"), b"a directory cannot go to standard output"),
    ):
        ran = pvc(guests, "cp", *words, input=b"")
        assert (ran.returncode, text in ran.stderr) == (7, True)


def test_a_terminal_gets_no_file_of_a_guest(guests: Fleet) -> None:
    master, slave = os.openpty()
    argv = command(guests, "cp", "vm0:/proc/version", "-")
    ran = subprocess.run(argv, cwd=ROOT, check=False, timeout=60, stdout=slave, stderr=subprocess.PIPE)
    os.close(slave)
    os.close(master)
    assert (ran.returncode, b"is not printed on a terminal" in ran.stderr) == (2, True)


def test_a_reader_that_has_gone_and_a_full_disk(guests: Fleet, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(8 << 20))
    process = subprocess.Popen(
        command(guests, "cp", f"vm0:{tmp_path}/data", "-"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert (process.wait(60), complaints(process.stderr.read())) == (1, "")
    process.stderr.close()
    with open("/dev/full", "wb") as full:
        for words in (("cp", f"vm0:{tmp_path}/data", "-"), ("exec", "vm0", "head", "-c1000000", "/dev/zero")):
            ran = subprocess.run(
                command(guests, *words), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60
            )
            assert b"cannot write to standard output: No space left on device" in ran.stderr
            assert b"supervisor" not in ran.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_download_that_is_told_to_end_leaves_nothing(guests: Fleet, there: Path, number: int) -> None:
    # 256 GiB of numbers
    process = subprocess.Popen(
        command(guests, "cp", "vm0:/proc/self/pagemap", there), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: any(path.stat().st_size for path in there.glob(".pvc-*")), 60)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert os.listdir(there) == []


def test_uploads_are_counted(guests: Fleet, there: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (there / "tree").mkdir()  # which both put their files into
    for name in "ab":
        (tmp_path / "tree" / name).write_text("12345")
    ran = pvc(guests, "cp", "--json", tmp_path / "tree", f"vm[0-1]:{there}")
    assert [(each["bytes"], each["files"]) for each in json.loads(ran.stdout)] == [(10, 2), (10, 2)]
