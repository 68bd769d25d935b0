# SPDX-License-Identifier: Apache-2.0
"""pvc image export, and the import of a repository of pcocc's: images for and from elsewhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pvc.cli import output
from pvc.cli.progress import CopyProgress, format_size
from pvc.cli.repo import find_user, open_repositories
from pvc.errors import GuestError, UsageError

if TYPE_CHECKING:
    from pvc.images.repository import Repositories

# Those of pvc.host.qemuimg.EXPORTS, which is not imported for a help text; a test compares them.
DISK_FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc")

repository_option = click.option(
    "-R", "--repository", metavar="NAME", help="The repository (see repos.yaml). Default: the first, usually your own."
)


@click.command(epilog="Example: pvc image export debian debian.pvc.zst")
@click.argument("names", metavar="[IMAGE]...", nargs=-1)
@click.argument("target", metavar="FILE")
@click.option("-a", "--all", "every", is_flag=True, help="All revisions of all images of the repository.")
@click.option(
    "-t",
    "--format",
    "kind",
    type=click.Choice(DISK_FORMATS),
    help="Write the disk of one image in this format, and nothing else of it. Default: an archive.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@repository_option
def export(
    names: tuple[str, ...], target: str, every: bool, kind: str | None, force: bool, repository: str | None
) -> None:
    """Write images, with kernel, initrd and what is known of them, to the new FILE, for pvc image import elsewhere.

    IMAGE is [REPOSITORY:]NAME[@REVISION]; without a revision the newest is meant. FILE is a tar archive; it is
    compressed if its name ends in .zst. Data that images share is in it once. It appears when it is complete.

    With --format, FILE is the disk of one image for other hypervisors, all its layers as one: raw (with holes), qcow2,
    vmdk, vdi, vhdx or vpc (VHD). It grows with what is written to it, as far as the format can.

    FILE may also be a place for one image: oci:DIR[:TAG], a directory in the OCI image layout, or
    docker://HOST/REPOSITORY[:TAG], a registry (by skopeo, with the credentials of skopeo login); TAG is "latest" unless
    said. Only what is not there yet is sent. As - the archive goes to standard output, uncompressed.
    """
    from pvc.images.oci import parse_reference

    repositories = open_repositories()
    if every == bool(names):
        raise UsageError("name images, or say --all (for one repository: -R)")
    reference = parse_reference(target)
    if (reference is not None or target == "-") and (kind or force):
        raise UsageError(f"--format and --force are for files, and {target} is none")
    if kind is not None:
        if len(names) != 1:
            raise UsageError(f"--format {kind} writes the disk of one image: name one")
        _export_disk(repositories, names[0], Path(target), kind, force=force)
        return
    if reference is not None:
        if len(names) != 1:
            raise UsageError(f"{target} is a place for one image")
        one = repositories.locate(names[0])
        digest = repositories.export_oci(one, reference, CopyProgress("exporting"))
        output.say(f"exported {one.uri}: {digest}")
        return
    _export_archive(repositories, names, target, every=every, force=force, repository=repository)


def _export_archive(
    repositories: Repositories, names: tuple[str, ...], target: str, *, every: bool, force: bool, repository: str | None
) -> None:
    store = repositories.store(repository).name
    found = repositories.list_all(store) if every else tuple(map(repositories.locate, dict.fromkeys(names)))
    if not found:
        raise UsageError(f"repository {store!r} has no image")
    if target == "-":
        if sys.stdout.isatty():
            raise UsageError("an archive is nothing for a terminal", hint="pvc image export IMAGE - > FILE")
        repositories.export_to(found, sys.stdout.buffer, CopyProgress("exporting"))
        output.print_note(f"exported {', '.join(each.uri for each in found)}")
        return
    file = Path(target)
    repositories.export(found, file, CopyProgress("exporting"), force=force)
    output.say(f"exported {', '.join(each.uri for each in found)}: {format_size(file.stat().st_size)}")


def _export_disk(repositories: Repositories, name: str, target: Path, kind: str, *, force: bool) -> None:
    from pvc.images.diskfile import export_disk

    found = repositories.locate(name)
    export_disk(repositories, found, target, kind, CopyProgress("exporting"), force=force)
    stored = os.stat(target).st_blocks * 512
    output.say(f"exported {found.uri}: {kind}, a disk of {format_size(found.image.size)}, {format_size(stored)} stored")
    if found.image.kernel is not None:
        output.print_note(
            f"{found.uri} is booted by a kernel of its own, which is no part of its disk: "
            f"pvc image show {found.uri} tells where it is"
        )


def take_over(source: Path, name: str | None, repository: str | None) -> None:
    """Take the images of a repository of pcocc's, or the one called ``name``.

    :raise GuestError: one of them cannot be taken.
    """
    from pvc.images.pcocc import Left, read_repository
    from pvc.images.pcoccimport import take_images

    found = read_repository(source)
    store = open_repositories().ensure(repository)
    wrong = [] if name else [each for each in found.left if not each.expected]
    for each in () if name else found.left:
        output.print_note(f"not taken: {each.what}: {each.why}")
    for one in take_images(found, store, find_user(), CopyProgress(), only=name):
        if isinstance(one, Left):
            wrong.append(one)
            output.print_note(f"not taken: {one.what}: {one.why}")
        else:
            uris = ", ".join(f"{store.name}:{each}" for each in one.images)
            output.say(f"imported {uris}" if one.outcome == "taken" else f"there already: {uris}")
    if wrong:
        raise GuestError(
            f"{len(wrong)} of {source} could not be taken: {', '.join(each.what for each in wrong[:5])}",
            hint="the reasons are above; what was taken is in the repository",
        )
