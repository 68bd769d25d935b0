# SPDX-License-Identifier: Apache-2.0
"""The only module that starts processes.

argv lists only, never a shell; standard input is /dev/null unless said; the environment is built, not
inherited, unless asked for (``env=None`` gives PATH and LANG only).
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from pvc.errors import CommandError, HostError

LOG = logging.getLogger(__name__)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE_ENV: Mapping[str, str] = {"PATH": PATH, "LANG": "C.UTF-8"}

Process = subprocess.Popen
PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL
STDOUT = subprocess.STDOUT
TimeoutExpired = subprocess.TimeoutExpired

# Processes started by this one: benchmarks and budgets read it.
forks = 0


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: str | bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = 60.0,
    ok_codes: Sequence[int] = (0,),
    pass_fds: Sequence[int] = (),
    redact: str | None = None,
) -> str:
    """Run a command to its end and return its standard output as text.

    :raise CommandError: it ended with a code outside ``ok_codes``, or ran longer than ``timeout_s``.
    :raise HostError: there is no such command.
    """
    global forks
    words = [os.fspath(word) for word in argv]
    shown = shlex.join(words)
    LOG.debug("+ %s", shown.replace(redact, "***") if redact else shown)
    forks += 1
    try:
        done = subprocess.run(
            words,
            input=os.fsencode(stdin) if isinstance(stdin, str) else stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            env=dict(BASE_ENV if env is None else env),
            cwd=cwd,
            timeout=timeout_s,
            check=False,
            pass_fds=pass_fds,
        )
    except FileNotFoundError as err:
        raise HostError(f"command {words[0]} not found") from err
    except PermissionError as err:
        raise HostError(f"command {words[0]} may not be run") from err
    except OSError as err:
        raise HostError(f"cannot start {words[0]}") from err
    except subprocess.TimeoutExpired as err:
        raise CommandError(words, -1, f"no end after {timeout_s:g} s") from err
    if done.returncode not in ok_codes:
        raise CommandError(words, done.returncode, done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="replace")


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a command and return at once; the caller waits for it.

    :raise HostError: it cannot be started.
    """
    global forks
    words = [os.fspath(word) for word in argv]
    LOG.debug("+ %s &", shlex.join(words))
    forks += 1
    try:
        return subprocess.Popen(
            words,
            env=dict(BASE_ENV if env is None else env),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            start_new_session=new_session,
        )
    except FileNotFoundError as err:
        raise HostError(f"command {words[0]} not found") from err
    except OSError as err:
        raise HostError(f"cannot start {words[0]}") from err


def bound(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """A command line whose process the kernel kills when this one dies, in whatever way and however early.

    prctl(2), PR_SET_PDEATHSIG: it survives execve(2), but says nothing of a parent that has died before. So the parent
    is looked at once more afterwards: an orphan has another one.
    """
    words = [os.fspath(word) for word in argv]
    look = '[ "$PPID" = "$0" ] && exec "$@"'
    return ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", look, str(os.getpid()), *words]
