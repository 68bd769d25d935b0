# SPDX-License-Identifier: Apache-2.0
"""An option of one name is one thing in all commands: its type, its word for a value, its help and its letter."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pvc.cli.main import command_line

# What may differ of a name that several commands have, and why.
DIFFERS = {
    "--all": ({"help"}, "of what it is all: clusters of users, or revisions that are deleted, exported or listed"),
    "--format": ({"help", "type"}, "of the file that a command reads (a disk) or writes (a dump)"),
    "--job": ({"help"}, "what a command does with a cluster that can do without one"),
    "--list": ({"help"}, "of what it is a list: detached commands, forwards"),
    "--name": ({"help"}, "whose: a new job's, a running cluster's, a built image's, a testbed's"),
    "--node": ({"help", "type", "metavar"}, "this machine as one (doctor), and one of a testbed's"),
    "--nodes": ({"help", "type"}, "how many: as Slurm takes it (2-4), or of a testbed"),
    "--print": ({"help"}, "in place of what: a file that is written, a viewer that is opened"),
    "--timeout": ({"help"}, "of what: waiting is given up, a command is ended"),
    "--user": ({"help"}, "whose: the guest's, of an image as its maker says, of a testbed's node"),
    "--wait": ({"help"}, "alloc has a default of its own, and --no-wait"),
}


def list_options(command: click.Command, name: str, ctx: click.Context) -> Iterator[tuple[str, click.Option]]:
    """All that are in the manual, with their command."""
    if isinstance(command, click.Group):
        for word in command.list_commands(ctx):
            below = command.get_command(ctx, word)
            assert below is not None
            if not below.hidden:
                yield from list_options(below, f"{name} {word}", click.Context(below, parent=ctx, info_name=word))
    for param in command.params:
        if isinstance(param, click.Option) and not param.hidden:
            yield name, param


def describe_type(kind: click.ParamType) -> str:
    """A type as a word, with its limits; what completion proposes for it is no part of it."""
    kind = getattr(kind, "inner", kind)
    if isinstance(kind, click.types.FuncParamType):
        return kind.func.__name__
    return f"{type(kind).__name__} {kind.to_info_dict()}"


def find_differences(pairs: list[tuple[str, click.Option]]) -> dict[str, dict[str, list[str]]]:
    """For each name of several commands: what differs between them, with each form and whose it is."""
    forms: dict[str, dict[str, dict[str, list[str]]]] = {}
    for command, option in pairs:
        for name in (word for word in option.opts if word.startswith("--")):
            letters = [word for word in option.opts if not word.startswith("--")]
            parts = {
                "type": f"{describe_type(option.type)} flag={option.is_flag} multiple={option.multiple}",
                "metavar": str(option.metavar),
                "help": str(option.help),
                # None is no other letter.
                **({"letter": letters[0]} if letters else {}),
            }
            for part, text in parts.items():
                forms.setdefault(name, {}).setdefault(part, {}).setdefault(text, []).append(command)
    return {
        name: found
        for name, each in forms.items()
        if (found := {part: [f"{text}: {who}" for text, who in by.items()] for part, by in each.items() if len(by) > 1})
    }


def test_the_same_name_is_the_same_thing() -> None:
    pairs = list(list_options(command_line, "pvc", click.Context(command_line)))
    assert len(pairs) > 150
    found = find_differences(pairs)
    allowed = {name: parts for name, (parts, _) in DIFFERS.items()}
    wrong = {
        f"{name} {part}": texts
        for name, parts in found.items()
        for part, texts in parts.items()
        if part not in allowed.get(name, set())
    }
    assert not wrong
    # No reason outlives its difference.
    assert {name: set(found.get(name, {})) for name in allowed} == allowed


def test_what_differs_is_found() -> None:
    one = click.Option(["-x", "--same"], metavar="FILE", help="One.")
    for other in (
        click.Option(["-x", "--same"], metavar="FILE", help="Other."),
        click.Option(["-x", "--same"], metavar="PATH", help="One."),
        click.Option(["-x", "--same"], metavar="FILE", help="One.", type=int),
        click.Option(["-y", "--same"], metavar="FILE", help="One."),
        click.Option(["-x", "--same"], metavar="FILE", help="One.", multiple=True),
    ):
        assert len(find_differences([("a", one), ("b", other)])["--same"]) == 1
    assert not find_differences([("a", one), ("b", click.Option(["--same"], metavar="FILE", help="One."))])
