# SPDX-License-Identifier: Apache-2.0
"""What the owner of a forwarded port is told of others."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from fleet import Fleet

from pvc.model.forward import Forward
from pvc.ops.control import Control
from pvc.ops.forward import Forwarder
from pvc.ops.jobdir import JobDir
from pvc.ops.keys import KeyMaker
from tests.unit.ops.worlds import make_record

COUNT = 1


@pytest.mark.allow_run("agents are programs")
@pytest.mark.allow_sockets("ports of the agents, and the control port")
def test_a_port_that_nobody_serves_is_no_connection_that_ends(
    many: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where the cluster is looked for
    JobDir.of(1).path.mkdir(parents=True)
    JobDir.of(1).write_record(many.control.record)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        told: list[str] = []
        wish = Forward(rank=0, local=0, far=str(unused.getsockname()[1]))
        forwarder = Forwarder(many.control, [wish], told.append)

        async def ask() -> None:
            ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            serving = asyncio.ensure_future(forwarder.run(lambda found: ready.set_result(found[0].local)))
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", await ready)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                writer.close()
            finally:
                serving.cancel()
                with suppress(asyncio.CancelledError):
                    await serving

        asyncio.run(ask())
    assert "Connection refused" in told[0]


@pytest.mark.allow_run
def test_refusals_do_not_fill_the_owners_log(tmp_path: Path) -> None:
    jobdir = JobDir(tmp_path)
    jobdir.write_keys(KeyMaker(tmp_path, "test").finish())
    told: list[str] = []
    wish = Forward(rank=0, local=8080, far="80")
    forwarder = Forwarder(Control(make_record(), jobdir), [wish], told.append)
    for port in range(1, 1000):
        assert not forwarder.begin_udp(wish, ("127.0.0.1", port), ("127.0.0.1", 1))
    assert len(told) < 10
    assert "refused a connection of an unknown user" in told[0]
