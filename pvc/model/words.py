# SPDX-License-Identifier: Apache-2.0
"""Words from the launcher to its supervisors, a line each on their standard input, behind the cluster's description."""

from __future__ import annotations

# Before the end of their input it says that this is no accident: see ClusterSpec.ends_job.
BYE = b"bye\n"
# Answers to SIGTERM (EventKind.TOLD): Slurm is being asked; then, that the job is preempted and has a time of grace, or
# that this is its end.
ASKING = b"asking\n"
STAY = b"stay\n"
LEAVE = b"leave\n"
