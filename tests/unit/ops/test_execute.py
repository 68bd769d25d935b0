# SPDX-License-Identifier: Apache-2.0
"""Commands in many guests over one connection: real agents, the supervisor's relay, TLS between it and the client."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from fleet import Fleet

from pvc.channel.frames import WINDOW, Kind, pack, pack_credit
from pvc.cli.outputs import Gathered, Prefixed
from pvc.errors import GuestError, UsageError
from pvc.model.failure import Failure
from pvc.ops.agents import Agents, Collected, ask
from pvc.ops.copied import parse_copy
from pvc.ops.copy import copy
from pvc.ops.execute import Command, Outcome, check_length, list_detached, total_code
from pvc.ops.loop import Loop
from pvc.ops.vmsets import fold_vms

pytestmark = [
    pytest.mark.allow_run,  # agents are programs, and run others
    pytest.mark.allow_sockets,  # their ports, and the control port
]
COUNT = 24


def test_all_at_once(many: Fleet) -> None:
    outcomes, said = many.run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert [outcome.code for outcome in outcomes] == [3] * COUNT
    assert total_code(outcomes) == 3
    assert said == {(rank, second): b"err\n" if second else b"out\n" for rank in range(COUNT) for second in (0, 1)}


def test_input_goes_to_all_and_much_output_comes_from_all(many: Fleet) -> None:
    reader, writer = os.pipe()
    data = os.urandom(1 << 20)

    def feed() -> None:
        with os.fdopen(writer, "wb") as stream:
            stream.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    outcomes, said = many.run("cat", stdin_fd=reader)
    thread.join()
    os.close(reader)
    assert {outcome.code for outcome in outcomes} == {0}
    assert all(said[rank, False] == data for rank in range(COUNT))


def test_who_is_paused_or_gone_is_told_and_holds_up_nobody(many: Fleet) -> None:
    many.paused.add(5)
    try:
        outcomes, said = many.run("echo", "x")
    finally:
        many.paused.discard(5)
    assert outcomes[5] == Outcome(5, "vm5", "n1", failure=Failure(7, "vm5 is paused", "let it go on: pvc resume vm5"))
    assert [outcome.code for outcome in outcomes] == [0] * 5 + [7] + [0] * (COUNT - 6)
    assert len(said) == COUNT - 1


def test_the_time_runs_out(many: Fleet) -> None:
    outcomes, said = many.run("sh", "-c", "echo $$; exec sleep 1000", timeout_s=3)
    assert {outcome.code for outcome in outcomes} == {124}
    for rank in range(COUNT):
        wait_gone(int(said[rank, False]))


def wait_gone(pid: int) -> None:
    for _ in range(600):
        if not os.path.exists(f"/proc/{pid}"):
            return
        threading.Event().wait(0.05)
    raise AssertionError(f"{pid} goes on")


def test_a_client_that_is_lost_ends_what_it_began(many: Fleet) -> None:
    loop = Loop((), lambda _: None)
    agents = Agents(many.control, loop)
    streams = [Collected() for _ in range(3)]
    for rank, stream in enumerate(streams):
        agents.open(rank, [("op", "exec"), ("arg", "sh"), ("arg", "-c"), ("arg", "echo $$; exec sleep 1000")], stream)
    assert loop.run_until(lambda: all(stream.out for stream in streams), timeout_s=60)
    agents.close()
    loop.close()
    for stream in streams:
        wait_gone(int(stream.out))


def test_a_guest_that_takes_nothing_is_not_buffered_for(many: Fleet) -> None:
    """Forty streams with a whole window each: their client waits, and another one does not."""
    loop = Loop((), lambda _: None)
    agents = Agents(many.control, loop)
    streams = [Collected() for _ in range(40)]
    for stream in streams:
        agents.open(3, [("op", "exec"), ("arg", "sh"), ("arg", "-c"), ("arg", "wc -c")], stream)
    assert loop.run_until(lambda: all(stream.notes for stream in streams), timeout_s=60)
    pid = int(many.run("sh", "-c", "echo $PPID", ranks=(3,))[1][3, False])
    os.kill(pid, signal.SIGSTOP)
    try:
        most = 0
        for stream in streams:
            stream.send(bytes(WINDOW))
            stream.end()
        for _ in range(50):
            loop.run_until(lambda: False, timeout_s=0.02)
            most = max(most, many.agents[3]._out_bytes)
        assert 8 << 20 < most < 20 << 20
        outcomes, _ = many.run("true", ranks=(2, 4))
        assert [outcome.code for outcome in outcomes] == [0, 0]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert loop.run_until(lambda: all(stream.closed for stream in streams), timeout_s=60)
    assert {bytes(stream.out).strip() for stream in streams} == {str(WINDOW).encode()}
    agents.close()
    loop.close()


def test_a_supervisor_that_cuts_us_off_is_told(many: Fleet) -> None:
    """A client that grants more than it may loses its connection, and knows why nothing comes any more."""
    loop = Loop((), lambda _: None)
    agents = Agents(many.control, loop)
    stream = Collected()
    agents.open(0, [("op", "exec"), ("arg", "sleep"), ("arg", "1000")], stream)
    assert loop.run_until(lambda: bool(stream.notes), timeout_s=60)
    for _ in range(200):
        assert stream._link is not None
        stream._link.mux._output.append(pack(Kind.CREDIT, 1, pack_credit(1 << 20)))
        stream._link.flush()
    assert loop.run_until(lambda: stream.closed, timeout_s=60)
    assert stream.result is not None
    assert "n1" in stream.result["error"]
    wait_gone(int(stream.notes[0]["pid"]))
    agents.close()
    loop.close()


def test_detached_commands_are_listed(many: Fleet) -> None:
    loop = Loop((), lambda _: None)
    agents = Agents(many.control, loop)
    stream = Collected()
    words = [("op", "exec"), ("arg", "sh"), ("arg", "-c"), ("arg", "sleep 1000; #\x1b"), ("detach", "1")]
    agents.open(2, words, stream)
    assert loop.run_until(lambda: bool(stream.notes), timeout_s=60)
    agents.close()
    loop.close()
    pid = int(stream.notes[0]["pid"])
    (found,) = list_detached(many.control, (1, 2, 3), 60)
    assert (found["vm"], found["pid"], found["state"]) == ("vm2", str(pid), "running")
    assert found["command"] == "sh -c sleep 1000; #?"
    os.kill(pid, signal.SIGKILL)
    loop = Loop((), lambda _: None)
    agents = Agents(many.control, loop)
    last = Collected()
    agents.open(2, [("op", "attach"), ("id", found["id"])], last)
    assert loop.run_until(lambda: last.closed, timeout_s=60)
    assert last.result == {"signal": "9"}
    assert ask(agents, loop, 2, [("op", "list")], 60).notes == []
    agents.close()
    loop.close()


def test_copies(many: Fleet, tmp_path: Path) -> None:
    source, inside = tmp_path / "source", tmp_path / "inside"
    (source / "deep").mkdir(parents=True)
    (source / "deep/data").write_bytes(os.urandom(900_000))
    (source / "link").symlink_to("deep/data")
    inside.mkdir()
    # All agents are on this machine: what goes to several at once has names of their own.
    done = copy(many.control, [os.fspath(source), f"vm[0-3]:{inside}"], "root")
    errors = [result.error for result in done.vms]
    assert done.complaints == []
    assert None in errors
    assert set(errors) <= {None, "cannot write source: Directory not empty", "cannot write source: File exists"}
    assert os.listdir(inside) == ["source"]
    moved: list[int] = []
    assert not copy(many.control, [os.fspath(source), f"vm1:{inside}/new"], "root", moved.append).failed
    assert sum(moved) > 900_000
    assert (inside / "new/deep/data").read_bytes() == (source / "deep/data").read_bytes()
    assert os.readlink(inside / "new/link") == "deep/data"
    out = tmp_path / "out"
    out.mkdir()
    results = copy(many.control, [f"vm[3-5]:{inside}/new", os.fspath(out)], "root").vms
    assert [(result.error, result.files, result.bytes) for result in results] == [(None, 1, 900_000)] * 3
    for rank in (3, 4, 5):
        assert (out / f"vm{rank}/new/deep/data").read_bytes() == (source / "deep/data").read_bytes()
    (result,) = copy(many.control, [f"vm1:{tmp_path}/none", os.fspath(out)], "root").vms
    assert result.error == "none: No such file or directory"
    failed = copy(many.control, [os.fspath(source), "vm0:/proc/x"], "root")
    with pytest.raises(GuestError, match=r"^vm0: cannot write"):
        failed.raise_failed()
    with pytest.raises(UsageError, match="there is no"):
        copy(many.control, [f"{tmp_path}/none", "vm0:/x"], "root")


def test_a_copy_that_takes_too_long_leaves_nothing(many: Fleet, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    big = tmp_path / "big"
    with big.open("wb") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(GuestError, match="did not end within 0 s"):
        copy(many.control, [os.fspath(big), f"vm0:{tmp_path}/inside"], "root", timeout_s=0)
    for _ in range(600):
        if not os.listdir(tmp_path / "inside"):
            return
        threading.Event().wait(0.05)
    raise AssertionError("what was not complete is still there")


@pytest.mark.parametrize("words", [["vm0:/a"], ["a", "b"], ["a", "vm99:/"]])
def test_what_is_no_copy(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_copy(words, COUNT)


def test_folding() -> None:
    assert fold_vms([3]) == "vm3"
    assert fold_vms([0, 1, 2, 5, 7, 8]) == "vm[0-2,5,7-8]"


def test_lines_are_not_mixed(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    lines = Prefixed(4)
    lines.take(0, b"one\ntw", False)
    lines.take(10, b"other\n", False)
    lines.take(0, b"o\nend", False)
    lines.end()
    assert capfdbinary.readouterr().out == b"vm0:  one\nvm10: other\nvm0:  two\nvm0:  end\n"


def test_equal_output_is_gathered(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    kept = Gathered()
    for rank in (0, 1, 3):
        kept.take(rank, b"same\n", False)
    kept.take(2, b"other", False)
    kept.show([Outcome(rank, f"vm{rank}", "n1", exit=0) for rank in range(4)])
    rule = b"-" * 15
    assert capfdbinary.readouterr().out == (
        rule + b"\nvm[0-1,3] (3)\n" + rule + b"\nsame\n" + rule + b"\nvm2\n" + rule + b"\nother\n"
    )


def test_a_command_that_is_longer_than_a_request() -> None:
    check_length(Command(("echo", "x" * 60_000)))
    with pytest.raises(UsageError, match="at most 65536"):
        check_length(Command(("echo", *["word"] * 40_000)))
    with pytest.raises(UsageError):
        check_length(Command(("echo",), env=("A=" + "ü" * 40_000,)))
