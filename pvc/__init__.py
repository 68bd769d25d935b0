"""pvc: virtual clusters of VMs as ordinary Slurm jobs."""

__version__ = "0.1.0"
