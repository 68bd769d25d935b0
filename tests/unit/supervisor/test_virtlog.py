# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from pvc.supervisor.virtlog import read_said

# As libvirt 9.0 writes it, shortened.
START = r"""2026-11-25 01:19:47.555+0000: starting up libvirt version: 9.0.0, package: 9.0.0-4
LC_ALL=C \
PATH=/usr/sbin:/usr/bin \
/run/12/virt/bin/qemu-system-x86_64 \
-name guest=vm0,debug-threads=on \
-msg timestamp=on
"""


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", ""),
        ("2026-11-25 01:20:00.701+0000: Domain id=1 is tainted: custom-monitor\n", ""),
        ("2026-11-25T01:19:50Z qemu-system-x86_64: terminating on signal 15 from pid 7244 (libvirtd)\n", ""),
        ("2026-11-25 01:19:47.702+0000: shutting down, reason=failed\n", ""),
        (
            "qemu-system-x86_64: -device x: no such device\nsecond\n",
            "qemu-system-x86_64: -device x: no such device; second",
        ),
    ],
)
def test_only_what_qemu_says(tmp_path: Path, lines: str, said: str) -> None:
    log = tmp_path / "vm0.log"
    log.write_text(START + "of an earlier start\n" + START + lines)
    assert read_said(log) == said


def test_no_log_is_silence(tmp_path: Path) -> None:
    assert read_said(tmp_path / "none") == ""
