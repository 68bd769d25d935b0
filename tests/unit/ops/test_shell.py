"""What runs beside the VMs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pvc.errors import UsageError
from pvc.ops.shell import child_environment, find_script, shell_command


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


def test_zsh_reads_the_users_file_from_where_it_is(tmp_path: Path) -> None:
    argv, environment = shell_command({"SHELL": "/bin/zsh", "HOME": "/home/me"}, 12, tmp_path)
    assert environment["ZDOTDIR"] == os.fspath(tmp_path)
    assert (tmp_path / ".zshrc").read_text().startswith("ZDOTDIR=/home/me\n")
    assert argv[0] == "/bin/zsh"
