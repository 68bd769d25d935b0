# SPDX-License-Identifier: Apache-2.0
"""pvc repo: look at image repositories and keep them tidy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pvc.cli import output
from pvc.cli.options import json_option
from pvc.cli.progress import CopyProgress, format_size
from pvc.errors import GuestError, PvcError

if TYPE_CHECKING:
    from pvc.images.repository import Repositories
    from pvc.images.store import Collected, Store
    from pvc.images.verify import Verdict


@click.group()
def repo() -> None:
    """Look at image repositories and keep them tidy.

    A repository is a directory that all nodes see; repos.yaml lists them. No program serves it and nobody locks it.
    """


@repo.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the repositories in the order in which an image's name is looked up."""
    found = [_describe(store) for store in open_repositories().stores]
    if as_json:
        output.print_json(found)
        return
    rows = [
        (
            each["name"], each["state"], each["images"], each["revisions"],
            None if each["stored"] is None else format_size(each["stored"]),
            None if each["free"] is None else format_size(each["free"]), each["path"],
        )
        for each in found
    ]  # fmt: skip
    output.print_table(("NAME", "STATE", "IMAGES", "REVISIONS", "STORED", "FREE", "PATH"), rows)


@repo.command()
@click.argument("names", metavar="[REPOSITORY]...", nargs=-1)
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
def gc(names: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Remove files that no image has, and what killed commands have left; by default from your first repository.

    Each command that writes does so at its end. It is safe beside others that import, save or delete at the same time.
    """
    repositories = open_repositories()
    stores = [repositories.store(name) for name in names or (None,)]
    collected = [(store.name, store.collect(dry_run=dry_run)) for store in stores if store.exists()]
    print_collected(collected, dry_run, as_json)


@repo.command()
@click.argument("names", metavar="[REPOSITORY]...", nargs=-1)
@json_option
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Read every file of every image, by default of all repositories, and name those that are damaged.

    The exit code is 7 if there are any.
    """
    from pvc.images.verify import verify_store

    repositories = open_repositories()
    stores = [repositories.store(name) for name in names] or list(repositories.stores)
    progress = CopyProgress("verifying")
    print_verdicts([verdict for store in stores for verdict in verify_store(store, progress)], as_json)


def _describe(store: Store) -> dict[str, Any]:
    data: dict[str, Any] = {"name": store.name, "path": str(store.path), "state": "ok", "problem": None}
    data |= dict.fromkeys(("images", "revisions", "stored", "free"))
    try:
        if not store.exists():
            return data | {"state": "not made yet"}
        revisions = store.list_revisions()
        data["images"], data["revisions"] = len(revisions), sum(map(len, revisions.values()))
        data["stored"] = store.measure()
        facts = os.statvfs(store.path)
        data["free"] = facts.f_bavail * facts.f_frsize
    except (PvcError, OSError) as err:
        output.print_note(str(err))
        return data | {"state": "unusable", "problem": str(err)}
    return data | {"state": "ok" if os.access(store.path / "meta", os.W_OK) else "read-only"}


def open_repositories() -> Repositories:
    """The user's and the site's repositories."""
    from pvc.config.load import find_site_dir, find_user_dir, load_repositories
    from pvc.images.repository import Repositories

    return Repositories(load_repositories(find_site_dir(), find_user_dir()))


def find_user() -> str:
    """The name of who runs this, for the descriptions of images."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def print_collected(collected: Sequence[tuple[str, Collected]], dry_run: bool, as_json: bool) -> None:
    """Print what a collection removed, or would remove, from each repository."""
    if as_json:
        output.print_json([{"repository": name, "files": each.files, "bytes": each.size} for name, each in collected])
        return
    for name, each in collected:
        verb = "could be freed" if dry_run else "freed"
        output.say(f"{name}: {each.files} files, {format_size(each.size)} {verb}")


def print_verdicts(verdicts: Sequence[Verdict], as_json: bool) -> None:
    """Print what was found out about each image.

    :raise GuestError: one of them is damaged.
    """
    damaged = [verdict for verdict in verdicts if verdict.problem]
    if as_json:
        output.print_json([{"uri": each.uri, "ok": not each.problem, "problem": each.problem} for each in verdicts])
    else:
        for each in verdicts:
            output.say(f"{each.uri}: {each.problem or 'ok'}")
    if damaged:
        names = ", ".join(each.uri for each in damaged[:5]) + (", ..." if len(damaged) > 5 else "")
        raise GuestError(
            f"{len(damaged)} of {len(verdicts)} images damaged: {names}",
            hint="import the same files again, or remove the images: pvc image delete",
        )
