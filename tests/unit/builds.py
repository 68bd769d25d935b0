# SPDX-License-Identifier: Apache-2.0
"""C that was built once is not built again before it changes; its tests run each time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from pvc import files

_COMPILERS = ("cc", "gcc", "clang", "musl-gcc")


def make(config: pytest.Config, source: Path, *words: str, rests_on: Iterable[Path] = ()) -> Path:
    """Run make in ``source`` and return its BUILD, which is kept for as long as all that it rests on stays the same.

    ``rests_on``: more files than those of ``source`` and of its tests.
    """
    known = config.cache
    assert known is not None
    place = known.mkdir("builds")
    key = f"{source.name}-{_digest(source, words, rests_on)}"
    build, done = place / key, place / f"{key}.done"
    # The processes of pytest-xdist share it.
    with files.locked(place / f"{key}.lock", timeout_s=600):
        if done.exists():
            # Of the same content, however young the sources' files are.
            for path in build.rglob("*"):
                os.utime(path)
            done.unlink()
        else:
            shutil.rmtree(build, ignore_errors=True)
            build.mkdir()
        # MAKEFLAGS: this may run below another make, whose job server is not ours.
        env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
        # Names with blanks would be several targets: a checkout may lie below one.
        argv = ["make", "-s", "-j2", "-C", os.fspath(source), *words, f"BUILD={os.path.relpath(build, source)}"]
        said = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env=env)
        assert said.returncode == 0, said.stdout + said.stderr
        done.touch()
    return build


def _digest(source: Path, words: Iterable[str], rests_on: Iterable[Path]) -> str:
    settings = sorted(word for word in words if "=" in word)  # targets of the same settings share what is built
    found = hashlib.sha256(repr(settings).encode())
    for compiler in filter(shutil.which, _COMPILERS):
        argv = [compiler, "--version"]
        found.update(subprocess.run(argv, capture_output=True, check=True).stdout)
    tests = source.parent / "tests" / source.name
    mine = [path for path in (*source.iterdir(), *tests.iterdir()) if path.suffix in (".c", ".h", ".lds", "")]
    for path in sorted({*mine, *rests_on}):
        if path.is_file() and path.name != f"pvc-{source.name}":  # what was built there
            found.update(os.fsencode(path) + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
