# SPDX-License-Identifier: Apache-2.0
"""pvc config: are the configuration files right?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from pvc.cli import output
from pvc.cli.options import HostPath, json_option
from pvc.config import load
from pvc.errors import ConfigError
from pvc.model.site import SiteConfig


@click.group()
def config() -> None:
    """Check configuration files, and make them of pcocc's."""


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
        warnings = () if found is None else found.warnings
        output.print_json({"files": files, "problems": problems, "warnings": warnings})
    if found is None:
        raise SystemExit(ConfigError.exit_code)
    if not as_json:
        _print_summary(found, files)


@config.command(epilog="Example: pvc config migrate /etc/pcocc -o ./new-site")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("-o", "--output", "target", type=HostPath(), metavar="OUT", help="Write pvc's files to this directory.")
@click.option(
    "--site",
    type=HostPath(),
    metavar="SITE_DIR",
    help="Of a user's files: pvc's site. Default: /etc/pvc, or PVC_CONF_DIR.",
)
@json_option
def migrate(directory: Path, target: Path | None, site: Path | None, as_json: bool) -> None:
    """Make pvc's configuration of pcocc's in DIR: a site's, /etc/pcocc, or a user's, ~/.pcocc.

    What is other, and what has no counterpart, is told with its file and line in DIR, and by a comment in the new file.
    The new files pass pvc config check; where they would not, all problems are told and nothing is written. Without -o
    nothing is written, either. OUT is made if it is not there, and no file in it is replaced.
    """
    from pvc.ops import migrate as ops

    plan = ops.plan_migration(directory)
    ops.check(plan, site or load.find_site_dir())
    written = ops.write(plan, target) if target is not None else ()
    changed, lost = ([note.place for note in plan.notes if note.lost is which] for which in (False, True))
    if as_json:
        output.print_json(
            {"changed": changed, "lost": lost, "files": list(plan.files), "written": list(map(str, written))}
        )
        return
    for label, places in (("other than it was:", changed), ("without a counterpart:", lost)):
        output.say(label if places else f"{label} nothing")
        for place in places:
            output.say(f"  {place}")
    for path in written:
        output.say(f"wrote {path}")
    if target is None:
        output.print_note(f"nothing was written: -o OUT makes {', '.join(plan.files)}")


def _print_summary(found: SiteConfig, files: list[str]) -> None:
    for path in files:
        output.say(f"read {path}")
    default = next((each.name for each in found.resource_sets.values() if each.default), None)
    rows = [
        ("networks", _names(found.networks)),
        ("resource sets", _names(found.resource_sets) + (f" (default: {default})" if default else "")),
        ("templates", _names(found.templates)),
        ("repositories", ", ".join(f"{each.name} ({each.path})" for each in found.repositories)),
        ("etcd", ", ".join(f"{server}:{found.batch.etcd.port}" for server in found.batch.etcd.servers)),
    ]
    for label, text in rows:
        output.say(f"{label:<14} {text or 'none'}")
    print_warnings(found)
    output.say("no problems")


def print_warnings(found: SiteConfig) -> None:
    """Tell what is right, and not as its author may think."""
    for each in found.warnings:
        output.print_note(f"warning: {each}")


def _names(values: Iterable[str]) -> str:
    return ", ".join(values)
