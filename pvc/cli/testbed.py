# SPDX-License-Identifier: Apache-2.0
"""``pvc testbed``: a real Slurm cluster in namespaces of this machine."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from pvc.cli import output
from pvc.cli.options import json_option

if TYPE_CHECKING:
    from pathlib import Path

    from pvc.testbed.place import Place

NAME = click.option("--name", default="default", show_default=True, metavar="NAME", help="Which testbed.")


@click.group()
def testbed() -> None:
    """Run a Slurm cluster in namespaces on this machine.

    Everything is real and comes from Debian's packages: munge, slurmctld, slurmd, etcd and Open vSwitch, each node
    in namespaces of its own. Nothing of the machine is changed, and "down" leaves nothing.
    """


@testbed.command()
@NAME
@click.option("--nodes", default=3, show_default=True, metavar="N", type=click.IntRange(1, 250), help="Compute nodes.")
@click.option(
    "--images",
    is_flag=False,
    flag_value="debian",
    metavar="RECIPE,…",
    help="Also build images of these recipes into the site's repository; alone: debian.",
)
@click.option("--os", "suite", default="", metavar="SUITE", help="The nodes run this Debian release: trixie or sid.")
@click.option("--no-plugin", is_flag=True, help="Do not load the SPANK plug-in.")
@click.option("--no-daemon", is_flag=True, help="Do not run pvc-node's daemon: prologs start it each time.")
def up(name: str, nodes: int, images: str | None, suite: str, no_plugin: bool, no_daemon: bool) -> None:
    """Start a testbed; a running one is left as it is."""
    from pvc.testbed import lifecycle
    from pvc.testbed.images import find_recipes
    from pvc.testbed.model import TestbedSpec
    from pvc.testbed.place import find_place

    began = time.monotonic()
    recipes = find_recipes(images.split(",")) if images else ()
    spec = TestbedSpec(name, nodes, plugin=not no_plugin, daemon=not no_daemon, os=suite)
    place = find_place(name)
    changed = lifecycle.up(place, spec, _tell)
    took = f" in {time.monotonic() - began:.1f} s" if changed else " already"
    output.say(f"testbed {name!r} is up{took}: {lifecycle.describe(spec)}", error=True)
    for recipe in recipes:
        _ensure_image(place, recipe)


@testbed.command(epilog="Example: pvc testbed build ./mine.yaml")
@NAME
@click.argument("recipe")
def build(name: str, recipe: str) -> None:
    """Build an image into the repository of a testbed's site.

    RECIPE is as for "pvc image build": one of pvc's own, or a YAML file. It is built by this machine, since the nodes
    have no way to a mirror, and what was built once is kept for other testbeds. The image that a recipe is "from"
    must be in that repository.
    """
    from pvc.testbed.images import find_recipes
    from pvc.testbed.place import find_place

    for path in find_recipes([recipe]):
        _ensure_image(find_place(name), path)


def _ensure_image(place: Place, recipe: Path) -> None:
    from pvc.testbed.images import ensure_image

    began = time.monotonic()
    found, new = ensure_image(place, recipe, _tell)
    took = f" after {time.monotonic() - began:.1f} s" if new else " already"
    output.say(f"image {found.image.name!r} is there{took}", error=True)


def _tell(text: str) -> None:
    output.say(f"  {text}", error=True)


@testbed.command()
@NAME
def down(name: str) -> None:
    """Stop a testbed and remove everything of it."""
    from pvc.testbed import lifecycle
    from pvc.testbed.place import find_place

    gone = lifecycle.down(find_place(name))
    output.say(f"testbed {name!r} is {'gone' if gone else 'not there'}", error=True)


@testbed.command()
@NAME
@json_option
@click.pass_context
def status(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show a testbed's nodes; exit code 1 when there is no testbed of this name."""
    from pvc.testbed import lifecycle
    from pvc.testbed.place import find_place

    found = lifecycle.read_status(find_place(name))
    if as_json:
        output.print_json(found)
    elif found is None:
        output.print_note(f"testbed {name!r} is not there")
    else:
        rows = [(node.name, node.address, "down" if node.pid is None else "up", node.pid) for node in found.nodes]
        output.print_table(("NODE", "ADDRESS", "STATE", "PID"), rows)
    ctx.exit(0 if found is not None else 1)


@testbed.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@NAME
@click.option("--node", default="login", show_default=True, metavar="NODE", help="Where.")
@click.option("--user", default="student", show_default=True, metavar="USER", help="As whom.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(ctx: click.Context, name: str, node: str, user: str, command: tuple[str, ...]) -> None:
    """Run a command in a node; the exit code is the command's."""
    from pvc.testbed import enter, lifecycle
    from pvc.testbed.place import find_place

    place = find_place(name)
    pid = lifecycle.require_node(place, node)
    sys.stdout.flush()
    ctx.exit(enter.execute(enter.read_plan(place.state_dir, node), pid, command, user=user, extra_env={}))


@testbed.command()
@NAME
@click.argument("node")
def crash(name: str, node: str) -> None:
    """Cut a node's power: everything in it is gone at once."""
    from pvc.testbed import lifecycle
    from pvc.testbed.place import find_place

    lifecycle.crash(find_place(name), node)


@testbed.command()
@NAME
@click.argument("node")
def boot(name: str, node: str) -> None:
    """Start a crashed node again, with its disk as it was."""
    from pvc.testbed import lifecycle
    from pvc.testbed.place import find_place

    lifecycle.boot(find_place(name), node)
