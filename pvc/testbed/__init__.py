# SPDX-License-Identifier: Apache-2.0
"""A real Slurm cluster on one machine: every node in namespaces of its own (``pvc testbed``)."""
