# SPDX-License-Identifier: Apache-2.0
"""pvc: virtual clusters of VMs as ordinary Slurm jobs.

``from pvc import Cluster`` is for programs: pvc-api(3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pvc.ops.cluster import Cluster as Cluster

__version__ = "0.1.0"
__all__ = ["Cluster", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what is for programs when it is asked for: commands begin without it (PEP 562)."""
    if name == "Cluster":
        from pvc.ops.cluster import Cluster

        return Cluster
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
