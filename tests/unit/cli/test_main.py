# SPDX-License-Identifier: Apache-2.0
"""The command line itself: what loads, what is told, with which exit code."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import pvc
from pvc.cli import main, output
from pvc.cli.main import COMMANDS, command_line
from pvc.cli.options import _parse_time, cluster_options
from pvc.errors import ConfigError, HostError, Problem, StateError
from pvc.slurm import job
from tests.unit.config.sites import write_site

# Importing one of these costs more than all of pvc --help may.
HEAVY = {"ClusterShell", "asyncio", "grpc", "jsonschema", "psutil", "pyetcd", "pyroute2", "qemu", "subprocess", "yaml"}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """``pvc ps`` becomes a command that raises the last of these."""
    errors: list[BaseException] = []

    @click.command()
    def ps() -> None:
        raise errors[-1]

    monkeypatch.setattr(main.LazyGroup, "get_command", lambda _self, _ctx, _name: ps)
    return errors


def test_every_command_of_the_table_is_there() -> None:
    ctx = click.Context(main.command_line)
    for name, entry in main.COMMANDS.items():
        command = main.command_line.get_command(ctx, name)
        assert isinstance(command, click.Command), name
        assert entry.help.endswith(".")


@pytest.mark.allow_run  # what an interpreter imports can only be seen in a fresh one
@pytest.mark.parametrize("argument", ["--version", "--help", "no-such-command"])
def test_little_is_imported_for_little(argument: str) -> None:
    code = (
        "import json, sys; from pvc.cli.main import run\n"
        f"run([{argument!r}]); print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    root = Path(pvc.__file__).parents[1]
    done = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {os.fspath(root)!r})\n{code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    loaded = json.loads(done.stderr.splitlines()[-1])
    assert HEAVY & {name.split(".")[0] for name in loaded} == set()


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"pvc {pvc.__version__}\n"
    assert main.run(["--help"]) == 0
    text = capsys.readouterr().out
    for name, entry in main.COMMANDS.items():
        assert (f"  {name} " in text) == bool(entry.section)


@pytest.mark.parametrize(
    ("typed", "advice"), [("allocate", "; did you mean 'alloc'?"), ("statu", "; did you mean 'status'?"), ("zzzzz", "")]
)
def test_an_unknown_command_suggests_the_nearest(typed: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([typed]) == 2
    assert capsys.readouterr().err == f"pvc: there is no command {typed!r}{advice}\nhint: pvc --help\n"


def test_a_usage_error_names_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["config", "check", "--no-such"]) == 2
    assert capsys.readouterr().err.endswith("hint: pvc config check --help\n")


def test_a_group_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["config"]) == 2
    captured = capsys.readouterr()
    assert "Usage: pvc config" in captured.out + captured.err


def test_errors_are_told_with_cause_and_hint(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(HostError("cannot set up job 3", hint="look at sinfo -R"))
    failing[-1].__cause__ = OSError(28, "No space left on device", "/var/tmp/pvc")
    assert main.run(["ps"]) == 6
    assert capsys.readouterr().err == (
        "pvc: cannot set up job 3: No space left on device (/var/tmp/pvc)\nhint: look at sinfo -R\n"
    )


def test_problems_are_listed(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(ConfigError([Problem("f", 2, "k", "bad")]))
    assert main.run(["ps"]) == 3
    assert capsys.readouterr().err == "pvc: f:2: k: bad\n"
    failing.append(ConfigError([Problem("f", 2, "k", "bad"), Problem("f", 3, "l", "worse")]))
    assert main.run(["ps"]) == 3
    assert capsys.readouterr().err == "pvc: 2 problems in the configuration\nf:2: k: bad\nf:3: l: worse\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (click.Abort(), 130), (StateError("x"), 5), (SystemExit(9), 9), (SystemExit(), 0)],
)
def test_exit_codes(failing: list[BaseException], error: BaseException, code: int) -> None:
    failing.append(error)
    assert main.run(["ps"]) == code


def test_a_defect_is_one_line_without_debug(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    failing.append(ZeroDivisionError("division by zero"))
    assert main.run(["ps"]) == 1
    assert capsys.readouterr().err == (
        "pvc: internal error: ZeroDivisionError: division by zero\nhint: run the command with pvc --debug\n"
    )
    assert main.run(["--debug", "ps"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_config_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = write_site(tmp_path)
    assert main.run(["config", "check", "--site-only", os.fspath(site)]) == 0
    text = capsys.readouterr().out
    assert f"read {site}/batch.yaml" in text
    assert "resource sets  nat (default: nat)" in text
    assert text.endswith("no problems\n")


def test_config_check_fails_with_all_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = write_site(tmp_path, networks="a: 3\nb: 4\n")
    assert main.run(["config", "check", "--site-only", os.fspath(site)]) == 3
    assert "networks.yaml:1: a: 3 is not a mapping" in capsys.readouterr().err
    assert main.run(["config", "check", "--site-only", "--json", os.fspath(site)]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [(each["line"], each["key"]) for each in found["problems"]] == [(1, "a"), (2, "b")]
    assert f"{site}/networks.yaml" in found["files"]


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("NAME", "PORT"), [("vm0", 22), ("vm10", None)])
    assert capsys.readouterr().out == "NAME  PORT\nvm0   22\nvm10  -\n"
    assert output.format_table(("A", "B"), []) == "A  B"


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm")
    assert output.paint("x", "red", Terminal()) == "\033[31mx\033[0m"  # type: ignore[arg-type]
    assert output.paint("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.paint("x", "red", Terminal()) == "x"  # type: ignore[arg-type]


DURATIONS = (
    ("exec", "--timeout", "-w vm0 true"),
    ("wait", "--timeout", ""),
    ("status", "--interval", "--watch"),
    ("stop", "--grace", ""),
    ("alloc", "--warn", "debian"),
    ("batch", "--warn", "debian true"),
)


@pytest.mark.parametrize(("command", "option", "rest"), DURATIONS)
def test_times_are_written_alike_everywhere(command: str, option: str, rest: str) -> None:
    """What one command takes, all take; what one refuses, all refuse in the same words."""
    for text in ("soon", "-1", "1:30", ""):
        with pytest.raises(click.BadParameter, match=re.escape(f"{text!r} is not a duration such as 90s or 5m")):
            make_context(command, option, text, *rest.split())
    for text, seconds in (("1m", 60.0), ("90", 90.0), ("1.5h", 5400.0), ("200ms", 0.2), ("0", 0.0)):
        params = make_context(command, option, text, *rest.split()).params
        found = [value for name, value in params.items() if name.endswith("_s")]
        assert found in ([seconds], [(seconds,)])


def make_context(name: str, *words: str) -> click.Context:
    """With its parent, whose settings a command's own option for help has from the first context on."""
    parent = click.Context(command_line, **command_line.context_settings)
    return import_command(name).make_context(name, list(words), parent=parent)


