# SPDX-License-Identifier: Apache-2.0
"""The agent, under the sanitizers, and the supervisor's side of it: real processes, terminals, sockets, files."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from agents import Call, build_agent, call, command, guest

from pvc.channel.frames import WINDOW, Kind, pack, pack_credit, pack_words
from pvc.errors import GuestError
from pvc.supervisor.agent import Agent
from tests.waits import until

pytestmark = [
    pytest.mark.allow_run,  # the agent is a program, and runs others
    pytest.mark.allow_sockets,  # its port is a socket here, and it connects to sockets of the test
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_agent(tmp_path_factory.getbasetemp().parent / "pvc-agent")


def speak(program: Path, directory: Path, talk: Callable[[Agent], Awaitable[None]]) -> None:
    async def run() -> None:
        async with guest(program, directory) as (agent, _):
            await talk(agent)

    asyncio.run(run())


def test_commands(program: Path, tmp_path: Path) -> None:
    async def talk(agent: Agent) -> None:
        done = command(agent, "echo", "a b", "")
        assert await done.wait() == {"exit": "0"}
        assert (bytes(done.out), bytes(done.err)) == (b"a b \n", b"")
        failed = command(agent, "sh", "-c", 'echo "$X-$PWD"; echo no >&2; exit 3', env="X=y=z", cwd="/usr")
        assert await failed.wait() == {"exit": "3"}
        assert (bytes(failed.out), bytes(failed.err)) == (b"y=z-/usr\n", b"no\n")
        missing = command(agent, "no-such-command")
        assert await missing.wait() == {"exit": "127"}
        assert b"cannot run no-such-command: No such file" in missing.err
        nobody = command(agent, "true", user="no-such-user")
        assert await nobody.wait() == {"exit": "126"}
        assert b"this guest has no user no-such-user" in nobody.err
        # What stays in the background holds nobody up.
        left = command(agent, "sh", "-c", "sleep 30 & echo $!")
        assert await left.wait() == {"exit": "0"}
        os.kill(int(left.out), 9)
        silent = command(agent, "cat", stdin="0")
        assert await silent.wait() == {"exit": "0"}
        for words in ([("op", "fly")], [], [("op", "connect"), ("net", "ipx")], [("op", "attach"), ("id", "77")]):
            assert "error" in await call(agent, *words).wait()

    speak(program, tmp_path, talk)


def test_input_terminals_and_signals(program: Path, tmp_path: Path) -> None:
    async def talk(agent: Agent) -> None:
        copy = command(agent, "cat")
        await send(copy, b"x" * 700_000)
        assert await copy.wait() == {"exit": "0"}
        assert copy.out == b"x" * 700_000
        killed = command(agent, "sleep", "1000")
        killed.send(Kind.NOTE, pack_words([("signal", "15")]))
        assert await killed.wait() == {"signal": "15"}
        shell = command(agent, "sh", pty="1", rows="33", cols="99", term="vt100")
        await granted(shell)
        shell.send(Kind.DATA, b"stty size; echo $TERM; tty\n")
        await shell.until(lambda: b"/dev/pts/" in shell.out)
        assert b"33 99\r\nvt100\r\n" in shell.out
        shell.send(Kind.NOTE, pack_words([("rows", "10"), ("cols", "20")]))
        shell.send(Kind.DATA, b"stty size\n")
        await shell.until(lambda: b"10 20\r\n" in shell.out)
        # Ctrl-C reaches what runs in the foreground, and the shell goes on.
        shell.send(Kind.DATA, b"sh -c 'echo now; exec sleep 1000'\n")
        await shell.until(lambda: shell.out.count(b"now") == 2)
        shell.send(Kind.DATA, b"\x03")
        shell.send(Kind.DATA, b"exit 7\n")
        assert await shell.wait() == {"exit": "7"}

    speak(program, tmp_path, talk)


async def granted(one: Call) -> None:
    """Until the agent takes input."""
    await one.until(lambda: one.result is not None or one.agent._streams[one.stream].credit > 0)


async def send(one: Call, data: bytes) -> None:
    """All of it, as fast as the agent grants, then END."""
    while data and one.result is None:
        await granted(one)
        found = one.agent._streams.get(one.stream)
        if found is None:
            return
        size = min(65536, found.credit)
        one.send(Kind.DATA, data[:size])
        data = data[size:]
        one.changed.clear()
    one.send(Kind.END)


def test_a_slow_stream_blocks_no_other(program: Path, tmp_path: Path) -> None:
    async def talk(agent: Agent) -> None:
        slow = command(agent, "head", "-c", "100000000", "/dev/zero", window=0)
        stuck = command(agent, "sleep", "1000")
        await granted(stuck)
        for _ in range(WINDOW // 65536):
            stuck.send(Kind.DATA, bytes(65536))
        quick = command(agent, "head", "-c", "10000000", "/dev/zero")
        assert await quick.wait() == {"exit": "0"}
        assert len(quick.out) == 10_000_000
        assert len(slow.out) == 0
        slow.send(Kind.CREDIT, pack_credit(1000))
        await slow.until(lambda: slow.out)
        assert len(slow.out) == 1000
        slow.send(Kind.CLOSE)
        stuck.send(Kind.CLOSE)

    speak(program, tmp_path, talk)


def test_whose_client_is_gone_ends_and_what_is_detached_goes_on(program: Path, tmp_path: Path) -> None:
    async def talk(agent: Agent) -> None:
        lost = command(agent, "sh", "-c", "trap '' HUP TERM; echo $$; while :; do sleep 1; done")
        await lost.until(lambda: lost.out)
        lost.send(Kind.CLOSE)
        await gone(int(lost.out))
        kept = command(agent, "sh", "-c", "echo first; read x; echo got $x; exit 5", detach="1")
        await kept.until(lambda: b"first" in kept.out)
        number = kept.notes[0]["id"]
        kept.send(Kind.CLOSE)
        listed = call(agent, ("op", "list"))
        await listed.wait()
        assert [(note["id"], note["state"], note["attached"]) for note in listed.notes] == [(number, "running", "0")]
        again = call(agent, ("op", "attach"), ("id", number))
        await granted(again)
        other = call(agent, ("op", "attach"), ("id", number))
        assert "somebody else" in (await again.wait())["error"]
        await granted(other)
        other.send(Kind.DATA, b"word\n")
        assert await other.wait() == {"exit": "5"}
        assert other.out == b"got word\n"
        ended = command(agent, "sh", "-c", "seq 100000; exit 4", detach="1", window=0)
        await ended.until(lambda: ended.notes)
        ended.send(Kind.CLOSE)
        await gone(int(ended.notes[0]["pid"]))
        last = call(agent, ("op", "attach"), ("id", ended.notes[0]["id"]))
        assert await last.wait() == {"exit": "4"}
        # The last of it without a gap: what was kept for nobody, and what the agent had not read yet by the attach.
        said = "".join(f"{number}\n" for number in range(1, 100_001)).encode()
        assert said.endswith(last.out)
        assert 65536 <= len(last.out) < len(said)

    speak(program, tmp_path, talk)


async def gone(pid: int) -> None:
    await until(lambda: not os.path.exists(f"/proc/{pid}"))


def test_connections_to_names(program: Path, tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        await writer.drain()
        writer.close()

    async def talk(agent: Agent) -> None:
        tcp = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = tcp.sockets[0].getsockname()[1]
        # A name needs somebody who looks for it; meanwhile others go on.
        named = call(agent, ("op", "connect"), ("net", "tcp"), ("host", socket.gethostname()), ("port", "1"))
        unknown = call(agent, ("op", "connect"), ("net", "tcp"), ("host", "nothing.invalid"), ("port", str(port)))
        assert await call(agent, ("op", "metrics")).wait()
        assert (await named.wait())["error"].startswith("cannot connect: ")
        assert (await unknown.wait())["error"].startswith("cannot connect: the ")
        here = call(agent, ("op", "connect"), ("net", "tcp"), ("host", "LocalHost"), ("port", str(port)))
        await send(here, b"by name")
        assert await here.wait() == {}
        assert (here.notes, here.out) == ([{"connected": "1"}], b"by name")
        tcp.close()

    speak(program, tmp_path, talk)


def test_connections(program: Path, tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def talk(agent: Agent) -> None:
        tcp = await asyncio.start_server(echo, "127.0.0.1", 0)
        unix = await asyncio.start_unix_server(echo, tmp_path / "unix")
        port = tcp.sockets[0].getsockname()[1]
        for words in ((("net", "tcp"), ("port", str(port))), (("net", "unix"), ("path", str(tmp_path / "unix")))):
            there = call(agent, ("op", "connect"), *words)
            await there.until(lambda there=there: there.notes)
            assert there.notes == [{"connected": "1"}]
            await send(there, b"y" * 600_000)
            assert await there.wait() == {}
            assert there.out == b"y" * 600_000
        refused = await call(agent, ("op", "connect"), ("net", "tcp"), ("port", "1")).wait()
        assert refused == {"error": "cannot connect: Connection refused", "errno": "ECONNREFUSED"}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            server.setblocking(False)
            datagrams = call(agent, ("op", "connect"), ("net", "udp"), ("port", str(server.getsockname()[1])))
            await granted(datagrams)
            datagrams.send(Kind.DATA, b"one")
            datagrams.send(Kind.DATA, b"two!")
            loop = asyncio.get_running_loop()
            heard = [await loop.sock_recvfrom(server, 100) for _ in range(2)]
            assert [data for data, _ in heard] == [b"one", b"two!"]
            await loop.sock_sendto(server, b"back", heard[0][1])
            await datagrams.until(lambda: datagrams.out == b"back")
            datagrams.send(Kind.CLOSE)
        listener = call(agent, ("op", "listen"), ("net", "tcp"), ("port", "0"))
        await listener.until(lambda: listener.notes)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(listener.notes[0]["port"]))
        await listener.until(lambda: listener.accepted)
        child = listener.accepted[0]
        assert child.notes[0]["peer"] == "127.0.0.1"
        writer.write(b"from outside")
        await child.until(lambda: child.out == b"from outside")
        await granted(child)
        child.send(Kind.DATA, b"answer")
        child.send(Kind.END)
        assert await reader.read() == b"answer"
        writer.close()
        assert await child.wait() == {}
        listener.send(Kind.CLOSE)
        tcp.close()
        unix.close()

    speak(program, tmp_path, talk)


def test_the_guest_is_told_of(program: Path, tmp_path: Path) -> None:
    async def talk(agent: Agent) -> None:
        told = await call(agent, ("op", "metrics")).wait()
        assert float(told["uptime"]) > 0
        assert int(told["memory-total"]) > int(told["memory-available"]) > 0
        assert int(told["disk-total"]) > 0
        assert told["boot-id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    speak(program, tmp_path, talk)


def test_sessions_begin_anew(program: Path, tmp_path: Path) -> None:
    """The host breaks the protocol, then gives up on the agent: a new session each time, and nothing is left."""

    async def talk(agent: Agent) -> None:
        for harm in (
            pack(Kind.DATA, 5, b"x")[:-1] + b"\xff" * 20,
            pack(Kind.OPEN, 0, b""),
            pack(Kind.OPEN, 9, b"no words"),
            pack(Kind.HELLO, 0, bytes(40)),
        ):
            running = command(agent, "sh", "-c", "echo $$; exec sleep 1000")
            await running.until(lambda running=running: running.out)
            agent._write(harm)
            assert "was started again" in (await running.wait())["error"]
            await gone(int(running.out))
            await connected(agent)
        running = command(agent, "sh", "-c", "echo $$; exec sleep 1000")
        await running.until(lambda: running.out)
        agent.on_port(is_open=False)
        agent.on_reset()
        assert (await running.wait())["error"] == "vm0 boots again"
        await gone(int(running.out))
        await connected(agent)
        running = command(agent, "sh", "-c", "echo $$; exec sleep 1000")
        await running.until(lambda: running.out)
        agent.on_port(is_open=False)
        assert "has ended" in (await running.wait())["error"]
        with pytest.raises(GuestError, match="no agent in vm0: the agent of vm0 has ended"):
            command(agent, "true")
        await gone(int(running.out))
        await connected(agent)
        assert await command(agent, "true").wait() == {"exit": "0"}

    speak(program, tmp_path, talk)


def test_noise_from_the_host_does_not_hurt(program: Path, tmp_path: Path) -> None:
    """Frames of any kind with anything in them, from a fixed seed; ``guest`` looks at what the sanitizers say."""
    chance = random.Random(5)
    requests = ["exec", "attach", "list", "connect", "listen", "get", "put", "freeze", "metrics", "mount"]
    keys = [
        "arg",
        "user",
        "cwd",
        "env",
        "pty",
        "rows",
        "net",
        "path",
        "port",
        "host",
        "id",
        "signal",
        "detach",
        "timeout",
    ]
    values = [
        "",
        "0",
        "1",
        "-1",
        "99999999999",
        "tcp",
        "udp",
        "unix",
        "/",
        "no-such-user",
        "a=b",
        "127.0.0.1",
        "x" * 300,
    ]

    def words() -> bytes:
        pairs = [(chance.choice(keys), chance.choice(values)) for _ in range(chance.randrange(5))]
        op = chance.choice(requests)
        # Nothing that could change this machine: no command but one, and no file system frozen or mounted.
        if op in ("exec", "freeze", "mount", "put"):
            pairs = [pair for pair in pairs if pair[0] not in ("arg", "path")] + [("arg", "true"), ("timeout", "0")]
        return pack_words([("op", op), *pairs])

    async def talk(agent: Agent) -> None:
        for _ in range(60):
            agent._write(pack(Kind.HELLO, 0, chance.randbytes(40)) if chance.random() < 0.2 else b"")
            for _ in range(40):
                kind = chance.choice([kind for kind in Kind if kind is not Kind.HELLO])
                payload = words() if kind is Kind.OPEN else chance.randbytes(chance.randrange(40))
                agent._write(pack(kind, chance.randrange(4), payload))
            agent._write(chance.randbytes(chance.randrange(100)))
            await asyncio.sleep(0)
        agent._begin_anew("enough")
        await connected(agent)
        assert await command(agent, "true").wait() == {"exit": "0"}

    speak(program, tmp_path, talk)


async def connected(agent: Agent) -> None:
    await until(lambda: agent.connected)
