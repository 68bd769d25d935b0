# SPDX-License-Identifier: Apache-2.0
"""The commands of the first tutorial, as its page has them, do what it says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.slurm.test_main_path import LONG, assert_nothing_left, write_script
from tests.slurm.testbed import Snapshot, Testbed
from tests.unit.test_docs import Block, find_blocks, shell_lines

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "student.md"


def blocks_below(heading: str) -> list[Block]:
    """The blocks of one section of the page."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return find_blocks(PAGE, section)


def test_four_vms(tb: Testbed, debian: str, before: dict[str, Snapshot]) -> None:
    first, inside = blocks_below("Four VMs")
    (alloc,) = shell_lines(first)
    *options, definition = alloc.split()
    assert definition == f"{debian}:4"
    *lines, shell = shell_lines(inside)
    assert shell == "pvc ssh vm0"  # for a person: it opens a shell
    # A shell waits until all VMs answer, a script does not.
    write_script(tb, "\n".join(["set -e", "pvc wait", *lines]))
    done = tb.run([*options, "-E", "./script.sh", definition], timeout=LONG)
    assert len(re.findall(r"^vm\d +n\d +reachable", done.out, re.MULTILINE)) == 4
    assert " 0% packet loss" in done.out
    assert_nothing_left(tb, before)


def test_a_queued_job(tb: Testbed, debian: str, before: dict[str, Snapshot]) -> None:
    script, typed = blocks_below("A queued job")
    write_script(tb, script.text.removeprefix("#!/bin/bash\n"), "measure.sh")
    (batch,) = [line for line in shell_lines(typed) if line.startswith("pvc batch")]
    assert f" {debian}:2 " in batch
    done = tb.run(["pvc", "batch", "--wait", *batch.split()[2:]], timeout=LONG)
    (number,) = re.findall(r"\d+", done.out)
    assert re.search(r"\d+\.\d\d \d+\.\d\d \d+\.\d\d ", (tb.home() / f"slurm-{number}.out").read_text())
    assert_nothing_left(tb, before)
