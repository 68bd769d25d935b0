# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import threading

import pytest

from pvc.supervisor.threads import outlast


def test_result_and_error_are_those_of_the_call() -> None:
    assert asyncio.run(outlast(int, "12", base=16)) == 18
    with pytest.raises(ValueError, match="invalid literal"):
        asyncio.run(outlast(int, "x"))


@pytest.mark.parametrize("fails", [False, True])
def test_who_is_cancelled_waits_for_the_end(fails: bool) -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        assert may_end.wait(30)
        ended.set()
        if fails:
            raise OSError("no room")

    async def main() -> None:
        task = asyncio.create_task(outlast(work))
        await asyncio.to_thread(began.wait, 30)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # a cluster that is stopped meanwhile
        # More turns of the loop than a cancelled task needs to its end.
        for _ in range(50):
            await asyncio.sleep(0)
        assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(main())
