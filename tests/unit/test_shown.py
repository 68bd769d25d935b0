# SPDX-License-Identifier: Apache-2.0
"""Words of others reach a log, a reason of Slurm's or a terminal by one way only, and that way cleans them."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pvc import log
from pvc.cli import output, outputs, vm
from pvc.errors import ConfigError, Problem
from pvc.model.cluster import NodeEndpoint
from pvc.ops.display import Display
from pvc.supervisor.journal import Journal
from pvc.texts import is_clean
from tests.unit.ops.worlds import make_record
from tests.unit.test_layers import modules

ROOT = Path(__file__).resolve().parents[2]
# A name such as any user can give a file, a VM's release, a registry's tag: it clears the screen, forges a line,
# turns the direction, hides.
EVIL = "a\x1b[2J\x9b2J\n2026-01-01 00:00:00,000 INFO forged\r\u202e\u2028\u200b\u3164"
# Who writes by other means than ``output`` and the log, or holds a stream of this process, and why what is written
# there is nobody's text, or cleaned, or meant to be raw. A function that does so no more has no place here.
MAY_WRITE = {
    "pvc.log": {"setup"},  # with a formatter that cleans
    "pvc.cli.output": {"say", "pass_on", "show", "end", "print_json"},
    "pvc.cli.outputs": {"_print", "show"},  # ask whether it is a terminal
    "pvc.cli.live": {"_write"},  # moves the cursor; the lines are those of statusview.render, which cleans
    "pvc.cli.completing": {"main"},  # for a shell, which is no terminal; names by their patterns
    "pvc.cli.imagefiles": {"_export_archive"},  # an archive, and to no terminal
    "pvc.ops.treeoutput": {"_write"},  # a file that was asked for, and to no terminal
    "pvc.ops.console": {"_write"},  # an attached console is the guest's terminal
    "pvc.ops.relay": {"_write"},  # ssh's connection
    "pvc.ops.execute": {"size_words"},  # asks for the terminal's size
    "pvc.ops.display": {"__init__", "_write"},  # cleaned there
}
_STREAMS = ("stdout", "stderr", "__stdout__", "__stderr__")
_PRINTERS = {"print", "echo", "secho", "print_exc", "print_exception", "print_stack"}
# What asks a stream something, or hands it to who only asks.
_ASKS = {"isatty", "fileno", "flush"}
_ASKERS = {"paint", "Display", "is_live", "_forget"}
# These have terminals of nobody else's: they run beside tests, or in the testbed's first process.
_ELSEWHERE = {"pvc.testbed"}


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for name, module in modules().items():
        if not any(name.startswith(each) for each in _ELSEWHERE):
            yield name, module.tree


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _writes(call: ast.Call) -> bool:
    """Whether a call prints, writes to a descriptor of this process, or to what a class keeps for it."""
    if _name(call.func) in _PRINTERS:
        return True
    # Only what may be one is written as text again, which is slow.
    name = ast.unparse(call.func) if _name(call.func) == "write" else ""
    if name.endswith("._stream.write"):
        return True
    return name == "os.write" and ast.unparse(call.args[0]) in ("1", "2", "sys.stdout.fileno()", "sys.stderr.fileno()")


def _asked(node: ast.AST) -> set[ast.AST]:
    """The streams that are only asked something by this node."""
    if isinstance(node, ast.Attribute) and node.attr in _ASKS:
        return {node.value}
    if isinstance(node, ast.Call) and _name(node.func) in _ASKERS:
        return set(node.args)
    return set()


def find_writers(module: ast.Module) -> dict[str, list[int]]:
    """The functions that write to a stream of this process, and where."""
    found: dict[str, list[int]] = {}

    asked = {each for node in ast.walk(module) for each in _asked(node)}

    def visit(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            held = isinstance(child, ast.Attribute) and child.attr in _STREAMS and ast.unparse(child.value) == "sys"
            if (isinstance(child, ast.Call) and _writes(child)) or (held and child not in asked):
                found.setdefault(inner, []).append(child.lineno)
            visit(child, inner)

    visit(module, "")
    return found


def test_nothing_is_printed_but_by_the_one_way() -> None:
    found = {name: writers for name, module in _modules() if (writers := find_writers(module))}
    strange = {
        f"{name}.{function}, lines {lines}"
        for name, writers in found.items()
        for function, lines in writers.items()
        if function not in MAY_WRITE.get(name, ())
    }
    assert not strange, "print by pvc.cli.output, or say in MAY_WRITE why it is clean"
    stale = {f"{name}.{each}" for name, allowed in MAY_WRITE.items() for each in allowed - set(found.get(name, ()))}
    assert not stale, "these write no more"


@pytest.mark.parametrize(
    "line",
    [
        "print(name)",
        "click.echo(name)",
        "sys.stdout.write(name)",
        "sys.stderr.buffer.write(name)",
        "os.write(1, name)",
        "os.write(sys.stdout.fileno(), name)",
        "traceback.print_exc()",
        "self._stream.write(name)",
        "stream = sys.stderr",
        "Display(file=sys.stdout)",
    ],
)
def test_the_rule_finds_what_it_is_for(line: str) -> None:
    assert find_writers(ast.parse(f"def show(name):\n    {line}")) == {"show": [2]}
    assert (
        find_writers(ast.parse("def show(name):\n    socket.write(name)\n    output.say(paint(name, sys.stdout))"))
        == {}
    )


def test_every_handler_of_the_log_cleans() -> None:
    """Handlers are made in two places: the one of ``log.setup``, and the supervisor's journal."""
    made = {
        (name, node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        for name, module in _modules()
        for node in ast.walk(module)
        if isinstance(node, ast.Call)
        for word in [node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")]
        if re.fullmatch("[A-Z].*(Handler|Formatter)|(basic|dict|file)Config", word)
    }
    assert made == {("pvc.log", "StreamHandler")}
    kinds = {
        name
        for name, module in _modules()
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if ast.unparse(base) in ("logging.Handler", "logging.Formatter", "logging.StreamHandler")
    }
    assert kinds == {"pvc.log", "pvc.supervisor.journal"}


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What pvc's log says, as a node's has it; everything is as before afterwards."""
    stream = io.StringIO()
    logger, last, hook = logging.getLogger("pvc"), logging.lastResort, sys.excepthook
    assert last is not None
    handlers, level, formatter = list(logger.handlers), logger.level, last.formatter
    monkeypatch.setattr(sys, "stderr", stream)
    log.setup(logging.INFO, timestamps=True)
    try:
        yield stream
    finally:
        logger.handlers[:], sys.excepthook = handlers, hook
        logger.setLevel(level)
        last.setFormatter(formatter)


def _lines_are_clean(text: str) -> bool:
    return all(is_clean(line, 1 << 16) for line in text.split("\n"))


def test_a_users_word_stays_one_line_of_the_log(said: io.StringIO) -> None:
    logger = logging.getLogger("pvc.node.teardown")
    with log.context(f"job 12 {EVIL}"):
        logger.warning("cannot remove %s: Directory not empty", EVIL)
    logger.error(EVIL)
    text = said.getvalue()
    assert _lines_are_clean(text)
    assert text.count("\n") == 2
    assert ": Directory not empty" in text
    logger.warning("x" * 10_000_000)
    assert len(said.getvalue()) < 10_000
    # The honest twin: what is plain is as it was.
    logger.warning("job 12: Größe of %s", "/run/user/1000/pvc")
    assert said.getvalue().endswith(" WARNING job 12: Größe of /run/user/1000/pvc\n")


def test_a_traceback_forges_no_line(said: io.StringIO) -> None:
    logger = logging.getLogger("pvc.node.daemon")
    try:
        raise ValueError(EVIL)
    except ValueError as err:
        logger.exception("a request failed")
        sys.excepthook(type(err), err, err.__traceback__)
    lines = said.getvalue().splitlines()
    assert _lines_are_clean(said.getvalue())
    assert any("forged" in line for line in lines)
    assert [line for line in lines if not line.startswith("    ")] == [lines[0], *(x for x in lines if "internal" in x)]
    # What libraries log that have no handler of their own.
    logging.getLogger("some.library").warning("lost %s", EVIL)
    assert _lines_are_clean(said.getvalue())


def test_the_journal_cleans(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal()
    journal.note(None, EVIL)
    journal.handle(logging.LogRecord("pvc", logging.WARNING, "", 0, "vm0: %s", (EVIL,), None))
    assert _lines_are_clean(journal.read(None).decode())
    assert journal.read(None).count(b"\n") == 2


def test_all_ways_to_print_clean(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(f"two lines:\n{EVIL}")
    output.print_table(("NAME", EVIL), [(EVIL, None)])
    output.print_error(EVIL, EVIL, [EVIL])
    output.print_note(EVIL)
    output.print_hint(EVIL)
    output.print_json({"name": EVIL, EVIL: ["\x7f", "Größe 日本"]})
    display = Display(sys.stdout)
    display.say(EVIL)
    display.warn(EVIL)
    out, err = capsys.readouterr()
    assert _lines_are_clean(out)
    assert _lines_are_clean(err)
    assert err.count("\n") == 5
    assert err.startswith("pvc: a?[2J")
    # JSON loses nothing, and shows what may be shown.
    output.print_json({"name": EVIL, "size": "Größe"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": EVIL, "size": "Größe"}
    assert "Größe" in out


def test_what_a_console_has_said_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest writes to its console what it likes; ``--raw`` gives each byte."""
    evil = EVIL.encode() + b"\n\x1b]0;title\x07login: \x1b[31mred\x1b[0m\xff\n\x1bPq#0\x1b\\"

    class Port:
        record = make_record(NodeEndpoint("n1", "127.0.0.1", 1))

        def read_log(self, *_: object, **__: object) -> bytes:
            return evil

    monkeypatch.setattr(vm, "find_control", lambda *_: Port())
    said = CliRunner().invoke(vm.console, ["vm0", "--log"])
    assert said.exit_code == 0
    assert _lines_are_clean(said.stdout_bytes.decode())
    assert b"login: red" in said.stdout_bytes
    assert CliRunner().invoke(vm.console, ["vm0", "--log", "--raw"]).stdout_bytes == evil


def test_what_programs_read_has_each_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is what its user has called it; on a terminal it is cleaned, as all else."""
    text = os.fsdecode(b"/home/J\xf6rg\x1b[2J/ssh_config\n")
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", pipe)
    output.hand_over(text)
    assert pipe.buffer.getvalue() == os.fsencode(text)  # type: ignore[attr-defined]
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    output.hand_over(text)
    assert terminal.getvalue() == "/home/J?rg?[2J/ssh_config\n"


def test_json_is_the_same_for_each_character_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """No character is looked at twice, so answers of megabytes cost what plain ones do."""
    looked: list[str] = []

    def look(char: str) -> bool:
        looked.append(char)
        return is_clean(char)

    monkeypatch.setattr(output, "is_clean", look)
    monkeypatch.setattr(output, "_ESCAPES", output._Escapes())
    chars = [chr(code) for code in (*range(0x20, 0x3000), *range(0xD7F0, 0xE010), *range(0xFE00, 0x10100), 0x1F600)]
    for char in (*chars, "\n"):
        cleaned = output.clean_json(f'"{char}"')
        if char not in '"\\\n':
            assert json.loads(cleaned) == char
            assert is_clean(cleaned)
    before = len(looked)
    text = "".join(chars) * 3
    assert output.clean_json(text) == "".join(map(output.clean_json, text))
    assert len(looked) == before


def test_problems_of_a_configuration_have_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from pvc.cli.main import _show

    _show(ConfigError([Problem("a.yaml", 3, "x", EVIL), Problem("b.yaml", 1, "y", "wrong")]))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pvc: 2 problems in the configuration"
    assert [line.split(" ")[0] for line in lines[1:]] == ["a.yaml:3:", "b.yaml:1:"]
    assert all(map(is_clean, lines))


class _Terminal:
    """Standard output that is a terminal."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()

    def isatty(self) -> bool:
        return True


def test_lines_of_several_guests_are_clean_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    lines = outputs.Prefixed(3)
    lines.take(0, b"\x1b[1A\rvm1: forged\n\x1b[31mred\x1b[0m\tx\r\n", False)
    lines.take(1, b"\x1b]0;title\x07", False)
    lines.end()
    assert terminal.buffer.getvalue() == b"vm0:  vm1: forged\nvm0: red     x\nvm1: \n"
    gathered = outputs.Gathered()
    gathered.take(0, b"\x1b[2Jx\n", False)
    assert gathered.text(0, second=False) == "\x1b[2Jx\n"
    # The honest twins: who asks for it has each byte, and so has whoever redirects it.
    terminal.buffer.truncate(0)
    terminal.buffer.seek(0)
    lines = outputs.Prefixed(3, raw=True)
    lines.take(0, b"\x1b[31mred\r\n", False)
    assert terminal.buffer.getvalue() == b"vm0: \x1b[31mred\r\n"
    monkeypatch.setattr(_Terminal, "isatty", lambda _: False)
    lines = outputs.Prefixed(3)
    lines.take(0, b"\x1b[31mred\r\n", False)
    assert terminal.buffer.getvalue().endswith(b"\nvm0: \x1b[31mred\r\n")


def test_the_plug_in_cleans_what_it_hands_on() -> None:
    """The reason of a drained node, and a program's words: tests/spank has what they do."""
    drain = (ROOT / "spank/drain.c").read_text()
    assert drain.count("pvc_common_clean(text);") == 1
    assert drain.index("pvc_common_clean(text);") < drain.index("message.reason = text;")
    for path in sorted((ROOT / "spank").glob("*.c")):
        assert ("reason =" not in path.read_text()) or path.name == "drain.c", path
