# SPDX-License-Identifier: Apache-2.0
"""What runs beside the VMs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pvc.errors import UsageError
from pvc.ops.shell import check_shell, child_environment, find_script, shell_command


def test_a_script_is_found_and_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "x.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert find_script(["./x.sh", "a b"]) == [os.fspath(script), "a b"]
    assert find_script(["sh", "-c", "x"])[0].endswith("/sh")


@pytest.mark.parametrize(("mode", "word"), [(0o644, "not executable"), (None, "no script or command")])
def test_what_is_no_script(tmp_path: Path, mode: int | None, word: str) -> None:
    path = tmp_path / "x.sh"
    if mode is not None:
        path.write_text("x")
        path.chmod(mode)
    with pytest.raises(UsageError, match=word):
        find_script([os.fspath(path)])


def test_a_directory_is_no_script(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="directory"):
        find_script([os.fspath(tmp_path)])


def test_an_option_behind_the_definition_is_no_script() -> None:
    with pytest.raises(UsageError, match="--image comes after") as caught:
        find_script(["--image", "debian"])
    assert caught.value.hint == "options go before it"


def test_environment_of_the_script(tmp_path: Path) -> None:
    environment = child_environment({"PVC_LAUNCH": "x", "HOME": "/h"}, 7, tmp_path)
    assert environment == {"HOME": "/h", "SLURM_JOB_ID": "7", "PVC_JOB_DIR": os.fspath(tmp_path)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"#!/bin/sh\r\necho x\r\n", "line ends of Windows"),
        (b"echo x\r\necho y\r\n", "line ends of Windows"),
        (b"#!/no/such/python3\n", "interpreter '/no/such/python3'"),
        (b"#! /tmp -x\n", "interpreter '/tmp'"),
        (b"#!/usr/bin/env no-such-python\n", "interpreter 'no-such-python'"),
        (b"#!/usr/bin/env -S A=b no-such-python -u\n", "interpreter 'no-such-python'"),
        (b"#!/bin/sh\nprintf 'a\r\n'\n", None),
        (b"#!/usr/bin/env sh\n", None),
        (b"#!/usr/bin/env -S -i sh\n", None),
        (b"#!/bin/sh", None),
        (b"#!\n", None),
        (b"", None),
        (b"echo no first line\n", None),
        (b"\x7fELF\0\0\r\n", None),
    ],
)
def test_a_script_that_nothing_can_run_is_said_at_submission(tmp_path: Path, content: bytes, said: str | None) -> None:
    script = tmp_path / "x"
    script.write_bytes(content)
    script.chmod(0o755)
    if said is None:
        assert find_script([os.fspath(script)]) == [os.fspath(script)]
        return
    with pytest.raises(UsageError, match=said):
        find_script([os.fspath(script)])


@pytest.mark.parametrize(
    ("line", "doubted"),
    [
        ("#!/opt/site/no-such/python3", "which this machine does not have"),
        ("#!/usr/bin/env no-such-python", "PATH leads to none on this machine"),
        ("#!/tmp", None),
        ("#!venv/bin/python", None),
        ("#!HOME/venv/bin/python", None),
        ("#!/nowhere/..HOME/venv/bin/python", None),
    ],
)
def test_an_interpreter_that_only_the_nodes_have(
    line: str, doubted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a script that runs on a node: what is below the home would be here, too; what is relative is beside it."""
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    script = tmp_path / "x"
    script.write_text(f"{line.replace('HOME', os.fspath(tmp_path))}\n")
    script.chmod(0o755)
    heard: list[str] = []
    if doubted is None:
        with pytest.raises(UsageError, match="and there is none"):
            find_script([os.fspath(script)], heard.append)
        assert not heard
        return
    assert find_script([os.fspath(script)], heard.append) == [os.fspath(script)]
    assert len(heard) == 1
    assert doubted in heard[0]
    assert "the job's first node needs it" in heard[0]


