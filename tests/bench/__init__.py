# SPDX-License-Identifier: Apache-2.0
"""Measurements: ``make bench [BENCH=name]`` prints one JSON object a line. Nothing here asserts a time."""
