# SPDX-License-Identifier: Apache-2.0
"""What a hook learns of its VM: its environment."""

from __future__ import annotations

from collections.abc import Mapping

_KEPT = ("HOME", "USER", "LOGNAME", "LANG", "TMPDIR")


def plan_environment(inherited: Mapping[str, str], path: str, facts: Mapping[str, object]) -> dict[str, str]:
    """Variables for a hook: some of the job's, Slurm's, and ``facts`` as PVC_NAME; what is None is left out."""
    kept = {key: value for key, value in inherited.items() if key in _KEPT or key.startswith("SLURM")}
    own = {f"PVC_{key.upper()}": str(value) for key, value in facts.items() if value is not None}
    return {"LANG": "C.UTF-8", **kept, "PATH": path, **own}
