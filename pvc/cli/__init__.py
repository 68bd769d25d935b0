"""Command line front ends: pvc and pvc-node."""