def import_command(name: str) -> click.Command:
    command = command_line.get_command(click.Context(command_line), name)
    assert command is not None
    return command


def test_no_option_takes_a_time_in_a_way_of_its_own() -> None:
    for name in COMMANDS:
        for param in import_command(name).params:
            if param.metavar == "TIME" or "timeout" in (param.name or ""):
                assert getattr(param.type, "func", None) is _parse_time, f"{name} {param.opts}"
                assert (param.name or "").endswith("_s")


def test_a_clock_for_nobody_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["exec", "--detach", "--timeout", "1m", "-w", "vm0", "sleep", "90"]) == 2
    said = capsys.readouterr().err
    assert "--timeout does not go with --detach" in said
    assert "timeout 90 COMMAND" in said


@pytest.mark.parametrize("word", ["24_", "2_4_1", "0", "-1", "24_x", "٢٤", "24 1", "1" * 11, "24+1_2"])
def test_what_is_no_number_of_a_job_names_none(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Python's own int() takes 24_1, a task of an array, for job 241."""
    assert main.run(["status", f"--job={word}"]) == 2
    assert "is no number of a job, such as 24, 24_1 or 24+1" in capsys.readouterr().err


def test_a_task_of_an_array_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"24_1": 31, "24+1": 25}
    monkeypatch.setattr(job, "find_job_id", found.get)
    asked: list[object] = []

    @click.command()
    @cluster_options
    def command(job_id: int, job_name: str | None) -> None:
        asked.append((job_id, job_name))

    for word in ("24", "024", *found):
        command.main(["-j", word], standalone_mode=False)
    assert asked == [(24, None), (24, None), (31, None), (25, None)]
