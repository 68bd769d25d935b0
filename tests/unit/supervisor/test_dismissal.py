# SPDX-License-Identifier: Apache-2.0
"""Who sends a supervisor away."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pvc.model.words import ASKING, BYE, LEAVE, STAY
from pvc.supervisor.dismissal import Dismissal


@dataclass
class Heard:
    """What a supervisor did."""

    asked: int = 0
    left: list[bool] = field(default_factory=list)

    def ask(self) -> None:
        self.asked += 1

    def leave(self, *, signalled: bool) -> None:
        self.left.append(signalled)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue  # a test has closed it


async def settle() -> None:
    """All that the loop has been told of is done."""
    for _ in range(5):
        await asyncio.sleep(0.01)


def test_a_warning_is_asked_about_and_survived(pipe: tuple[int, int]) -> None:
    async def tell() -> Heard:
        heard = Heard()
        Dismissal(pipe[0], heard.ask, heard.leave)
        for expected in (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
            await settle()
            assert (heard.asked, heard.left) == (expected, [])
            os.write(pipe[1], STAY)
            await settle()
        os.kill(os.getpid(), signal.SIGTERM)
        await settle()
        os.write(pipe[1], LEAVE)
        await settle()
        return heard

    assert asyncio.run(tell()) == Heard(3, [True])


def test_answers_for_others_are_none(pipe: tuple[int, int]) -> None:
    """All supervisors hear what one of them asked."""

    async def tell() -> Heard:
        heard = Heard()
        Dismissal(pipe[0], heard.ask, heard.leave)
        os.write(pipe[1], STAY + LEAVE + STAY)
        await settle()
        return heard

    assert asyncio.run(tell()) == Heard()


def test_no_answer_is_the_end(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvc.supervisor.dismissal._ANSWER_S", 0.02)

    async def tell() -> Heard:
        heard = Heard()
        Dismissal(pipe[0], heard.ask, heard.leave)
        os.kill(os.getpid(), signal.SIGTERM)
        while not heard.left:
            await settle()
        return heard

    assert asyncio.run(tell()) == Heard(1, [True])


def test_a_launcher_that_waits_for_slurm_is_waited_for(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its word counts for those that asked, and not for ever."""
    monkeypatch.setattr("pvc.supervisor.dismissal._ANSWER_S", 60.0)
    monkeypatch.setattr("pvc.supervisor.dismissal._SLURM_S", 0.05)

    async def tell() -> Heard:
        heard = Heard()
        Dismissal(pipe[0], heard.ask, heard.leave)
        os.write(pipe[1], ASKING)
        await asyncio.sleep(0.1)
        assert heard == Heard()
        for number, words in ((1, ASKING + STAY), (2, ASKING)):
            os.kill(os.getpid(), signal.SIGTERM)
            while heard.asked < number:
                await settle()
            assert heard == Heard(number)
            os.write(pipe[1], words)
        while not heard.left:
            await settle()
        return heard

    assert asyncio.run(tell()) == Heard(2, [True])


@pytest.mark.parametrize(("word", "abandoned"), [(b"", True), (BYE, False), (STAY + BYE, False)])
def test_the_end_of_the_launcher(pipe: tuple[int, int], word: bytes, abandoned: bool) -> None:
    async def tell() -> tuple[Heard, bool]:
        heard = Heard()
        dismissal = Dismissal(pipe[0], heard.ask, heard.leave)
        os.write(pipe[1], word)
        os.close(pipe[1])
        while not heard.left:
            await settle()
        return heard, dismissal.abandoned

    assert asyncio.run(tell()) == (Heard(0, [False]), abandoned)


def test_without_a_launcher_nobody_is_asked(tmp_path: Path) -> None:
    async def tell() -> Heard:
        heard = Heard()
        with (tmp_path / "spec").open("w+b") as stream:
            Dismissal(stream.fileno(), heard.ask, heard.leave)
            os.kill(os.getpid(), signal.SIGTERM)
            while not heard.left:
                await settle()
        return heard

    assert asyncio.run(tell()) == Heard(0, [True])
