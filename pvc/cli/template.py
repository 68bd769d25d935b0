# SPDX-License-Identifier: Apache-2.0
"""pvc template: kinds of VMs, and where each of their keys has its value from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from pvc.cli import output
from pvc.cli.config import print_warnings
from pvc.cli.options import json_option
from pvc.config import load
from pvc.errors import ConfigError, Problem
from pvc.model.site import KeyOrigin, SiteConfig, Template
from pvc.model.vm import NO_HOOKS, Hooks

_LONGEST = 60


@click.group()
def template() -> None:
    """Look at templates: what a definition may name, what each key of one is, and why."""


@template.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List templates: the site's, your own, and images, each of which is a template by itself."""
    from pvc.ops.definition import list_templates

    found = list_templates(load.load_user_config())
    if as_json:
        output.print_json([_summary(each) for each in found])
        return
    if not found:
        output.print_note("there are no templates, and no image that could be one")
        return
    rows = [[each.name, each.image, each.resource_set, each.source, each.description or None] for each in found]
    output.print_table(["TEMPLATE", "IMAGE", "RESOURCE-SET", "SOURCE", "DESCRIPTION"], rows)


@template.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show each key of the template NAME with its value and where that is from.

    That is a file and line, with the template that it is inherited from if it is; the default; or the image.
    """
    from pvc.ops.definition import find_template

    found = find_template(name, load.load_user_config())
    if as_json:
        output.print_json({"name": found.name, "source": found.source, "keys": [_data(each) for each in found.origins]})
        return
    output.say(f"{found.name}: {found.source}")
    rows = [[each.key, _short(each.value), _place(each)] for each in found.origins]
    output.print_table(["KEY", "VALUE", "FROM"], rows)


@template.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@json_option
def check(file: Path | None, as_json: bool) -> None:
    """Report all that is wrong with templates, with file and line; exit code 3 when something is.

    FILE is checked as if its templates were in ~/.pvc/templates.d. Without one all templates are checked. Beyond what
    pvc config check reports, every image must be there.
    """
    from pvc.ops.definition import find_image_problems
    from pvc.ops.userdata import warn_of_schema

    path = None if file is None else Path(os.path.abspath(file))
    found: SiteConfig | None = None
    try:
        found = load.load_config(load.find_site_dir(), load.find_user_dir(), extra=path)
        problems: tuple[Problem, ...] = tuple(find_image_problems(found, None if path is None else os.fspath(path)))
    except ConfigError as err:
        problems = err.problems
    warnings = () if found is None else found.warnings
    if as_json:
        output.print_json({"problems": problems, "warnings": warnings})
        if problems:
            raise SystemExit(ConfigError.exit_code)
    elif problems:
        raise ConfigError(problems)
    elif found is not None:
        output.say(f"{len(found.templates)} templates, no problems")
    if found is not None and not as_json:
        print_warnings(found)
        warn_of_schema(found.templates.values())


def _summary(item: Template) -> dict[str, object]:
    return {
        "name": item.name,
        "image": item.image,
        "resource_set": item.resource_set,
        "source": item.source,
        "description": item.description,
    }


def _data(origin: KeyOrigin) -> dict[str, Any]:
    return {
        "key": origin.key,
        "value": origin.value,
        "source": origin.source or "default",
        "inherited_from": origin.template or None,
    }


def _place(origin: KeyOrigin) -> str:
    if not origin.source:
        return "default"
    return f"{origin.source} (inherited from {origin.template})" if origin.template else origin.source


def _short(value: Any) -> str | None:
    """A value in one cell of a table."""
    if value is None or value in ((), NO_HOOKS):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Hooks):
        value = [f"{name}: {' '.join(words)}" for name, words in value.commands.items() if words]
    if not isinstance(value, str | int):
        import json

        from pvc.codec import to_data

        value = ", ".join(each if isinstance(each, str) else json.dumps(to_data(each)) for each in value)
    text = str(value)
    lines = text.strip().splitlines()
    if len(lines) > 1:
        return f"{lines[0]} … ({len(lines)} lines)"
    return text.strip() if len(text) <= _LONGEST else text[:_LONGEST] + "…"
