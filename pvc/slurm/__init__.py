"""What Slurm says of a job, and the argv that asks Slurm for one."""
