"""Slurm: what it says of jobs, and the arguments of its commands."""
