# SPDX-License-Identifier: Apache-2.0
"""Which templates get io_uring on this node."""

from __future__ import annotations

from dataclasses import replace

from pvc.host.aio import find_io_uring_obstacle
from pvc.model.cluster import ClusterSpec
from pvc.plan.hardware import replace_aio, uses_aio


def settle_aio(spec: ClusterSpec) -> tuple[ClusterSpec, str | None]:
    """The cluster as this node can run it, and why disks that want io_uring get threads; None: no disk must do without.

    The probe costs a start of QEMU, for each QEMU of templates that want it.
    """
    obstacles: dict[str, str | None] = {}
    templates = dict(spec.templates)
    for name, template in spec.templates.items():
        if not uses_aio(template, "io_uring"):
            continue
        binary = template.qemu_bin
        if binary not in obstacles:
            obstacles[binary] = find_io_uring_obstacle(binary)
        if obstacles[binary] is not None:
            templates[name] = replace_aio(template, "io_uring", "threads")
    return replace(spec, templates=templates), next((each for each in obstacles.values() if each is not None), None)
