# SPDX-License-Identifier: Apache-2.0
"""Frozen values that every layer shares; no I/O."""
