# SPDX-License-Identifier: Apache-2.0
"""Thin use of qemu-img(1); the format is always said, never guessed.

qemu-img gets open files, as /proc/self/fd/N: who owns a directory can put another file there at any moment. It is asked
for nothing after its end, so whoever could write a header between our look and its own would have it open other files:
disks whose headers name files must be the user's own (``is_own``), or copies.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pvc import run
from pvc.errors import CommandError

# qemu-img needs this much at most for what we ask; a hostile image must not eat the machine.
_CHECK_TIMEOUT_S = 600.0
_CONVERT_TIMEOUT_S = 3600.0
# Of the table in exitcodes.py: with these the answer says what there is, or that nothing is.
_CHECK_BLIND, _CHECK_TELLS = 1, (2, 3, 63)
# Formats that disks can be written in, with qemu-img's options. A VHD without force_size is as large as a geometry of
# cylinders, heads and sectors can be (block/vpc.c), and no longer the disk that it was.
EXPORTS: Mapping[str, tuple[str, ...]] = {
    "raw": (),
    "qcow2": (),
    "vmdk": (),
    "vdi": (),
    "vhdx": (),
    "vpc": ("-o", "force_size=on"),
}
_PERCENT = re.compile(rb"\((\d{1,3})\.\d\d/100%\)")


def is_own(fd: int) -> bool:
    """Whether nobody but this user (and root) can write to an open file."""
    facts = os.fstat(fd)
    return facts.st_uid in {0, os.geteuid()} and not facts.st_mode & 0o022


def _name(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def find_damage(fd: int, kind: str) -> str | None:
    """What is wrong inside a qcow2 disk; None when nothing is. Leaked clusters do no harm.

    :raise CommandError: qemu-img could not look at it at all.
    :raise HostError: there is no qemu-img.
    """
    argv = ["qemu-img", "check", "-q", "--output=json", _alone(fd, kind)]
    try:
        answer = run.run(argv, ok_codes=(0, *_CHECK_TELLS), timeout_s=_CHECK_TIMEOUT_S, pass_fds=(fd,))
    except CommandError as err:
        if err.returncode == _CHECK_BLIND:
            return err.stderr.strip().splitlines()[-1] if err.stderr.strip() else "qemu-img cannot read it"
        raise
    facts = json.loads(answer) if answer.strip() else {}
    bad = int(facts.get("corruptions", 0)) + int(facts.get("check-errors", 0))
    return f"qemu-img check finds {bad} errors in it" if bad else None


def convert(source: Path, source_kind: str, target: Path, target_kind: str) -> None:
    """Write ``source`` anew as ``target``, which must not be there yet; both in a directory of the user's alone.

    :raise CommandError: qemu-img failed; the target is as it left it.
    :raise HostError: there is no qemu-img.
    """
    argv = ["qemu-img", "convert", "-f", source_kind, "-O", target_kind, os.fspath(source), os.fspath(target)]
    run.run(argv, timeout_s=_CONVERT_TIMEOUT_S)


def resize(fd: int, kind: str, size: int) -> None:
    """Give a disk another size, in bytes; what it rests on is not looked at.

    :raise CommandError: qemu-img failed.
    :raise HostError: there is no qemu-img.
    """
    argv = ["qemu-img", "resize", "-q", _alone(fd, kind), str(size)]
    run.run(argv, timeout_s=_CHECK_TIMEOUT_S, pass_fds=(fd,))


def rest_on(fd: int, name: str, kind: str) -> None:
    """Have the header of a qcow2, of one's own and open to be written, name another file below it; no data is touched.

    qcow2 of version 2, which has no place for the format of that file, becomes version 3.

    :raise CommandError: qemu-img failed.
    :raise HostError: there is no qemu-img.
    """
    for argv in (["amend", "-q", "-o", "compat=1.1"], ["rebase", "-u", "-F", kind, "-b", name]):
        run.run(["qemu-img", *argv, _alone(fd, "qcow2")], timeout_s=_CHECK_TIMEOUT_S, pass_fds=(fd,))


def _alone(fd: int, kind: str) -> str:
    """A disk without the file that its header may name: nobody opens that."""
    disk: dict[str, object] = {"driver": kind, "file": {"driver": "file", "filename": _name(fd)}}
    if kind == "qcow2":
        disk["backing"] = None
    return f"json:{json.dumps(disk)}"


def flatten(layers: Sequence[tuple[int, str]], target: Path, progress: Callable[[int], None]) -> None:
    """Write a disk of several layers (open file and format, lowest first) as one qcow2; ``progress`` gets percent.

    :raise CommandError: it failed.
    :raise HostError: there is no qemu-img.
    """
    _convert_watched((), _stack(layers), tuple(fd for fd, _ in layers), target, progress)


def _stack(layers: Sequence[tuple[int, str]]) -> str:
    """A disk of several layers. No header is followed: what a layer rests on is said."""
    disk: dict[str, object] | None = None
    for fd, kind in layers:
        file = {"driver": "file", "filename": _name(fd), "locking": "off"}
        disk = {"driver": kind, "read-only": True, "file": file} | ({"backing": disk} if kind == "qcow2" else {})
    return f"json:{json.dumps(disk)}"


def export(
    layers: Sequence[tuple[int, str]], directory: int, name: str, kind: str, progress: Callable[[int], None]
) -> None:
    """Write a disk of several layers (open file and format, lowest first) in any of EXPORTS as one new file.

    It is ``name`` in the open ``directory``, whatever becomes of the path of that; some formats have their own name in
    them. qemu-img does not outlive this process.

    :raise CommandError: it failed.
    :raise HostError: there is no qemu-img.
    """
    argv = ["qemu-img", "convert", "-p", "-O", kind, *EXPORTS[kind], _stack(layers), f"./{name}"]
    fds = (*(fd for fd, _ in layers), directory)
    progress(0)
    _watch(run.bound(argv), fds, progress, cwd=Path(_name(directory)))
    progress(100)


def convert_foreign(fd: int, kind: str, target: Path, *, most: int, progress: Callable[[int], None]) -> None:
    """Write a disk of another hypervisor, whose header has been checked, as qcow2; ``progress`` gets percent.

    qemu-img may take an hour of processor time, 4 GiB of addresses and write ``most`` bytes, and opens no parent.

    :raise CommandError: it failed.
    :raise HostError: there is no qemu-img, or no prlimit.
    """
    limits = ("prlimit", "--as=4294967296", "--cpu=3600", f"--fsize={most}", "--core=0", "--")
    disk: dict[str, object] = {"driver": kind, "read-only": True, "file": {"driver": "file", "filename": _name(fd)}}
    if kind == "vmdk":
        disk["backing"] = None
    _convert_watched(limits, f"json:{json.dumps(disk)}", (fd,), target, progress)


def _convert_watched(
    limits: Sequence[str], source: str, fds: Sequence[int], target: Path, progress: Callable[[int], None]
) -> None:
    progress(0)
    out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    argv = [*limits, "qemu-img", "convert", "-p", "-O", "qcow2", source, _name(out)]
    with os.fdopen(out, "wb"):
        _watch(argv, (*fds, out), progress)
    progress(100)


def _watch(
    argv: Sequence[str], fds: Sequence[int], progress: Callable[[int], None], *, cwd: Path | None = None
) -> None:
    """Run a command that prints how far it is, to its end.

    :raise CommandError: it failed.
    """
    with tempfile.TemporaryFile() as errors:
        process = run.spawn(argv, stdout=run.PIPE, stderr=errors, pass_fds=fds, cwd=cwd)
        assert process.stdout is not None
        try:
            done = 0
            while text := os.read(process.stdout.fileno(), 4096):
                found = _PERCENT.findall(text)
                if found and done < int(found[-1]) < 100:
                    done = int(found[-1])
                    progress(done)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        if code:
            raise CommandError(argv, code, errors.read(65536).decode(errors="replace"))
