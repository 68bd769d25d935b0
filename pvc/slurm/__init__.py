# SPDX-License-Identifier: Apache-2.0
"""Slurm: what it says of jobs, and the arguments of its commands."""
