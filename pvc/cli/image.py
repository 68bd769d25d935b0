# SPDX-License-Identifier: Apache-2.0
"""pvc image: bring images in, make them, look at them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pvc.cli import output
from pvc.cli.imagefiles import export, repository_option, take_over
from pvc.cli.options import HostPath, json_option
from pvc.cli.progress import CopyProgress, StepProgress, format_size
from pvc.cli.repo import find_user, open_repositories, print_collected, print_verdicts
from pvc.errors import UsageError
from pvc.parse import parse_size

if TYPE_CHECKING:
    from pvc.images.guestrecipe import GuestRecipe
    from pvc.images.recipe import Recipe
    from pvc.images.repository import FoundImage, Repositories
    from pvc.images.transfer import Incoming

_path = HostPath()


@click.group()
def image() -> None:
    """Import, build and list images.

    Images live in repositories: directories that all nodes see, ~/.pvc/images and those of the site. Each import
    makes a new revision; running clusters keep the one that they started with.
    """


@image.command("import", epilog="Example: pvc image import debian-12-genericcloud-amd64.qcow2 debian12")
@click.argument("source")
@click.argument("name", required=False)
@click.option(
    "-t",
    "--format",
    "kind",
    type=click.Choice(["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]),
    help="What SOURCE is. Default: detected.",
)
@click.option("--kernel", type=_path, help="A kernel to boot directly; the disk then needs no boot loader.")
@click.option("--initrd", type=_path, help="The initial file system of the kernel.")
@click.option("--append", default="", metavar="TEXT", help="The kernel's command line, e.g. 'root=/dev/vda1 rw'.")
@click.option("--description", default="", metavar="TEXT", help="One line for lists.")
@click.option("--user", metavar="USER", help="Whom to log in as: told by pvc image show.")
@click.option("--from-pcocc", is_flag=True, help="SOURCE is a repository of pcocc's: take all its images, or NAME.")
@click.option("--update", is_flag=True, help="Of what names its images itself, also next revisions of those there are.")
@repository_option
def import_(
    source: str, name: str | None, repository: str | None, from_pcocc: bool, update: bool, **options: Any
) -> None:
    """Copy the disk image SOURCE into a repository as NAME.

    SOURCE is raw or qcow2, or a VMDK, VDI, VHDX or VHD (vpc), which becomes qcow2, as does a raw disk with more than
    4 GiB of holes that are most of it; zstd, xz or gzip around it is taken off. The format is read from the file's
    header. An image that needs other files (a backing file, an external data file, a parent) or is encrypted is
    refused. If the name exists already, the image becomes its next revision. SOURCE may be an address, https://...,
    and - is standard input.

    SOURCE may also be an archive of pvc image export; without NAME its images keep their names, and must be new ones
    but for --update: whoever made the archive chose them. Or it is an image of
    an OCI layout or registry, oci:DIR[:TAG] or docker://HOST/REPOSITORY[:TAG]: one that pvc image export wrote there,
    or a container image with one disk below /disk (KubeVirt's containerDisk).

    With --from-pcocc, SOURCE is the directory of an image repository of pcocc's. All its images come with all their
    revisions, N as N + 1, and what cannot be taken is named. What is there already is passed over, so the command can
    be given again, also after it was interrupted.
    """
    from dataclasses import replace

    from pvc.images.oci import parse_reference
    from pvc.images.spool import is_spooled, spooled

    reference, repositories = parse_reference(source), open_repositories()
    if from_pcocc:
        if update or any(options.values()):
            raise UsageError(f"{source} says all but NAME and -R itself")
        take_over(Path(source), name, repository)
        return
    if is_spooled(source):
        with spooled(repositories.ensure(repository), source, CopyProgress("fetching")) as path:
            found = _import_file(path, name, repository, update, **options)
    elif reference is None:
        found = _import_file(Path(source), name, repository, update, **options)
    else:
        label = Path(source.partition(":")[2].lstrip("/")) if reference.layout is None else reference.layout
        incoming = replace(_plan_import(label, name or "", **options), update=update)
        found = (repositories.import_oci(reference, incoming, CopyProgress(), repository=repository),)
    for each in found:
        output.say(f"imported {each.uri}: {describe(each, repositories)}")


def _import_file(
    source: Path, name: str | None, repository: str | None, update: bool, **options: Any
) -> tuple[FoundImage, ...]:
    from pvc.images.archive import is_archive

    repositories = open_repositories()
    if is_archive(source):
        if any(options.values()):
            raise UsageError(f"{source} is an archive of pvc image export: it says all but NAME and -R itself")
        progress = CopyProgress()
        return repositories.import_archive(source, name, find_user(), progress, repository=repository, update=update)
    if name is None:
        raise UsageError(f"{source} is no archive of pvc image export: how shall the image be called (NAME)?")
    incoming = _plan_import(source, name, **options)
    return (repositories.import_file(incoming, CopyProgress(), repository=repository),)


def _plan_import(
    source: Path,
    name: str,
    *,
    kind: str | None,
    kernel: Path | None,
    initrd: Path | None,
    append: str,
    description: str,
    user: str | None,
) -> Incoming:
    from pvc.images.image import Format
    from pvc.images.transfer import Incoming

    ours = kind in ("raw", "qcow2")
    return Incoming(
        source=source,
        name=name,
        format=Format(kind) if kind and ours else None,
        kernel=kernel,
        initrd=initrd,
        append=append,
        description=_one_line(description, "--description"),
        owner=find_user(),
        hints={"user": _one_line(user, "--user")} if user else {},
        foreign=None if ours else kind,
    )


image.add_command(export)


@image.command("list")
@click.option("-a", "--all", "every", is_flag=True, help="All revisions, not only the newest ones.")
@repository_option
@json_option
def list_(every: bool, repository: str | None, as_json: bool) -> None:
    """List images by repository; where a name is in several, the first one is used."""
    repositories = open_repositories()
    images = repositories.list_all(repository) if every else repositories.list(repository)
    if as_json:
        output.print_json([_to_data(found) for found in images])
        return
    rows = [
        (
            found.repository,
            found.image.name,
            found.image.revision,
            found.image.format.value,
            format_size(found.image.size),
            format_size(repositories.stored_size(found)),
            "kernel" if found.image.kernel else "disk",
            _format_time(found.image.created),
            found.image.owner,
            found.image.description or None,
        )
        for found in images
    ]
    header = ("REPO", "NAME", "REV", "FORMAT", "DISK", "STORED", "BOOTS", "CREATED", "OWNER", "DESCRIPTION")
    output.print_table(header, rows)


@image.command()
@click.argument("name", metavar="IMAGE")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show all that is known of IMAGE, and check that its files are there.

    IMAGE is [REPOSITORY:]NAME[@REVISION]; without a revision the newest is meant.
    """
    repositories = open_repositories()
    found = repositories.locate(name)
    if as_json:
        output.print_json(_to_data(found) | {"files": _list_files(repositories, found)})
    else:
        _print_image(repositories, found)
    repositories.verify(found)


@image.command()
@click.argument("name", metavar="IMAGE")
@click.option("-a", "--all", "every", is_flag=True, help="All revisions, not only the newest or the one named.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def delete(name: str, every: bool, yes: bool) -> None:
    """Remove IMAGE from its repository, and the files that no other image has.

    IMAGE is [REPOSITORY:]NAME[@REVISION]; without a revision the newest is meant. VMs that run go on: they have the
    files open. (On NFS that holds for VMs of the node where the image is deleted; others get errors.) VMs that are
    still to start fail.
    """
    if not yes and sys.stdin.isatty():
        what = "all revisions of" if every else "the image"
        click.confirm(f"Remove {what} {name}? Clusters that still have to start VMs of it will fail.", abort=True)
    removed, freed = open_repositories().delete(name, every=every)
    output.say(f"removed {', '.join(removed)}: {format_size(freed)} freed")


@image.command()
@click.argument("names", metavar="[IMAGE]...", nargs=-1)
@json_option
def verify(names: tuple[str, ...], as_json: bool) -> None:
    """Read every file of IMAGE (by default: of all images) and compare it with its checksum.

    IMAGE is [REPOSITORY:]NAME[@REVISION]; without a revision the newest is meant. The exit code is 7 if one is
    damaged. Size and header of a disk are also checked whenever a VM is to start of it.
    """
    from pvc.images.verify import verify_store

    repositories = open_repositories()
    progress = CopyProgress("verifying")
    if names:
        wanted = [repositories.choose(name) for name in names]
        print_verdicts([each for store, key in wanted for each in verify_store(store, progress, [key])], as_json)
    else:
        print_verdicts([each for store in repositories.stores for each in verify_store(store, progress)], as_json)


@image.command()
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would be removed.")
@repository_option
@json_option
def gc(dry_run: bool, repository: str | None, as_json: bool) -> None:
    """Remove files that no image has, and what killed commands have left. The same as pvc repo gc."""
    store = open_repositories().store(repository)
    collected = [(store.name, store.collect(dry_run=dry_run))] if store.exists() else []
    print_collected(collected, dry_run, as_json)


@image.command(epilog="Example: pvc image tag debian@3 stable")
@click.argument("source", metavar="IMAGE")
@click.argument("name")
def tag(source: str, name: str) -> None:
    """Give IMAGE the further name NAME in its repository, as its next revision; no data is copied.

    IMAGE is [REPOSITORY:]NAME[@REVISION]; without a revision the newest is meant.
    """
    repositories = open_repositories()
    found = repositories.locate(source)
    made = repositories.copy(found, f"{found.repository}:{name}", find_user(), CopyProgress())
    output.say(f"tagged {found.uri} as {made.uri}")


@image.command(epilog="Example: pvc image copy site:debian user:debian")
@click.argument("source", metavar="IMAGE")
@click.argument("target", metavar="DEST")
def copy(source: str, target: str) -> None:
    """Copy IMAGE to another repository, as the next revision of DEST.

    IMAGE is [REPOSITORY:]NAME[@REVISION], DEST [REPOSITORY:]NAME; by default your first repository is meant. Files
    that it has already are not copied; what is copied is compared with its checksum.
    """
    repositories = open_repositories()
    found = repositories.locate(source)
    made = repositories.copy(found, target, find_user(), CopyProgress())
    output.say(f"copied {found.uri} to {made.uri}: {describe(made, repositories)}")


@image.command(epilog="Example: pvc image resize debian 20G")
@click.argument("name", metavar="IMAGE")
@click.argument("size")
def resize(name: str, size: str) -> None:
    """Make IMAGE with a disk of SIZE its next revision. SIZE is 20G, or +10G for so much more.

    Disks can only grow: a smaller one would cut off the end of its file systems. The new space is behind the last
    partition; most cloud images take it at their next boot.
    """
    repositories = open_repositories()
    found = repositories.locate(name)
    try:
        wanted = parse_size(size.removeprefix("+")) + (found.image.size if size.startswith("+") else 0)
    except ValueError as err:
        raise UsageError(str(err)) from None
    made = repositories.resize(found, wanted, find_user(), CopyProgress())
    output.say(f"resized {found.uri} to {made.uri}: {describe(made, repositories)}")


@image.command(epilog="Example: pvc image build debian")
@click.argument("recipe")
@click.option("--suite", help="The Debian release. Default: what the recipe says.")
@click.option("--name", metavar="NAME", help="The image's name. Default: the recipe's.")
@click.option(
    "--builder",
    type=click.Choice(["mmdebstrap", "mkosi"]),
    help="What installs the packages. Default: what the recipe says, or mmdebstrap.",
)
@click.option("--cache", type=_path, help="A directory that keeps the result; it is used while packages are the same.")
@click.option("--fresh", is_flag=True, help="Build, even where an image of the same is there.")
@click.option("--flat", is_flag=True, help="With a recipe from another image: let the result rest on nothing.")
@repository_option
def build(
    recipe: str,
    suite: str | None,
    name: str | None,
    builder: str | None,
    cache: Path | None,
    fresh: bool,
    flat: bool,
    repository: str | None,
) -> None:
    """Make an image from Debian packages, or from another image by what its guest does, and import it.

    RECIPE is one of pvc's own (debian, debian-uefi, cluster, docker, mpi, slurm) or a YAML file of the same form
    (./mine.yaml). It may extend another. Packages come from the mirrors that this machine's apt uses. It needs
    mmdebstrap, e2fsprogs and qemu-utils, no loop device, and as a normal user fakeroot and subordinate user ids (see
    subuid(5)). With "builder: mkosi" in the recipe, or --builder mkosi, the packages are installed by mkosi, the first
    in PATH, which must be 25 or newer; the image is of the same kind.

    A recipe with "from: IMAGE" boots a guest of IMAGE, has it install packages, write files and run commands, and keeps
    what that changed as a layer on IMAGE.
    """
    from pvc.images.guestrecipe import load_guest_recipe
    from pvc.images.recipe import Builder, find_recipe, load_lineage

    path = find_recipe(recipe)
    guest = load_guest_recipe(path)
    if guest is None:
        if flat:
            raise UsageError("--flat is for recipes that are from another image")
        lineage = load_lineage(path, suite=suite, builder=Builder(builder) if builder else None)
        _build_packages(lineage, name or path.stem, repository, cache, fresh=fresh)
    else:
        if suite or cache or builder:
            raise UsageError(
                "--suite, --cache and --builder are for recipes of packages: this one is from another image"
            )
        _build_from(guest, name or path.stem, repository, flat=flat, fresh=fresh)


def _build_packages(
    lineage: tuple[Recipe, ...], name: str, repository: str | None, cache: Path | None, *, fresh: bool
) -> None:
    from pvc.images import build as builder
    from pvc.images.recipe import join_recipes
    from pvc.images.transfer import Incoming

    wanted = join_recipes(lineage)
    repositories = open_repositories()
    repositories.store(repository)
    steps = StepProgress()
    with builder.built(lineage, steps.begin, cache=cache, fresh=fresh) as made:
        steps.finish()
        incoming = Incoming(
            source=made.disk,
            name=name,
            kernel=made.kernel,
            initrd=made.initrd,
            append=made.append,
            description=wanted.description,
            owner=find_user(),
            hints=wanted.hints,
        )
        found = repositories.import_file(incoming, CopyProgress(), repository=repository, reuse=True)
        origin = "from the cache" if made.cached else f"built in {steps.elapsed_s:.0f} s"
    output.say(f"{origin}: {found.uri}: {describe(found, repositories)}")


def _build_from(recipe: GuestRecipe, name: str, repository: str | None, *, flat: bool, fresh: bool) -> None:
    from pvc.config.load import find_site_dir, find_user_dir, load_batch
    from pvc.images.guestbuild import BuildPlace, GuestBuild, build_from
    from pvc.model.vm import Accel

    batch = load_batch(find_site_dir())
    accel, network = (batch.accel, batch.build_network) if batch else (Accel.AUTO, "user")
    place = BuildPlace(accel, network == "user", find_user(), find_user_dir() / "kvm")
    steps, repositories = StepProgress(), open_repositories()
    try:
        wanted = GuestBuild(recipe, name, repository, flat)
        found, cached = build_from(wanted, repositories, place, steps.begin, CopyProgress(), fresh=fresh)
    finally:
        steps.finish()
    origin = "made of the same before" if cached else f"built in {steps.elapsed_s:.0f} s"
    output.say(f"{origin}: {found.uri}: {describe(found, repositories)}")


def _one_line(text: str, option: str) -> str:
    if not text.isprintable():
        raise UsageError(f"{option} must be one printable line")
    return text


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def describe(found: FoundImage, repositories: Repositories) -> str:
    """Format and sizes of an image, for people."""
    image = found.image
    alone = f"{format_size(repositories.stored_size(found))} stored"
    shared = f"{format_size(image.disk.size)} of its own on {len(image.below)} layers"
    return f"{image.format.value}, a disk of {format_size(image.size)}, {shared if image.below else alone}"


def _to_data(found: FoundImage) -> dict[str, Any]:
    from pvc.codec import to_data

    data: dict[str, Any] = to_data(found.image)
    return {"repository": found.repository, "uri": found.uri} | data


def _list_files(repositories: Repositories, found: FoundImage) -> dict[str, str]:
    store = repositories.store(found.repository)
    blobs = {"disk": found.image.disk, "kernel": found.image.kernel, "initrd": found.image.initrd}
    found_files = {f"layer {i}": str(store.blob_path(each.blob)) for i, each in enumerate(found.image.below, start=1)}
    return found_files | {kind: str(store.blob_path(blob)) for kind, blob in blobs.items() if blob is not None}


def _print_image(repositories: Repositories, found: FoundImage) -> None:
    data = found.image
    revisions = repositories.store(found.repository).list_revisions().get(data.name, [])
    rows = [
        ("image", found.uri),
        ("description", data.description or "-"),
        ("revisions", ", ".join(map(str, revisions))),
        ("created", f"{_format_time(data.created)} by {data.owner or '-'}"),
        ("disk", f"{format_size(data.size)}, {data.format.value}, sha256 {data.disk.sha256}"),
        ("stored", format_size(repositories.stored_size(found))),
        *(
            (f"layer {i}", f"{format_size(each.blob.size)}, {each.format.value}, sha256 {each.blob.sha256}")
            for i, each in enumerate(data.below, start=1)
        ),
        ("boots", "directly" if data.kernel else "by the disk's boot loader"),
    ]
    if data.kernel:
        rows.append(("append", data.append))
    rows += [(key, value) for key, value in sorted(data.hints.items())]
    rows += [(f"{kind} file", path) for kind, path in _list_files(repositories, found).items()]
    for key, value in rows:
        output.say(f"{key:12} {value}")
