# SPDX-License-Identifier: Apache-2.0
"""Hide directories of the machine in this mount namespace, but not the checkout that the tests run from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


def cover(*directories: str) -> None:
    """An empty tmpfs over each; a checkout below one of them stays where it is."""
    for directory in directories:
        top = os.open(TOP, os.O_PATH | os.O_DIRECTORY)
        try:
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
            if TOP.is_relative_to(directory):
                TOP.mkdir(parents=True)
                argv = ["mount", "--no-canonicalize", "--bind", f"/proc/self/fd/{top}", TOP]
                subprocess.run(argv, check=True, pass_fds=[top])
        finally:
            os.close(top)
