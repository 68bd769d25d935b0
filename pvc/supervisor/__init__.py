# SPDX-License-Identifier: Apache-2.0
"""The user side on a node: QEMU processes, consoles, control."""
