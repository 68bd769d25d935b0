# SPDX-License-Identifier: Apache-2.0
"""pvc mandoc: the parts of the manual that come from the code.

Options come from the commands themselves and keys from the tables that read the files, so the manual cannot
say anything else. A test compares man/gen/ with what this writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from pvc.cli import main
from pvc.cli.main import COMMANDS
from pvc.config import batch, disks, drives, hooks, hostnetworks, mounts, networks, repos, resources, templates
from pvc.config.setting import Table

# file -> (heading, table) in order; the headings are those of sections of the page.
FILES: dict[str, list[tuple[str, Table]]] = {
    "batch": [("Keys of the file", batch.FILE), ("Keys of settings", batch.SETTINGS)],
    "networks": [
        ("Keys of a network", networks.ENTRY),
        ("Keys of settings: ethernet", networks.ETHERNET),
        ("Keys of reverse-nat", networks.REVERSE_NAT),
        ("Keys of settings: bridged", hostnetworks.BRIDGED),
        ("Keys of vlans", hostnetworks.VLAN),
        ("Keys of settings: genericpci", hostnetworks.GENERIC_PCI),
    ],
    "resources": [("Keys of a resource set", resources.ENTRY)],
    "templates": [
        ("Keys of a template", templates.ENTRY),
        ("Keys of disks", disks.DISK),
        ("Keys of persistent-drives", drives.ENTRY),
        ("Keys of mount-points", mounts.ENTRY),
        ("Keys of hooks", hooks.HOOKS),
    ],
    "repos": [("Keys of the file", repos.FILE), ("Keys of a repository", repos.ENTRY)],
}
NOTE = ".. Written by `pvc mandoc`: change the code instead.\n"
_MARKUP = re.compile(r"([\\*`|]|(?<=\w)_(?!\w))")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def mandoc(directory: Path) -> None:
    """Write the generated parts of the man pages into DIRECTORY."""
    directory.mkdir(parents=True, exist_ok=True)
    pages = generate()
    for path in directory.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (directory / name).write_text(text, encoding="utf-8")


def generate() -> dict[str, str]:
    """File name -> content of everything in man/gen/."""
    root = click.Context(main.command_line, info_name="pvc", **main.command_line.context_settings)
    pages = {"pvc.rst": _page([*_heading("OPTIONS", "="), *_options(root), *_command_list()])}
    for name, command in public_commands():
        pages[f"pvc-{name}.rst"] = _page(_describe(command, name, root))
    pages["pvc-node.rst"] = _page(_describe(find_node_command(), "pvc-node", None))
    for name, tables in FILES.items():
        pages[f"{name}.yaml.rst"] = _page(
            [line for heading, table in tables for line in (*_heading(heading, "-"), *_keys(table))]
        )
    return pages


def public_commands() -> Iterator[tuple[str, click.Command]]:
    """The commands that ``pvc --help`` lists."""
    group = main.command_line
    ctx = click.Context(group, info_name="pvc")
    for name, entry in COMMANDS.items():
        if entry.section:
            command = group.get_command(ctx, name)
            assert command is not None
            yield name, command


def find_node_command() -> click.Group:
    """The command pvc-node."""
    from pvc.cli.node import cli

    return cli


def _page(lines: Iterable[str]) -> str:
    return NOTE + "\n" + "\n".join(lines)


def _heading(text: str, ruler: str) -> list[str]:
    return [text, ruler * len(text), ""]


def _command_list() -> Iterator[str]:
    yield from _heading("COMMANDS", "=")
    section = ""
    for name, entry in COMMANDS.items():
        if not entry.section:
            continue
        if entry.section != section:
            section = entry.section
            yield from _heading(section, "-")
        yield f"**pvc-{name}**\\ (1)\n    {escape(entry.help)}\n"


def _describe(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    """Usage, text and options of a command, and of its subcommands if it has some."""
    ctx = click.Context(command, info_name=name, parent=parent, **(command.context_settings if parent is None else {}))
    path = ctx.command_path
    if not isinstance(command, click.Group):
        yield from _heading("SYNOPSIS", "=")
        yield from _usage(ctx)
        yield from _heading("DESCRIPTION", "=")
        yield from _paragraphs(command.help or "")
        yield from _heading("OPTIONS", "=")
        yield from _options(ctx)
        return
    yield from _heading("DESCRIPTION", "=")
    yield from _paragraphs(command.help or "")
    if len(command.params) > 0:
        yield from _heading("OPTIONS", "=")
        yield from _options(ctx)
    yield from _heading("COMMANDS", "=")
    for child_name, child in command.commands.items():
        if not child.hidden:
            inner = click.Context(child, info_name=child_name, parent=ctx)
            yield from _heading(f"{path} {child_name}", "-")
            yield from _usage(inner)
            yield from _paragraphs(child.help or "")
            yield from _options(inner)


def _usage(ctx: click.Context) -> Iterator[str]:
    usage = " ".join(escape(piece) for piece in ctx.command.collect_usage_pieces(ctx))
    yield f"**{ctx.command_path}** {usage}\n"


def _options(ctx: click.Context) -> Iterator[str]:
    for param in ctx.command.get_params(ctx):
        if not isinstance(param, click.Option) or param.hidden:
            continue
        names = ", ".join(f"``{name}``" for name in (*param.opts, *param.secondary_opts))
        if not param.is_flag and not param.count:
            metavar = param.make_metavar(ctx)
            names += f" *{escape('N' if metavar.startswith('INTEGER') else metavar)}*"
        text = escape(param.help or "").rstrip(".")
        if param.show_default and param.default is not None:
            text = f"{text} (default: {escape(str(param.default))})".strip()
        yield f"{names}\n    {text}.\n"


def _paragraphs(text: str) -> Iterator[str]:
    """Click's help text: paragraphs, those after a backspace with their lines as they are."""
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text).split("\f", maxsplit=1)[0]):
        if part.startswith("\b"):
            yield "::\n\n" + "\n".join(f"    {line}" for line in part.split("\n")[1:]) + "\n"
        elif part.strip():
            yield escape(" ".join(part.split())) + "\n"


def _keys(table: Table) -> Iterator[str]:
    for setting in table.settings:
        default = setting.default_text
        if not default and setting.default not in (None, [], {}):
            # 0 and 1 are equal to no and yes, but not the same.
            value = ("no", "yes")[setting.default] if isinstance(setting.default, bool) else setting.default
            default = f"``{value}``"
        facts = "required" if setting.required else f"default: {default}" if default else ""
        after = f" ({facts})" if facts else ""
        yield f"``{setting.key}``: {escape(setting.kind.name)}{after}\n    {setting.help}\n"
    if table.idle:
        yield "Keys of pcocc's that have no effect, of which **pvc config check** warns:\n"
    for key, reason in table.idle.items():
        yield f"``{key}``\n    {reason[0].upper()}{reason[1:]}.\n"


def escape(text: str) -> str:
    """Text that reStructuredText takes for text."""
    return _MARKUP.sub(r"\\\1", text)
