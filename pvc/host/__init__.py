# SPDX-License-Identifier: Apache-2.0
"""Thin, idempotent effects on one host; no policy."""
