# SPDX-License-Identifier: Apache-2.0
"""pvc save: a VM's disk as an image."""

from __future__ import annotations

import click

from pvc.cli import output
from pvc.cli.options import cluster_options, json_option


@click.command(epilog="Example: pvc save vm0 debian-with-my-tools")
@click.argument("vm")
@click.argument("image", required=False)
@click.option(
    "-d", "--disk", metavar="N", type=click.IntRange(min=0), default=0, help="The disk. Default: 0, the image's."
)
@click.option("--full", is_flag=True, help="Save all of the disk, as an image that needs no other one's data.")
@click.option("--speed", metavar="SIZE", help="Copy at most so many bytes a second, such as 50M. Default: no limit.")
@cluster_options
@json_option
def save(
    vm: str,
    image: str | None,
    disk: int,
    full: bool,
    speed: str | None,
    job_id: int | None,
    job_name: str | None,
    as_json: bool,
) -> None:
    """Save a disk of the running VM as IMAGE ([REPOSITORY:]NAME), or as the next revision of what VM started from.

    The guest goes on; what it writes from now on is not in the image. Only what has changed since VM started is
    written: the rest is shared with the image that it started from.
    """
    from pvc.cli.image import describe
    from pvc.cli.progress import CopyProgress
    from pvc.cli.repo import find_user, open_repositories
    from pvc.cli.vm import find_control, only_one
    from pvc.ops.save import Wish
    from pvc.ops.save import save as save_disk
    from pvc.ops.status import find_endpoint, parse_vms

    control = find_control(job_id, job_name)
    (rank,) = only_one(parse_vms([vm], control.record.placement.count), vm)
    wish = Wish(vm, rank, disk, image, full, _parse_speed(speed))
    endpoint = find_endpoint(control.record, rank)
    repositories = open_repositories()
    done = save_disk(control, endpoint, wish, repositories, find_user(), CopyProgress("saving"))
    if done.flattened:
        output.print_note("it rested on many images already, so all of the disk was saved")
    if done.frozen:
        output.print_note(f"the file systems of {vm} were frozen at that moment")
    else:
        output.print_note(
            f"the file systems of {vm} were not frozen, for no agent answers in it: what it had not written to its "
            "disk is not in the image (run sync in the guest before)"
        )
    if as_json:
        output.print_json({"uri": done.found.uri, "frozen": done.frozen, "image": done.found.image})
    else:
        output.say(f"saved {vm} as {done.found.uri}: {describe(done.found, repositories)}")


def _parse_speed(text: str | None) -> int:
    from pvc.errors import UsageError
    from pvc.parse import parse_size

    try:
        return parse_size(text) if text else 0
    except ValueError as err:
        raise UsageError(f"--speed: {err}") from None
