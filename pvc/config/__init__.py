"""Declaration and validation of the YAML files: one table per file."""
