# SPDX-License-Identifier: Apache-2.0
"""Whether QEMU can use io_uring here: decided by letting it open a file that way.

It takes a QEMU built with liburing, a kernel that has it, and a container or sysctl (kernel.io_uring_disabled) that
does not take it away again. QEMU tries when it opens the file (block/file-posix.c, raw_open_common).
"""

from __future__ import annotations

import json
import tempfile

from pvc import run
from pvc.errors import CommandError, PvcError

_TIMEOUT_S = 20.0


def find_io_uring_obstacle(qemu_bin: str) -> str | None:
    """None where it works, else why not."""
    with tempfile.NamedTemporaryFile(prefix="pvc-probe-") as disk:
        disk.truncate(1 << 16)
        file = {"driver": "file", "filename": disk.name, "node-name": "probe", "aio": "io_uring"}
        argv = [
            *(qemu_bin, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S"),
            *("-blockdev", json.dumps(file), "-qmp", "stdio"),
        ]
        orders = [{"execute": "qmp_capabilities"}, {"execute": "quit"}]
        try:
            run.run(argv, stdin="".join(json.dumps(each) + "\n" for each in orders), timeout_s=_TIMEOUT_S)
        except CommandError as err:
            said = err.stderr.strip().splitlines()
            return said[-1] if said else str(err)
        except PvcError as err:
            return str(err)
    return None
