# SPDX-License-Identifier: Apache-2.0
"""Fuzz what takes bytes of strangers: ``make fuzz [FUZZ=NAME] [FUZZ_SECONDS=N]``.

    python -m tests.fuzz [NAME [SECONDS]]

A crash is put into the corpus, from where the tests take it; the exit code tells of it. With no name all have their
turn, for so many seconds each.
"""

from __future__ import annotations

import os
import random
import resource
import sys

from tests.fuzz import engine, programs
from tests.fuzz.targets import TARGETS

# What takes more for an input of at most 128 KiB would take all that there is.
_MEMORY = 2 << 30
_BUILD = programs.HERE / "build"


def main() -> None:
    name, given = [*sys.argv[1:], "", ""][:2]
    known = [*programs.C_TARGETS, programs.BPF, *TARGETS]
    if name and name not in known:
        sys.exit(f"there is no target {name} (known: {' '.join(known)})")
    seconds = float(given or 60)
    chosen = [name] if name else known
    good = [_fuzz(each, seconds) for each in chosen]
    sys.exit(0 if all(good) else 1)


def _fuzz(name: str, seconds: float) -> bool:
    if name in programs.C_TARGETS:
        programs.build(_BUILD)
        done = programs.fuzz_c(_BUILD, name, f"-max_total_time={max(1, int(seconds))}", "-print_final_stats=1")
        return _tell(name, done.returncode, done.stdout)
    if name == programs.BPF:
        if os.geteuid() != 0:
            print(f"{name}: needs root, not fuzzed", flush=True)
            return True
        done = programs.fuzz_bpf(seconds)
        return _tell(name, done.returncode, done.stdout)
    # This process runs nothing but targets from now on.
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    try:
        count = engine.explore(TARGETS[name], seed=random.SystemRandom().randrange(1 << 32), seconds=seconds)
    except engine.CrashError as crash:
        print(f"{crash}\nkept as {os.path.relpath(engine.keep_crash(crash))}", flush=True)
        return False
    print(f"{name}: {count} inputs", flush=True)
    return True


def _tell(name: str, code: int, said: str) -> bool:
    lines = [line for line in said.splitlines() if "number_of_executed_units" in line or "inputs" in line]
    print(f"{name}: {lines[-1]}" if code == 0 and lines else f"{name}:\n{said}", flush=True)
    return code == 0


if __name__ == "__main__":
    main()
