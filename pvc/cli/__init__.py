# SPDX-License-Identifier: Apache-2.0
"""Command line front ends: pvc and pvc-node."""
