"""pvc image: bring images in, make them, look at them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pvc.cli import output
from pvc.cli.options import json_option
from pvc.errors import UsageError

if TYPE_CHECKING:
    from pvc.images.repository import FoundImage, Repositories

_repository_option = click.option(
    "-R", "--repository", metavar="NAME", help="The repository (see repos.yaml). Default: the first, usually your own."
)
_path = click.Path(path_type=Path)


@click.group()
def image() -> None:
    """Import, build and list images.

    Images live in repositories: directories that all nodes see, ~/.pvc/images and those of the site. Each import
    makes a new revision; running clusters keep the one that they started with.
    """


@image.command("import", epilog="Example: pvc image import debian-12-genericcloud-amd64.qcow2 debian12")
@click.argument("source", type=_path)
@click.argument("name")
@click.option("-t", "--format", "kind", type=click.Choice(["raw", "qcow2"]), help="What SOURCE is. Default: detected.")
@click.option("--kernel", type=_path, help="A kernel to boot directly; the disk then needs no boot loader.")
@click.option("--initrd", type=_path, help="The initial file system of the kernel.")
@click.option("--append", default="", metavar="TEXT", help="The kernel's command line, e.g. 'root=/dev/vda1 rw'.")
@click.option("--description", default="", metavar="TEXT", help="One line for lists.")
@click.option("--user", metavar="TEXT", help="Whom to log in as: told by pvc image show.")
@_repository_option
def import_(
    source: Path,
    name: str,
    kind: str | None,
    kernel: Path | None,
    initrd: Path | None,
    append: str,
    description: str,
    user: str | None,
    repository: str | None,
) -> None:
    """Copy the disk image SOURCE (raw or qcow2) into a repository as NAME.

    The format is read from the file's header. An image that needs other files (a backing file, an external data
    file) or is encrypted is refused. If the name exists already, the image becomes its next revision.
    """
    from pvc.images.image import Format
    from pvc.images.transfer import Incoming

    incoming = Incoming(
        source=source,
        name=name,
        format=Format(kind) if kind else None,
        kernel=kernel,
        initrd=initrd,
        append=append,
        description=_one_line(description, "--description"),
        owner=_find_user(),
        hints={"user": _one_line(user, "--user")} if user else {},
    )
    found = _open_repositories().import_file(incoming, CopyProgress(), repository=repository)
    click.echo(f"imported {found.uri}: {_describe(found)}")


@image.command("list")
@click.option("-a", "--all", "every", is_flag=True, help="All revisions, not only the newest ones.")
@_repository_option
@json_option
def list_(every: bool, repository: str | None, as_json: bool) -> None:
    """List images by repository; where a name is in several, the first one is used."""
    repositories = _open_repositories()
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
            format_size(found.image.stored_size),
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
    repositories = _open_repositories()
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

    IMAGE is [REPOSITORY:]NAME[@REVISION]; without a revision the newest is meant.
    """
    if not yes and sys.stdin.isatty():
        what = "all revisions of" if every else "the image"
        click.confirm(f"Remove {what} {name}? Clusters that still have to start VMs of it will fail.", abort=True)
    removed, freed = _open_repositories().delete(name, every=every)
    click.echo(f"removed {', '.join(removed)}: {format_size(freed)} freed")


@image.command(epilog="Example: pvc image build debian")
@click.argument("recipe")
@click.option("--suite", help="The Debian release. Default: what the recipe says.")
@click.option("--name", help="The image's name. Default: the recipe's.")
@click.option("--cache", type=_path, help="A directory that keeps the result; it is used while packages are the same.")
@_repository_option
def build(recipe: str, suite: str | None, name: str | None, cache: Path | None, repository: str | None) -> None:
    """Make an image from Debian packages and import it.

    RECIPE is one of pvc's own ("debian": small, quick to boot, with cloud-init and ssh) or a YAML file of the same
    form (./mine.yaml). Packages come from the mirrors that this machine's apt uses. It needs mmdebstrap, e2fsprogs
    and qemu-utils, no loop device, and as a normal user fakeroot and subordinate user ids (see subuid(5)).
    """
    from pvc.images import build as builder
    from pvc.images.recipe import find_recipe, load_recipe
    from pvc.images.transfer import Incoming

    path = find_recipe(recipe)
    wanted = load_recipe(path, suite=suite)
    repositories = _open_repositories()
    repositories.store(repository)
    steps = StepProgress()
    with builder.built(wanted, steps.begin, cache=cache) as made:
        steps.finish()
        incoming = Incoming(
            source=made.disk,
            name=name or path.stem,
            kernel=made.kernel,
            initrd=made.initrd,
            append=wanted.append,
            description=wanted.description,
            owner=_find_user(),
            hints=wanted.hints,
        )
        found = repositories.import_file(incoming, CopyProgress(), repository=repository, reuse=True)
        origin = "from the cache" if made.cached else f"built in {steps.elapsed_s:.0f} s"
    click.echo(f"{origin}: {found.uri}: {_describe(found)}")


