"""The user side on a node: QEMU processes, consoles, control."""
