# SPDX-License-Identifier: Apache-2.0
"""Lines of configuration files, for what can only be found out later, on a node: plans know keys, not lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pvc.config.yamlmarks import read_document
from pvc.errors import ConfigError, Problem


def add_lines(error: ConfigError, site_dir: Path) -> ConfigError:
    """The same with the site's files and the lines of keys in them, as they are now."""
    return ConfigError([_locate(problem, site_dir) for problem in error.problems], hint=error.find_hint())


def _locate(problem: Problem, site_dir: Path) -> Problem:
    if problem.line or "/" in problem.file:
        return problem
    document = read_document(site_dir / problem.file)
    return replace(problem, file=document.file, line=document.line(tuple(problem.key.split("."))))
