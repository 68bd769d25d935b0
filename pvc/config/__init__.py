# SPDX-License-Identifier: Apache-2.0
"""Declaration and validation of the YAML files: one table per file."""