class CopyProgress:
    """How far a copy is: a bar with its rate on a terminal, one line a file elsewhere; on standard error."""

    _WIDTH = 28

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._start = self._shown = 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        """Tell that ``done`` of ``total`` bytes of ``name`` are copied; 0 begins, ``total`` ends."""
        now = time.monotonic()
        if done == 0:
            self._start, self._shown = now, 0.0
            if not self._tty:
                output.print_note(f"copying {name} ({format_size(total)})")
        if not self._tty or (done < total and now - self._shown < 0.1):
            return
        self._shown = now
        rate = done / max(now - self._start, 1e-3)
        filled = self._WIDTH * done // max(total, 1)
        bar = "#" * filled + "." * (self._WIDTH - filled)
        percent = 100 * done // max(total, 1)
        text = f"\r{name[:24]:24} [{bar}] {percent:3d} % of {format_size(total)}, {format_size(int(rate))}/s"
        print(f"{text:<78}", end="\n" if done >= total else "", file=sys.stderr, flush=True)


class StepProgress:
    """What a long job is doing: each step with the time it took; on standard error."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._text = ""
        self._start = self._first = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first step."""
        return time.monotonic() - self._first

    def begin(self, text: str) -> None:
        """The step before is over, ``text`` begins."""
        self.finish()
        self._text, self._start = text, time.monotonic()
        if self._tty:
            print(f"{text} ...", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """The last step is over."""
        if self._text:
            took = time.monotonic() - self._start
            line = f"{self._text} ({took:.1f} s)"
            print(f"\r\033[K{line}" if self._tty else f"pvc: {line}", file=sys.stderr, flush=True)
        self._text = ""


def format_size(count: int) -> str:
    """Bytes for people: "391M", "8.0G"."""
    value = float(count)
    for unit in ("B", "K", "M", "G"):
        if value < 1000:
            return f"{value:.0f}{unit}" if value >= 10 or unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}T"


def _open_repositories() -> Repositories:
    from pvc.config.load import find_site_dir, find_user_dir, load_repositories
    from pvc.images.repository import Repositories

    return Repositories(load_repositories(find_site_dir(), find_user_dir()))


def _find_user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _one_line(text: str, option: str) -> str:
    if not text.isprintable():
        raise UsageError(f"{option} must be one printable line")
    return text


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _describe(found: FoundImage) -> str:
    return (
        f"{found.image.format.value}, a disk of {format_size(found.image.size)}, "
        f"{format_size(found.image.stored_size)} stored"
    )


def _to_data(found: FoundImage) -> dict[str, Any]:
    from pvc.codec import to_data

    data: dict[str, Any] = to_data(found.image)
    return {"repository": found.repository, "uri": found.uri} | data


def _list_files(repositories: Repositories, found: FoundImage) -> dict[str, str]:
    store = repositories.store(found.repository)
    blobs = {"disk": found.image.disk, "kernel": found.image.kernel, "initrd": found.image.initrd}
    return {kind: str(store.blob_path(blob)) for kind, blob in blobs.items() if blob is not None}


def _print_image(repositories: Repositories, found: FoundImage) -> None:
    data = found.image
    revisions = repositories.store(found.repository).list_revisions().get(data.name, [])
    rows = [
        ("image", found.uri),
        ("description", data.description or "-"),
        ("revisions", ", ".join(map(str, revisions))),
        ("created", f"{_format_time(data.created)} by {data.owner or '-'}"),
        ("disk", f"{format_size(data.size)}, {data.format.value}, sha256 {data.disk.sha256}"),
        ("stored", format_size(data.stored_size)),
        ("boots", "directly" if data.kernel else "by the disk's boot loader"),
    ]
    if data.kernel:
        rows.append(("append", data.append))
    rows += [(key, value) for key, value in sorted(data.hints.items())]
    rows += [(f"{kind} file", path) for kind, path in _list_files(repositories, found).items()]
    for key, value in rows:
        click.echo(f"{key:12} {value}")
