# SPDX-License-Identifier: Apache-2.0
"""What runs beside the VMs: the user's shell with a prompt that names the job, or the user's script."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pvc.errors import UsageError
from pvc.files import write_atomic
from pvc.ops.handover import CPUS_VARIABLE, RESOLVED_VARIABLE, VARIABLE

_DEFAULT_SHELL = "/bin/sh"


def find_script(words: Sequence[str], doubt: Callable[[str], None] | None = None) -> list[str]:
    """The script's command line with its program as an absolute path.

    ``doubt``: for a script that runs elsewhere: hears of an interpreter that is not here and may be there. One below
    the user's home is the same everywhere.

    :raise UsageError: there is no such program, it may not be executed, or nothing can run it.
    """
    name = words[0]
    if name.startswith("-"):
        raise UsageError(f"{name} comes after the definition, where a script may stand", hint="options go before it")
    found = shutil.which(name)
    if found is not None:
        program = os.path.abspath(found)
        _check_interpreter(program, doubt)
        return [program, *words[1:]]
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"{name} is a directory, not a script")
    if path.is_file():
        raise UsageError(f"{name} is not executable", hint=f"chmod +x {shlex.quote(name)}")
    raise UsageError(f"there is no script or command {name!r}")


def _check_interpreter(program: str, doubt: Callable[[str], None] | None) -> None:
    """:raise UsageError: the first line of a script names an interpreter that is not here, or ends as on Windows."""
    try:
        with open(program, "rb") as stream:
            first = stream.read(4096)
    except OSError:
        return  # a program may be one that can be run and not read
    line, newline, _ = first.partition(b"\n")
    if b"\0" in line or not newline:
        return
    if line.endswith(b"\r"):
        raise UsageError(
            f"{program} has line ends of Windows (CR LF)", hint=f"sed -i 's/\\r$//' {shlex.quote(program)}"
        )
    words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
    if not words:
        return
    interpreter = words[0]
    wanted = f"{program} wants the interpreter {interpreter!r} in its first line"
    if not _is_program(interpreter):
        # What is there and no program will not be one on a node either.
        if doubt is None or not _may_be_elsewhere(interpreter) or os.path.lexists(interpreter):
            raise UsageError(f"{wanted}, and there is none")
        doubt(f"{wanted}, which this machine does not have: the job's first node needs it")
    elif Path(interpreter).name == "env":
        _check_env(program, words[1:], doubt)


def _may_be_elsewhere(path: str) -> bool:
    """Whether the nodes may have a file of that name which is not here: all but the home is a machine's own."""
    return os.path.isabs(path) and Path.home() not in Path(os.path.normpath(path)).parents


def _check_env(program: str, words: Sequence[str], doubt: Callable[[str], None] | None) -> None:
    """Of ``#!/usr/bin/env NAME``, with env's -S or settings before the name, or other options, that nobody judges."""
    for word in words:
        if word in ("-S", "--split-string") or ("=" in word and not word.startswith("-")):
            continue
        if not word.startswith("-") and shutil.which(word) is None:
            wanted = f"{program} wants the interpreter {word!r} in its first line, and PATH leads to none"
            if doubt is None:
                raise UsageError(wanted)
            doubt(f"{wanted} on this machine: the job's first node needs it")
        return


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _find_shell(environ: Mapping[str, str]) -> str:
    """The user's: SHELL, else what the account says."""
    if environ.get("SHELL"):
        return environ["SHELL"]
    try:
        return pwd.getpwuid(os.getuid()).pw_shell or _DEFAULT_SHELL
    except KeyError:
        return _DEFAULT_SHELL


def check_shell(environ: Mapping[str, str]) -> None:
    """Whether ``shell_command`` will have a shell to start.

    :raise UsageError: SHELL names no program, or one that is there to refuse a login.
    """
    shell = _find_shell(environ)
    if not (os.path.isabs(shell) and _is_program(shell)):
        raise UsageError(f"the shell is {shell!r}, and that is no program", hint="export SHELL=/bin/sh")
    if Path(shell).name in ("nologin", "false", "true"):
        raise UsageError(f"the shell is {shell!r}, and that is no shell", hint="export SHELL=/bin/sh")


