# SPDX-License-Identifier: Apache-2.0
"""Reading configuration, without the start of the interpreter."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pvc.config.load import load_config
from pvc.errors import ConfigError
from tests.bench._rows import Row, row

RUNS = 20


def measure() -> Iterator[Row]:
    """A small site, one with many networks and templates, and one with a mistake (which imports jsonschema)."""
    with tempfile.TemporaryDirectory() as name:
        small, large, wrong = (Path(name) / each for each in ("small", "large", "wrong"))
        _write(small, networks=2, templates=5)
        _write(large, networks=200, templates=500)
        _write(wrong, networks=2, templates=5)
        (wrong / "resources.yaml").write_text("r: {networks: [n0], default: yes, cpus: 4}\n")
        for site, networks, templates in ((small, 2, 5), (large, 200, 500)):
            yield row("load", times=_times(site), networks=networks, templates=templates)
        assert "jsonschema" not in sys.modules
        begin = time.perf_counter()
        try:
            load_config(wrong, None)
        except ConfigError:
            yield row("mistake", times=[time.perf_counter() - begin], networks=2, templates=5)


def _times(site: Path) -> list[float]:
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        load_config(site, None)
        times.append(time.perf_counter() - begin)
    return times


def _write(site: Path, *, networks: int, templates: int) -> None:
    site.mkdir()
    (site / "batch.yaml").write_text("settings:\n  etcd-servers: [a, b, c]\n")
    settings = (
        "dev-prefix: p\n    int-network: 10.200.0.0/16\n    reverse-nat: {min-host-port: 60000, max-host-port: 60999}"
    )
    entries = [f"n{index}:\n  type: ethernet\n  settings:\n    {settings}\n" for index in range(networks)]
    (site / "networks.yaml").write_text("".join(entries))
    (site / "resources.yaml").write_text("r:\n  networks: [n0]\n  default: yes\n")
    parts = ["t0: {image: debian}\n"]
    parts += [f"t{index}:\n  inherits: t0\n  description: number {index}\n" for index in range(1, templates)]
    (site / "templates.yaml").write_text("".join(parts))
