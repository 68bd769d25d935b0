"""What runs beside the VMs: the user's shell with a prompt that names the job, or the user's script."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pvc.errors import UsageError
from pvc.files import write_atomic
from pvc.ops.handover import CPUS_VARIABLE, RESOLVED_VARIABLE, VARIABLE


def find_script(words: Sequence[str]) -> list[str]:
    """The script's command line with its program as an absolute path.

    :raise UsageError: there is no such program, or it may not be executed.
    """
    name = words[0]
    if name.startswith("-"):
        raise UsageError(f"{name} comes after the definition, where a script may stand", hint="options go before it")
    found = shutil.which(name)
    if found is not None:
        return [os.path.abspath(found), *words[1:]]
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"{name} is a directory, not a script")
    if path.is_file():
        raise UsageError(f"{name} is not executable", hint=f"chmod +x {shlex.quote(name)}")
    raise UsageError(f"there is no script or command {name!r}")


def child_environment(environ: Mapping[str, str], job_id: int, jobdir: Path) -> dict[str, str]:
    """What the shell or script gets: the caller's own, and how to find the cluster."""
    # Handed from pvc alloc to the launcher, and not meant for a job that is submitted from inside
    private = (VARIABLE, RESOLVED_VARIABLE, CPUS_VARIABLE)
    kept = {name: value for name, value in environ.items() if name not in private}
    return {**kept, "SLURM_JOB_ID": str(job_id), "PVC_JOB_DIR": os.fspath(jobdir)}


def shell_command(environ: Mapping[str, str], job_id: int, jobdir: Path) -> tuple[list[str], dict[str, str]]:
    """Command and environment of an interactive shell; its start-up file goes into the job's directory.

    bash and zsh would overwrite a prompt that comes with the environment, so they get a start-up file
    that reads the user's own first.
    """
    shell = environ.get("SHELL") or "/bin/sh"
    prompt = f"(pvc/{job_id}) "
    environment = child_environment(environ, job_id, jobdir)
    kind = Path(shell).name
    if kind == "bash":
        rc = jobdir / "bashrc"
        write_atomic(rc, f'[ -r ~/.bashrc ] && . ~/.bashrc\nPS1={shlex.quote(prompt)}"${{PS1:-\\\\$ }}"\n')
        return [shell, "--rcfile", os.fspath(rc), "-i"], environment
    if kind == "zsh":
        home = environ.get("ZDOTDIR") or environ.get("HOME", "/")
        lines = [f"ZDOTDIR={shlex.quote(home)}", "[ -r $ZDOTDIR/.zshrc ] && . $ZDOTDIR/.zshrc"]
        write_atomic(jobdir / ".zshrc", "\n".join([*lines, f"PROMPT={shlex.quote(prompt)}$PROMPT", ""]))
        return [shell, "-i"], {**environment, "ZDOTDIR": os.fspath(jobdir)}
    return [shell, "-i"], {**environment, "PS1": prompt + environ.get("PS1", "$ ")}


def tied_argv(argv: Sequence[str]) -> list[str]:
    """``argv``, sent SIGHUP by the kernel when the launcher dies, where setpriv(1) is there to ask for it."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "HUP", *argv] if setpriv else list(argv)
