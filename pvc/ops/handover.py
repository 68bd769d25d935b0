# SPDX-License-Identifier: Apache-2.0
"""What ``pvc alloc`` and ``pvc batch`` hand to ``pvc launch`` through the job's environment.

It is resolved at submission, so a job that starts tomorrow boots the image revisions of today. Nothing in
it is secret.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass

from pvc.codec import OtherVersionError
from pvc.errors import UsageError
from pvc.model.cluster import LAUNCH
from pvc.ops.definition import LaunchOrder

VARIABLE = "PVC_LAUNCH"
CPUS_VARIABLE = "PVC_CPUS_PER_VM"
# "DEFINITION REQUEST": the request as pvc alloc resolved it, with its --resource-set; the shim takes it (submit.c)
RESOLVED_VARIABLE = "PVC_RESOLVED"
DEFINITION_VARIABLE = "PVC_DEFINITION"
REQUEST_VARIABLE = "PVC_REQUEST"
# execve(2): one string of the environment has at most 128 KiB (MAX_ARG_STRLEN)
_MAX_TEXT = 126 * 1024


@dataclass(frozen=True)
class Handover:
    """The order, and how the launcher behaves. ``wait`` None: wait for an interactive shell only.

    ``warn_s``: how long before the end of the job's time its user is warned.
    """

    order: LaunchOrder
    wait: bool | None = None
    quiet: bool = False
    warn_s: tuple[float, ...] = (600.0, 60.0)


def encode(handover: Handover) -> str:
    """One word for the environment.

    :raise UsageError: it does not fit, which only large user-data can cause.
    """
    text = base64.b64encode(zlib.compress(LAUNCH.dumps(handover).encode(), 1)).decode()
    if len(text) > _MAX_TEXT:
        raise UsageError(
            f"the cluster's description has {len(text) // 1024} KiB packed; {_MAX_TEXT // 1024} KiB fit",
            hint="fetch large files from inside the guest instead of putting them in user-data",
        )
    return text


def decode(text: str) -> Handover:
    """The inverse of ``encode``.

    :raise UsageError: not what ``encode`` makes.
    """
    try:
        return LAUNCH.loads(Handover, zlib.decompress(base64.b64decode(text, validate=True)))
    except OtherVersionError as err:
        raise UsageError(
            f"{VARIABLE} in the environment is of another version of pvc",
            hint="submit the cluster again with this pvc, or let the job run the one that it was submitted with",
        ) from err
    except (ValueError, binascii.Error, zlib.error) as err:
        raise UsageError(f"{VARIABLE} in the environment is damaged") from err
