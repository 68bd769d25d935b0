# SPDX-License-Identifier: Apache-2.0
"""The corpus, and for each target some inputs more from a fixed seed; ``make fuzz`` goes on for as long as you like.

An input that was too much once is in the corpus as ``crash-…``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import engine, programs
from tests.fuzz.targets import TARGETS

# They run in this process; sockets of socketpair(2) and of asyncio lead nowhere else.
pytestmark = [pytest.mark.allow_sockets]
_RUNS = 150


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str) -> None:
    target = TARGETS[name]
    corpus = engine.read_corpus(name)
    assert corpus
    for _, data in corpus:
        engine.try_one(target, data)
    engine.explore(target, seed=1, runs=_RUNS)


@pytest.mark.allow_run
def test_c_targets(tmp_path: Path) -> None:
    programs.build(tmp_path)
    for name in programs.C_TARGETS:
        assert engine.read_corpus(name)
        done = programs.replay_c(tmp_path, name)
        assert done.returncode == 0, done.stdout[-8000:]


def test_every_corpus_belongs_to_a_target() -> None:
    assert {path.name for path in engine.CORPUS.iterdir()} == {*TARGETS, *programs.C_TARGETS}


def test_the_engine_finds_what_is_wrong() -> None:
    def wrong(data: bytes) -> None:
        if data[:1] == b"[":
            raise KeyError(data)

    with pytest.raises(engine.CrashError, match="KeyError"):
        engine.explore(engine.Target("node-probe", wrong), seed=1, runs=20000)
