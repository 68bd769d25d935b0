"""pvc config: are the configuration files right?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from pvc.cli import output
from pvc.cli.options import json_option
from pvc.config import load
from pvc.errors import ConfigError
from pvc.model.site import SiteConfig


@click.group()
def config() -> None:
    """Check configuration files."""


@config.command()
@click.argument("site_dir", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--site-only", is_flag=True, help="Leave your own files in ~/.pvc out.")
@json_option
def check(site_dir: Path | None, site_only: bool, as_json: bool) -> None:
    """Report all that is wrong in the configuration files, with file and line.

    The files are those of SITE_DIR (default: /etc/pvc, or PVC_CONF_DIR) and your own in ~/.pvc. The exit code is 3
    when something is wrong.
    """
    site = site_dir or load.find_site_dir()
    user = None if site_only else load.find_user_dir()
    problems: tuple[object, ...] = ()
    found: SiteConfig | None = None
    try:
        found = load.load_config(site, user)
    except ConfigError as err:
        if not as_json:
            raise
        problems = err.problems
    files = [str(path) for path in load.list_files(site, user)]
    if as_json:
        output.print_json({"files": files, "problems": problems})
    if found is None:
        raise SystemExit(ConfigError.exit_code)
    if not as_json:
        _print_summary(found, files)


def _print_summary(found: SiteConfig, files: list[str]) -> None:
    for path in files:
        print(f"read {path}")
    default = next((each.name for each in found.resource_sets.values() if each.default), None)
    rows = [
        ("networks", _names(found.networks)),
        ("resource sets", _names(found.resource_sets) + (f" (default: {default})" if default else "")),
        ("templates", _names(found.templates)),
        ("repositories", ", ".join(f"{each.name} ({each.path})" for each in found.repositories)),
        ("etcd", ", ".join(f"{server}:{found.batch.etcd.port}" for server in found.batch.etcd.servers)),
    ]
    for label, text in rows:
        print(f"{label:<14} {text or 'none'}")
    print("no problems")


def _names(values: Iterable[str]) -> str:
    return ", ".join(values)
