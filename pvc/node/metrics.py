# SPDX-License-Identifier: Apache-2.0
"""What pvc-node counts while it works, and the text form of all its metrics (OpenMetrics 1.0)."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pvc.errors import ConfigError, GuestError, HostError, JobError, StateError, UsageError, is_shortage
from pvc.state.drain import OutOfServiceError

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# Set-ups and tear-downs take a tenth of a second; what waits for a store or a lock takes up to 40.
BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
_CLASSES = (
    (OutOfServiceError, "drained"),
    (UsageError, "usage"),
    (ConfigError, "configuration"),
    (JobError, "slurm"),
    (StateError, "store"),
    (GuestError, "guest"),
    (HostError, "node"),
)


@dataclass(frozen=True)
class Family:
    """A metric: its kind, and what it says."""

    kind: str  # of OpenMetrics
    text: str


FAMILIES = {
    "pvc_build": Family("info", "The version of pvc-node."),
    "pvc_vms": Family("gauge", "VMs of jobs that are set up here; broken: something of their networks is, too."),
    "pvc_ledger_records": Family("gauge", "Records of jobs by how far these are."),
    "pvc_leases": Family("gauge", "Numbers, ports and devices of this node that jobs have."),
    "pvc_setup_seconds": Family("histogram", "What set-ups took, refused ones too."),
    "pvc_teardown_seconds": Family("histogram", "What tear-downs took."),
    "pvc_failures": Family("counter", "Refusals and faults by who must act."),
    "pvc_drained": Family("gauge", "1 while an administrator has taken this node out of service for new clusters."),
    "pvc_config_refused": Family("gauge", "1 while the configuration that was reloaded last was wrong."),
    "pvc_config_read_timestamp_seconds": Family("gauge", "When the configuration that is in force was read."),
    "pvc_user_vms": Family("gauge", "VMs by user, where metrics-users is on."),
}
Sample = tuple[str, Mapping[str, str], float]  # name, labels, value


class Histogram:
    """How often something took how long. The caller holds a lock."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self.sum += seconds

    def samples(self, name: str) -> Iterator[Sample]:
        """As OpenMetrics has them: each bucket counts what is in smaller ones as well."""
        total = 0
        for limit, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            total += count
            yield f"{name}_bucket", {"le": limit}, total
        yield f"{name}_count", {}, total
        yield f"{name}_sum", {}, self.sum


class Metrics:
    """Counted in memory, since this process began; may be asked by all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._took = {"setup": Histogram(), "teardown": Histogram()}
        self._failures: Counter[tuple[str, str]] = Counter()

    def observe(self, operation: str, seconds: float) -> None:
        """A set-up or a tear-down has come to its end."""
        with self._lock:
            self._took[operation].observe(seconds)

    def fail(self, operation: str, error: BaseException) -> None:
        """It was refused, or has failed."""
        with self._lock:
            self._failures[operation, classify(error)] += 1

    def samples(self) -> list[Sample]:
        """All of it."""
        with self._lock:
            found = [each for name, held in self._took.items() for each in held.samples(f"pvc_{name}_seconds")]
            for (operation, kind), count in sorted(self._failures.items()):
                found.append(("pvc_failures_total", {"operation": operation, "class": kind}, count))
            return found


def classify(error: BaseException) -> str:
    """Who must act, in a word; "shortage": nobody has broken anything, and something is used up."""
    if is_shortage(error):
        return "shortage"
    return next((word for kind, word in _CLASSES if isinstance(error, kind)), "internal")


def encode(samples: list[Sample]) -> str:
    """The text form: each metric of ``FAMILIES`` with its samples, in that order."""
    lines = []
    for name, family in FAMILIES.items():
        suffixes = {"info": ("_info",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        own = {f"{name}{suffix}" for suffix in suffixes.get(family.kind, ("",))}
        lines.append(f"# TYPE {name} {family.kind}")
        if name.endswith("_seconds"):
            lines.append(f"# UNIT {name} seconds")
        lines.append(f"# HELP {name} {family.text}")
        for sample, labels, value in samples:
            if sample in own:
                inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
                lines.append(f"{sample}{{{inner}}} {value:.17g}" if inner else f"{sample} {value:.17g}")
    return "\n".join([*lines, "# EOF", ""])


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
