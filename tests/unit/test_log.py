# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvc import log
from pvc.log import Sparing
from pvc.node import requests


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(line: int, level: int = logging.WARNING, text: str = "a caller was lost: %s") -> logging.LogRecord:
    return logging.LogRecord("pvc", level, "daemon.py", line, text, ("x",), None)


def test_a_line_that_callers_repeat_is_held_back_and_counted() -> None:
    clock = Clock()
    spare = Sparing(clock)
    assert sum(spare.filter(make(1)) for _ in range(10_000)) == Sparing.BURST
    clock.now += Sparing.EACH_S
    late = make(1)
    assert spare.filter(late)
    assert late.getMessage() == f"a caller was lost: x (and {10_000 - Sparing.BURST} more like it)"
    assert not spare.filter(make(1))


def test_each_line_of_the_program_has_a_pace_of_its_own() -> None:
    spare = Sparing(Clock())
    assert sum(spare.filter(make(1)) for _ in range(100)) == Sparing.BURST
    other = make(2)
    assert spare.filter(other)
    assert other.getMessage() == "a caller was lost: x"


def test_what_tells_of_work_done_may_come_at_the_pace_of_work() -> None:
    clock = Clock()
    spare = Sparing(clock)
    for _ in range(2_000):
        clock.now += 0.1
        assert spare.filter(make(3, logging.INFO))


def test_a_percent_sign_in_a_text_stays_one() -> None:
    clock = Clock()
    spare = Sparing(clock)
    for _ in range(100):
        spare.filter(make(4, text="100%% of %s"))
    clock.now += Sparing.EACH_S
    late = make(4, text="100%% of %s")
    assert spare.filter(late)
    assert late.getMessage().startswith("100% of x (and ")


def decode(data: bytes) -> dict[str, str]:
    """An entry as systemd-journald reads it."""
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + length], data[9 + length :]
        fields[name.decode()] = value.decode()
    return fields


def test_a_value_of_several_lines_comes_after_its_length() -> None:
    assert log.encode_entry({"MESSAGE": "a=b", "X": "1"}) == b"MESSAGE=a=b\nX=1\n"
    assert log.encode_entry({"MESSAGE": "a\nbc", "X": "1"}) == b"MESSAGE\n\x04\0\0\0\0\0\0\0a\nbc\nX=1\n"
    assert decode(log.encode_entry({"MESSAGE": "ä\nX=2\n", "X": "1"})) == {"MESSAGE": "ä\nX=2\n", "X": "1"}


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger("pvc")
    kept, level, hook = logger.handlers[:], logger.level, sys.excepthook
    yield logger
    for handler in logger.handlers:
        if handler not in kept:
            handler.close()
    logger.handlers[:], sys.excepthook = kept, hook
    logger.setLevel(level)


@pytest.mark.allow_sockets  # a journal of its own
def test_the_journal_has_fields_beside_the_text(
    tmp_path: Path, root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "err").open("w+") as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        journal.settimeout(20)
        facts = os.fstat(stream.fileno())
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(log.Journal.__init__, "__defaults__", (str(tmp_path / "journal"),))
        monkeypatch.setenv("JOURNAL_STREAM", f"{facts.st_dev}:{facts.st_ino}")
        log.setup(logging.INFO, timestamps=True, journal_as="pvc-node")
        values = {"SLURM_JOB_ID": "13", "SLURM_HET_JOB_ID": "12", "SLURM_JOB_USER": "anne\nPRIORITY=0"}
        with requests.naming(values):
            root.info("set up")
            try:
                raise KeyError("x")
            except KeyError:
                root.exception("it failed")
        root.warning("nobody's")
        first, second, third = (decode(journal.recv(65536)) for _ in range(3))
        assert first["MESSAGE"] == "job 13: set up"
        assert (first["PRIORITY"], first["SYSLOG_IDENTIFIER"]) == ("6", "pvc-node")
        assert (first["PVC_JOB"], first["PVC_CLUSTER"]) == ("13", "12")
        assert "\n" not in first["PVC_USER"]
        assert first["CODE_FILE"].endswith("test_log.py")
        assert second["MESSAGE"].startswith("job 13: it failed\n    Traceback")
        assert (second["PRIORITY"], second["PVC_JOB"]) == ("3", "13")
        assert not any(name.startswith("PVC_") for name in third)
        stream.seek(0)
        assert stream.read() == ""


def test_without_a_journal_it_is_standard_error(
    tmp_path: Path, root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "err").open("w+") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        # What started this process may have been a service, whose standard error was another one
        monkeypatch.setenv("JOURNAL_STREAM", "1:2")
        log.setup(logging.INFO, timestamps=True, journal_as="pvc-node")
        root.info("one")
        root.handlers[0].close()
        facts = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{facts.st_dev}:{facts.st_ino}")
        monkeypatch.setattr(log.Journal.__init__, "__defaults__", (str(tmp_path / "nothing"),))
        log.setup(logging.INFO, timestamps=True, journal_as="pvc-node")
        root.info("two")
        stream.seek(0)
        one, two = stream.read().splitlines()
        assert one.endswith("INFO one")
        assert two == "two"
