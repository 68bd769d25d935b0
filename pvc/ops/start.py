# SPDX-License-Identifier: Apache-2.0
"""``pvc start``: a launcher in the background of a job that was made with ``--pvc=DEFINITION``."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from pvc.config.load import load_user_config
from pvc.errors import JobError, PvcError, UsageError
from pvc.model.failure import Failure
from pvc.model.request import decode_request
from pvc.ops.definition import LaunchOrder, Overrides, resolve
from pvc.ops.display import Display
from pvc.ops.handover import CPUS_VARIABLE, DEFINITION_VARIABLE, REQUEST_VARIABLE, Handover
from pvc.ops.jobdir import JobDir
from pvc.ops.launch import Mission, launch
from pvc.ops.sizing import resolve_by_hand


def start_cluster(
    definition: str | None, overrides: Overrides, environ: Mapping[str, str], *, wait: bool, quiet: bool
) -> None:
    """Boot the VMs of the job around this process; returns when they run (``wait``: when they answer).

    The launcher stays behind in a session of its own. It ends with the job, or by ``pvc stop``.

    :raise PvcError: they do not run; nothing is left of them.
    """
    job_id = _find_job(environ)
    order = _resolve(definition, overrides, environ)
    if JobDir.of(job_id).record_path.exists():
        raise JobError(f"a cluster runs already in job {job_id}", hint="pvc status shows it, pvc stop ends it")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _become_launcher(Handover(order, wait, quiet), environ, JobDir.of(job_id), writer)
    os.close(writer)
    _await_report(reader, pid)


def _find_job(environ: Mapping[str, str]) -> int:
    text = environ.get("SLURM_JOB_ID", "")
    if not text.isdecimal():
        raise JobError(
            "pvc start boots the VMs of the job that it runs in, and there is none",
            hint="pvc alloc DEFINITION makes a job and boots its VMs",
        )
    return int(text)


def _resolve(definition: str | None, overrides: Overrides, environ: Mapping[str, str]) -> LaunchOrder:
    """:raise UsageError: the job was not made for these VMs."""
    prepared = environ.get(DEFINITION_VARIABLE)
    if prepared is None:
        raise UsageError(
            "this job has no networks for VMs", hint="make it with salloc --pvc=DEFINITION or sbatch --pvc=DEFINITION"
        )
    text = environ.get(CPUS_VARIABLE, "")
    cpus = int(text) if text.isdecimal() else None
    config = load_user_config()
    try:
        made_for = decode_request(environ[REQUEST_VARIABLE])
    except KeyError:  # of a plug-in of before
        made_for = resolve_by_hand(prepared, config, cpus)
    except ValueError as err:
        raise UsageError(f"{REQUEST_VARIABLE} in the environment is damaged, or of another version of pvc") from err
    order = resolve(definition or prepared, config, overrides, cpus, made_for.sizes)
    # How VMs are dealt to nodes was known where the job was submitted.
    request = replace(order.request, pack=made_for.pack, whole=made_for.whole)
    if request != made_for:
        other = f"than {definition!r}" if definition is not None else "than its templates say now"
        raise UsageError(f"the job was made for {prepared!r}, which needs other networks or other counts {other}")
    return replace(order, request=request)


def _become_launcher(handover: Handover, environ: Mapping[str, str], jobdir: JobDir, writer: int) -> NoReturn:
    """In the child: report on ``writer`` once, then serve until the end."""
    code = 1
    try:
        os.setsid()
        report = _Report(writer)

        def on_ready() -> None:
            _redirect(os.fspath(jobdir.log))
            report.send({"ok": True})

        display = Display(sys.stderr, quiet=handover.quiet)
        try:
            code = launch(Mission(handover, None, on_ready=on_ready), environ, display)
        except PvcError as err:
            code = err.exit_code
            if not report.send(Failure.of(err).data()):
                display.warn(str(err))
        except Exception as err:  # noqa: BLE001  the boundary of this process: its parent tells the user
            report.send(Failure(code, f"internal error: {type(err).__name__}: {err}").data())
    finally:
        os._exit(code)


class _Report:
    """The one line that the child tells its parent."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def send(self, message: dict[str, object]) -> bool:
        """False when something was told before."""
        if self._fd is None:
            return False
        fd, self._fd = self._fd, None
        try:
            os.write(fd, json.dumps(message).encode())
        except BrokenPipeError:
            return False
        finally:
            os.close(fd)
        return True


def _redirect(log: str) -> None:
    """Let go of the caller's terminal and pipes: whoever waits for their end must not wait for the VMs."""
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)


def _await_report(reader: int, pid: int) -> None:
    try:
        with os.fdopen(reader, "rb") as stream:
            data = stream.read()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    if not data:
        raise JobError("the launcher has died")
    report = json.loads(data)
    if not report["ok"]:
        os.waitpid(pid, 0)
        raise Failure.of_data(report).rebuild()
