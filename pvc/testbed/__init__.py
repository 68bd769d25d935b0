"""A real Slurm cluster on one machine: every node in namespaces of its own (``pvc testbed``)."""
