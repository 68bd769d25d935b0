"""Thin use of qemu-img(1); the format is always said, never guessed."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pvc import run
from pvc.errors import CommandError

# qemu-img needs this much at most for what we ask; a hostile image must not eat the machine.
_CHECK_TIMEOUT_S = 600.0
_CONVERT_TIMEOUT_S = 3600.0
_PERCENT = re.compile(rb"\((\d{1,3})\.\d\d/100%\)")


@dataclass(frozen=True)
class DiskFacts:
    """What qemu-img says of a disk; sizes in bytes."""

    format: str
    virtual_size: int
    actual_size: int
    backing_file: str | None


def read_facts(path: Path, kind: str) -> DiskFacts:
    """Facts of a disk whose header has been checked.

    :raise CommandError: qemu-img refuses it.
    :raise HostError: there is no qemu-img.
    """
    data = json.loads(run.run(["qemu-img", "info", "--force-share", "-f", kind, "--output=json", path]))
    return DiskFacts(data["format"], data["virtual-size"], data["actual-size"], data.get("backing-filename"))


def find_damage(path: Path, kind: str) -> str | None:
    """What is wrong inside a qcow2 disk; None when nothing is. Leaked clusters do no harm.

    :raise CommandError: qemu-img could not look at it at all.
    :raise HostError: there is no qemu-img.
    """
    argv = ["qemu-img", "check", "-q", "--output=json", _alone(path, kind)]
    try:
        # 3: leaked clusters only; 2: errors; 1: it could not be opened or read (qemu-img(1), "check").
        answer = run.run(argv, ok_codes=(0, 2, 3), timeout_s=_CHECK_TIMEOUT_S)
    except CommandError as err:
        if err.returncode == 1:
            return err.stderr.strip().splitlines()[-1] if err.stderr.strip() else "qemu-img cannot read it"
        raise
    facts = json.loads(answer) if answer.strip() else {}
    bad = int(facts.get("corruptions", 0)) + int(facts.get("check-errors", 0))
    return f"qemu-img check finds {bad} errors in it" if bad else None


def convert(source: Path, source_kind: str, target: Path, target_kind: str, *, compress: bool = False) -> None:
    """Write ``source`` anew as ``target``, which must not be there yet or is replaced.

    :raise CommandError: qemu-img failed; the target is as it left it.
    :raise HostError: there is no qemu-img.
    """
    options = ["-c"] if compress else []
    argv = ["qemu-img", "convert", *options, "-f", source_kind, "-O", target_kind]
    argv += [os.fspath(source), os.fspath(target)]
    run.run(argv, timeout_s=_CONVERT_TIMEOUT_S)


def resize(path: Path, kind: str, size: int) -> None:
    """Give a disk another size, in bytes; what it rests on is not looked at.

    :raise CommandError: qemu-img failed.
    :raise HostError: there is no qemu-img.
    """
    run.run(["qemu-img", "resize", "-q", _alone(path, kind), str(size)], timeout_s=_CHECK_TIMEOUT_S)


def _alone(path: Path, kind: str) -> str:
    """A disk without the file that its header may name: nobody opens that."""
    disk: dict[str, object] = {"driver": kind, "file": {"driver": "file", "filename": os.fspath(path)}}
    if kind == "qcow2":
        disk["backing"] = None
    return f"json:{json.dumps(disk)}"


def flatten(layers: Sequence[tuple[str, str]], target: Path, progress: Callable[[int], None]) -> None:
    """Write a disk of several layers (path and format, lowest first) as one qcow2; ``progress`` gets percent.

    :raise CommandError: it failed.
    :raise HostError: there is no qemu-img.
    """
    disk: dict[str, object] | None = None
    for path, kind in layers:
        file = {"driver": "file", "filename": path, "locking": "off"}
        # No header is followed: what a layer rests on is said.
        disk = {"driver": kind, "read-only": True, "file": file} | ({"backing": disk} if kind == "qcow2" else {})
    _convert_watched(
        ["qemu-img", "convert", "-p", "-O", "qcow2", f"json:{json.dumps(disk)}", os.fspath(target)], progress
    )


def convert_foreign(source: Path, kind: str, target: Path, *, most: int, progress: Callable[[int], None]) -> None:
    """Write a disk of another hypervisor, whose header has been checked, as qcow2; ``progress`` gets percent.

    qemu-img may take an hour of processor time, 4 GiB of addresses and write ``most`` bytes, and opens no parent.

    :raise CommandError: it failed.
    :raise HostError: there is no qemu-img, or no prlimit.
    """
    limits = ["prlimit", "--as=4294967296", "--cpu=3600", f"--fsize={most}", "--core=0", "--"]
    disk: dict[str, object] = {
        "driver": kind,
        "read-only": True,
        "file": {"driver": "file", "filename": os.fspath(source)},
    }
    if kind == "vmdk":
        disk["backing"] = None
    argv = [*limits, "qemu-img", "convert", "-p", "-O", "qcow2", f"json:{json.dumps(disk)}", os.fspath(target)]
    _convert_watched(argv, progress)


def _convert_watched(argv: Sequence[str], progress: Callable[[int], None]) -> None:
    progress(0)
    with tempfile.TemporaryFile() as errors:
        process = run.spawn(argv, stdout=run.PIPE, stderr=errors)
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
    progress(100)