def child_environment(environ: Mapping[str, str], job_id: int, jobdir: Path) -> dict[str, str]:
    """What the shell or script gets: the caller's own, and how to find the cluster."""
    # Handed from pvc alloc to the launcher, and not meant for a job that is submitted from inside
    private = (VARIABLE, RESOLVED_VARIABLE, CPUS_VARIABLE)
    kept = {name: value for name, value in environ.items() if name not in private}
    return {**kept, "SLURM_JOB_ID": str(job_id), "PVC_JOB_DIR": os.fspath(jobdir)}


def shell_command(environ: Mapping[str, str], job_id: int, jobdir: Path) -> tuple[list[str], dict[str, str]]:
    """Command and environment of an interactive shell, which reads all of its user's own start-up files.

    bash, zsh and fish would overwrite a prompt that comes with the environment, so they get a start-up file or command
    that sets it after the user's own. csh takes neither: its user's prompt stays.
    """
    shell = _find_shell(environ)
    prompt = f"(pvc/{job_id}) "
    environment = child_environment(environ, job_id, jobdir)
    kind = Path(shell).name
    if kind == "bash":
        rc = jobdir / "bashrc"
        write_atomic(rc, f'[ -r ~/.bashrc ] && . ~/.bashrc\nPS1={shlex.quote(prompt)}"${{PS1:-\\$ }}"\n')
        return [shell, "--rcfile", os.fspath(rc), "-i"], environment
    if kind == "zsh":
        _write_zsh_files(environ.get("ZDOTDIR"), prompt, jobdir)
        return [shell, "-i"], {**environment, "ZDOTDIR": os.fspath(jobdir)}
    if kind == "fish":
        return [shell, "--init-command", _FISH_PROMPT.replace("PROMPT", prompt), "-i"], environment
    if kind in ("csh", "tcsh"):
        return [shell, "-i"], environment
    return [shell, "-i"], {**environment, "PS1": prompt + environ.get("PS1", "$ ")}


_FISH_PROMPT = """\
functions --query fish_prompt; and functions --copy fish_prompt _pvc_fish_prompt
function fish_prompt
    echo -n 'PROMPT'
    functions --query _pvc_fish_prompt; and _pvc_fish_prompt
end
"""


def _write_zsh_files(zdotdir: str | None, prompt: str, jobdir: Path) -> None:
    """Both are read from ZDOTDIR, which the first of the user's may set for the second (zsh(1), FILES)."""
    own = "unset ZDOTDIR" if zdotdir is None else f"export ZDOTDIR={shlex.quote(zdotdir)}"
    read = '[[ -r ${{ZDOTDIR-$HOME}}/{0} ]] && . "${{ZDOTDIR-$HOME}}/{0}"'
    env = [own, read.format(".zshenv"), "typeset -g _pvc_zdotdir=${ZDOTDIR-} _pvc_zdotdir_set=${+ZDOTDIR}"]
    rc = ["if (( _pvc_zdotdir_set )); then export ZDOTDIR=$_pvc_zdotdir; else unset ZDOTDIR; fi"]
    rc += ["unset _pvc_zdotdir _pvc_zdotdir_set", read.format(".zshrc"), f"PROMPT={shlex.quote(prompt)}$PROMPT"]
    write_atomic(jobdir / ".zshenv", "\n".join([*env, f"ZDOTDIR={shlex.quote(os.fspath(jobdir))}", ""]))
    write_atomic(jobdir / ".zshrc", "\n".join([*rc, ""]))


def tied_argv(argv: Sequence[str]) -> list[str]:
    """``argv``, sent SIGHUP by the kernel when the launcher dies, where setpriv(1) is there to ask for it."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "HUP", *argv] if setpriv else list(argv)