@pytest.mark.parametrize("value", ["/no/such/shell", "relative", "/tmp", "/bin/false", "/usr/sbin/nologin", "bash"])
def test_what_is_no_shell_is_said_at_submission(value: str) -> None:
    with pytest.raises(UsageError, match="the shell is"):
        check_shell({"SHELL": value})


@pytest.mark.parametrize("environ", [{"SHELL": "/bin/sh"}, {"SHELL": ""}, {}])
def test_a_shell(environ: dict[str, str]) -> None:
    check_shell(environ)


@pytest.mark.allow_run
def test_bash_reads_the_users_file_and_shows_the_job(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("PS1='mine> '\nMARK=seen\n")
    environ = {"SHELL": "/bin/bash", "HOME": os.fspath(tmp_path), "PATH": os.environ["PATH"]}
    argv, environment = shell_command(environ, 12, tmp_path)
    done = subprocess.run(argv, env=environment, input='echo "<$PS1$MARK>"\n', capture_output=True, text=True)
    assert "<(pvc/12) mine> seen>" in done.stdout


def test_other_shells_get_a_prompt_from_the_environment(tmp_path: Path) -> None:
    argv, environment = shell_command({"SHELL": "/bin/dash"}, 12, tmp_path)
    assert argv == ["/bin/dash", "-i"]
    assert environment["PS1"] == "(pvc/12) $ "


def answers(argv: list[str], environment: dict[str, str], line: str) -> str:
    """What an interactive shell prints."""
    return subprocess.run(argv, env=environment, input=line, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.allow_run("zsh itself says which files it reads")
@pytest.mark.parametrize("how", ["home", "inherited", "set in .zshenv"])
def test_zsh_reads_all_of_its_users_files(tmp_path: Path, how: str) -> None:
    home, jobdir, own = tmp_path / "my home", tmp_path / "job", tmp_path / "my dot files"
    for each in (home, jobdir, own):
        each.mkdir()
    (home / ".zshenv").write_text("A=env\n" + (f"ZDOTDIR='{own}'\n" if how == "set in .zshenv" else ""))
    (own / ".zshenv").write_text("A=env\n")
    place = home if how == "home" else own
    (place / ".zshrc").write_text("B=rc; PROMPT='mine> '\n")
    environ = {"SHELL": "/usr/bin/zsh", "HOME": os.fspath(home), "PATH": os.environ["PATH"], "TERM": "dumb"}
    if how == "inherited":
        environ["ZDOTDIR"] = os.fspath(own)
    argv, environment = shell_command(environ, 12, jobdir)
    said = answers(argv, environment, 'echo "<$A $B $PROMPT ${ZDOTDIR-none}>"\n')
    assert f"<env rc (pvc/12) mine>  {'none' if how == 'home' else own}>" in said


@pytest.mark.allow_run("fish itself says which files it reads")
def test_fish_reads_its_users_file_and_shows_the_job(tmp_path: Path) -> None:
    (tmp_path / ".config" / "fish").mkdir(parents=True)
    (tmp_path / ".config" / "fish" / "config.fish").write_text("set A mine\nfunction fish_prompt; echo 'f> '; end\n")
    environ = {"SHELL": "/usr/bin/fish", "HOME": os.fspath(tmp_path), "PATH": os.environ["PATH"], "TERM": "dumb"}
    argv, environment = shell_command(environ, 12, tmp_path)
    assert "<(pvc/12) f>  mine>" in answers(argv, environment, 'echo "<"(fish_prompt)" $A>"\n')


@pytest.mark.parametrize("shell", ["/bin/csh", "/usr/bin/tcsh"])
def test_csh_is_left_to_its_users_files(tmp_path: Path, shell: str) -> None:
    argv, environment = shell_command({"SHELL": shell, "HOME": "/h"}, 12, tmp_path)
    assert argv == [shell, "-i"]
    assert "PS1" not in environment
    assert list(tmp_path.iterdir()) == []
