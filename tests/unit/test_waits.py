# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.waits import until, wait_until

TESTS = Path(__file__).parents[1]


def test_what_comes_is_returned() -> None:
    come = iter([0, None, "", "here"])
    assert wait_until(lambda: next(come)) == "here"


def test_what_does_not_come_is_named() -> None:
    with pytest.raises(AssertionError, match=r"^no answer, after 0 s$"):
        wait_until(lambda: False, 0, "no answer")
    seen: list[int] = []
    with pytest.raises(AssertionError, match=r"^\[1\], after 0 s$"):
        wait_until(lambda: seen.append(1), 0, lambda: seen)


def test_what_is_borne_counts_as_not_yet() -> None:
    come = iter([FileNotFoundError, True])

    def look() -> bool:
        found = next(come)
        if found is not True:
            raise FileNotFoundError
        return True

    assert wait_until(look, bear=(OSError,))
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 // 0, bear=(OSError,))


def test_other_tasks_go_on_meanwhile() -> None:
    async def main() -> None:
        done = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, done.set)
        await until(done.is_set)
        with pytest.raises(AssertionError, match="no end, after 0 s"):
            await until(lambda: False, 0, "no end")

    asyncio.run(main())


def test_nobody_has_a_way_of_their_own() -> None:
    own = re.compile(r"def (wait_until|wait_for|eventually)\(|while .*monotonic\(\) <")
    found = [str(path) for path in TESTS.rglob("*.py") if own.search(path.read_text()) and path.name != "waits.py"]
    assert not found
