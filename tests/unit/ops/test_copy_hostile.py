# SPDX-License-Identifier: Apache-2.0
"""Copies from guests whose agents are their own: ours, changed to send what lies beside the path that was asked for."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import build_hostile_agent
from fleet import Fleet, fleet

from pvc.channel.trees import Entry, FilePacker, pack_entry
from pvc.ops.copied import Copied, asked_name
from pvc.ops.copy import copy

pytestmark = [
    pytest.mark.allow_run,  # agents are programs
    pytest.mark.allow_sockets,  # their ports, and the control port
]
# In place of PATH, the tree in PATH.evil if there is one.
_EVIL = """
	{
		char evil[5000];
		FILE *stream;
		size_t count;

		snprintf(evil, sizeof evil, "%s.evil", path);
		stream = fopen(evil, "r");
		if (stream != NULL) {
			while ((count = fread(block, 1, sizeof block, stream)) > 0)
				tree_write(block, count);
			return 0;
		}
	}
"""
_PLACE = '\t/* The name of "." or "dir/.." is that of the directory itself. */\n'
END = pack_entry(Entry("end"))


def file(name: str, data: bytes = b"evil", mode: int = 0o644) -> bytes:
    packer = FilePacker()
    return pack_entry(Entry("file", name, mode, size=len(data))) + packer.pack(data) + packer.end()


def directory(name: str, mode: int = 0o755) -> bytes:
    return pack_entry(Entry("dir", name, mode))


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    base = tmp_path_factory.mktemp("hostile")
    program = build_hostile_agent(base, {"get.c": (_PLACE, _PLACE + _EVIL)})
    with fleet(program, base, 2) as found:
        yield found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Ours, with what a guest would like to have replaced."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh/authorized_keys").write_text("mine")
    (home / ".bashrc").write_text("mine")
    return home


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """What honest guests have."""
    inside = tmp_path / "inside"
    (inside / "data").mkdir(parents=True)
    (inside / "data/result.txt").write_text("honest")
    return inside


def get(guests: Fleet, source: Path | str, target: Path | str, vms: str = "vm0", **options: bool) -> Copied:
    return copy(guests.control, [f"{vms}:{source}", os.fspath(target)], "root", **options).vms[0]  # type: ignore[arg-type]


def untouched(home: Path) -> bool:
    return (
        (home / ".bashrc").read_text() == "mine"
        and (home / ".ssh/authorized_keys").read_text() == "mine"
        and os.listdir(home / ".ssh") == ["authorized_keys"]
        and stat.S_IMODE((home / ".ssh").stat().st_mode) == 0o700
    )


@pytest.mark.parametrize(
    ("asked", "tree"),
    ids=range(8),
    argvalues=[
        ("data/result.txt", file(".bashrc")),
        ("data/result.txt", directory(".ssh", 0o777) + file(".ssh/authorized_keys")),
        ("data", directory(".ssh") + file(".ssh/authorized_keys")),
        ("data", directory(".ssh", 0o777)),
        ("data", file(".bashrc")),
        ("data/", file(".bashrc")),
        ("data/.", file(".bashrc")),
        ("data/..", directory(".ssh") + file(".ssh/authorized_keys")),
    ],
)
def test_a_guest_names_none_of_our_files(guests: Fleet, inside: Path, home: Path, asked: str, tree: bytes) -> None:
    evil = f"{inside}/{asked}.evil"
    Path(evil).write_bytes(tree + END)
    result = get(guests, f"{inside}/{asked}", home)
    assert untouched(home)
    # What it sent is there, under the name that was asked for.
    assert result.error is None
    assert sorted(os.listdir(home)) == sorted([".bashrc", ".ssh", asked_name(f"{inside}/{asked}", 0)])
    # The honest twin.
    os.unlink(evil)
    if "*" not in asked:
        other = home / "other"
        other.mkdir()
        assert get(guests, f"{inside}/{asked}", other).error is None
        assert [path.read_text() for path in other.rglob("result.txt")] == ["honest"]


def test_nor_one_of_several_guests(guests: Fleet, inside: Path, home: Path) -> None:
    (inside / "data.evil").write_bytes(directory(".ssh") + file(".ssh/authorized_keys") + END)
    done = copy(guests.control, [f"vm[0-1]:{inside}/data", os.fspath(home)], "root")
    done.raise_failed()
    assert untouched(home)
    assert [os.listdir(home / f"vm{rank}") for rank in (0, 1)] == [["data"]] * 2
    # Several sources of one: each has its own name.
    words = [f"vm0:{inside}/data", f"vm0:{inside}/data/result.txt", os.fspath(home)]
    copy(guests.control, words, "root").raise_failed()
    assert untouched(home)
    assert (home / "result.txt").read_text() == "honest"


def test_a_link_is_no_way_to_our_files(guests: Fleet, inside: Path, home: Path) -> None:
    evil = inside / "data.evil"
    evil.write_bytes(pack_entry(Entry("link", "data", target=os.fspath(home / ".bashrc"))) + END)
    assert "a link in place of" in (get(guests, inside / "data", home).error or "")
    assert not (home / "data").is_symlink()
    link = pack_entry(Entry("link", "data/way", target=os.fspath(home / ".ssh")))
    evil.write_bytes(directory("data") + link + file("data/result.txt") + END)
    result = get(guests, inside / "data", home)
    assert (result.error, len(result.problems), result.files) == (None, 1, 1)
    # A second copy finds nothing to go through.
    evil.write_bytes(directory("data") + directory("data/way", 0o777) + file("data/way/authorized_keys") + END)
    assert get(guests, inside / "data", home).error is None
    assert untouched(home)
    # The honest twin: with --links all links are kept, and still none is gone through.
    evil.unlink()
    (inside / "data/own").symlink_to("result.txt")
    (inside / "data/way").symlink_to(home / ".ssh")
    (home / "kept").mkdir()
    assert get(guests, inside / "data", home / "kept", links=True).problems == []
    assert (home / "kept/data/own").read_text() == "honest"
    assert (home / "kept/data/way").is_symlink()
    evil.write_bytes(directory("data") + directory("data/way", 0o777) + file("data/way/authorized_keys") + END)
    assert get(guests, inside / "data", home / "kept", links=True).error is not None
    assert untouched(home)


def test_modes_and_texts_of_a_guest(guests: Fleet, inside: Path, home: Path) -> None:
    evil = inside / "data.evil"
    bad = pack_entry(Entry("bad", "data/x\x1b]0;\u202e\nforged", error="gone\x9b2J"))
    evil.write_bytes(directory("data", 0o7777) + file("data/tool", mode=0o7777) + bad + END)
    result = get(guests, inside / "data", home)
    for name in ("data", "data/tool"):
        assert stat.S_IMODE((home / name).stat().st_mode) & 0o7022 == 0
    assert result.problems == ["data/x?]0;? forged: gone?2J"]
    # The honest twin: what may be kept of a mode is.
    evil.unlink()
    (inside / "data/tool").write_text("#!/bin/sh\n")
    (inside / "data/tool").chmod(0o750)
    assert get(guests, inside / "data/tool", home).error is None
    assert stat.S_IMODE((home / "tool").stat().st_mode) == 0o750


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/result.txt", "result.txt"),
        ("result.txt", "result.txt"),
        ("/data//", "data"),
        ("/data/./.", "data"),
        ("/a/b/..", "a"),
        ("..", "vm3"),
        (".", "vm3"),
        ("", "vm3"),
        ("/", "vm3"),
        ("//", "vm3"),
        ("../../..", "vm3"),
        (".bashrc", ".bashrc"),
        ("data/*", "*"),
    ],
)
def test_the_name_is_that_of_the_request(path: str, name: str) -> None:
    assert asked_name(path, 3) == name
