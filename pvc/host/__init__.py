"""Thin, idempotent effects on one host; no policy."""
