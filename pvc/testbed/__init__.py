"""A real Slurm cluster in namespaces on one machine."""
