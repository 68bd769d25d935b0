# SPDX-License-Identifier: Apache-2.0
"""What supervisors keep of their own words, and the ends of logs."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.supervisor.journal import Journal
from pvc.supervisor.logs import last_lines


class Transport(asyncio.WriteTransport):
    """Says how much was not read."""

    queued = 0
    aborted = False

    def get_write_buffer_size(self) -> int:
        return self.queued

    def abort(self) -> None:
        self.aborted = True


class Watching:
    """A watcher that keeps what it is sent."""

    def __init__(self) -> None:
        self.data = b""
        self.transport = Transport()

    def write(self, data: bytes) -> None:
        self.data += data


def texts(data: bytes) -> list[str]:
    return [line.split(" ", 1)[1] for line in data.decode().splitlines()]


def test_each_vm_has_its_lines_and_those_of_the_node() -> None:
    journal = Journal()
    journal.note(0, "vm0 booting")
    journal.note(None, "no KVM here")
    journal.note(1, "vm1 failed: \x1b[2Jgone\nand more")
    assert texts(journal.read(0)) == ["vm0 booting", "no KVM here"]
    assert texts(journal.read(1)) == ["no KVM here", "vm1 failed: ?[2Jgone and more"]
    assert len(texts(journal.read(None))) == 3


def test_what_is_logged_is_of_the_vm_that_it_begins_with() -> None:
    journal = Journal()
    logger = logging.getLogger("pvc.tests.journal")
    logger.setLevel(logging.INFO)
    logger.addHandler(journal)
    try:
        logger.warning("%s: cannot pin", "vm7")
        logger.info("listens")
        logger.debug("not worth it")
    finally:
        logger.removeHandler(journal)
    assert texts(journal.read(7)) == ["warning: vm7: cannot pin", "listens"]
    assert texts(journal.read(3)) == ["listens"]


def test_the_newest_lines_are_kept() -> None:
    journal = Journal()
    for number in range(5000):
        journal.note(None, f"line {number}")
    kept = texts(journal.read(None))
    assert (kept[0], kept[-1], len(kept)) == ("line 1000", "line 4999", 4000)


def test_a_watcher_hears_its_vm_until_it_reads_no_more() -> None:
    journal, watching = Journal(), Watching()
    with journal.watch(watching, 2):
        journal.note(2, "mine")
        journal.note(3, "another's")
        watching.transport.queued = 2 << 20
        journal.note(2, "too much")
        journal.note(2, "gone")
    assert texts(watching.data) == ["mine"]
    assert watching.transport.aborted


@given(st.lists(st.sampled_from([b"a", b"", b"longer \r"])), st.booleans(), st.integers(0, 6))
def test_last_lines_are_the_last_lines(lines: list[bytes], unfinished: bool, count: int) -> None:
    text = b"".join(line + b"\n" for line in lines) + (b"/ # " if unfinished else b"")
    wanted = (
        text.splitlines(keepends=True) if b"\r" not in text else text.replace(b"\r", b"?").splitlines(keepends=True)
    )
    found = last_lines(text, count)
    assert found.replace(b"\r", b"?") == b"".join(wanted[len(wanted) - min(count, len(wanted)) :])


def test_all_lines() -> None:
    assert last_lines(b"a\nb", None) == b"a\nb"


@pytest.mark.parametrize("count", [0, 1])
def test_of_nothing_there_is_nothing(count: int) -> None:
    assert last_lines(b"", count) == b""
