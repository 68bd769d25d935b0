# SPDX-License-Identifier: Apache-2.0
"""Answers the shells' questions for completions; see ``pvc completion`` for the shells' side.

The shell puts the line up to the cursor into COMP_LINE and starts ``pvc`` with PVC_COMPLETE=bash, zsh or fish. The
answer has a line for each proposal: its kind, the word, and perhaps what it is, with tabs between. Whatever goes wrong,
the answer is empty: a prompt is no place for errors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from pvc.texts import clean_text

VARIABLE, LINE = "PVC_COMPLETE", "COMP_LINE"
_MOST = 2000
Lister = Callable[[click.Context, str], Iterable[CompletionItem[str]]]


def answer(group: click.Group, helps: Mapping[str, str], shell: str, line: str) -> str:
    """The proposals for the last word of ``line``; ``helps``: the commands of ``group``, without importing them."""
    words, incomplete = split_line(line)
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None and not incomplete.startswith("-"):
        found: Iterable[CompletionItem[str]] = [
            CompletionItem(key, help=text) for key, text in helps.items() if key.startswith(incomplete)
        ]
    else:
        command = group.get_command(click.Context(group), name) if name else None
        if name and command is None:
            return ""
        if command is not None:
            _attach(command, (name or "",))
        found = ShellComplete(group, {}, "pvc", VARIABLE).get_completions(words, incomplete)
    return "".join(_format(item, shell, incomplete) for item in list(found)[:_MOST])


def split_line(line: str) -> tuple[list[str], str]:
    """The words after ``pvc``, and the one that is being typed."""
    words = split_arg_string(line)
    incomplete = words.pop() if words and not line[-1:].isspace() else ""
    # The command may come after others, as in "time pvc".
    start = next((index for index, word in enumerate(words) if os.path.basename(word) == "pvc"), 0)
    return words[start + 1 :], incomplete


def _format(item: CompletionItem[str], shell: str, incomplete: str) -> str:
    value = item.value
    if shell == "bash":
        # COMP_WORDBREAKS: to bash, the word begins after these
        cut = max(incomplete.rfind(sign) for sign in ":=@") + 1
        value = value[cut:] if value.startswith(incomplete[:cut]) else value
    if not {"\t", "\r", "\n"}.isdisjoint(value):
        return ""  # no line of an answer can say it
    kind = "open" if item.type == "plain" and value.endswith((":", "=", "/")) else item.type
    if any(sign in value for sign in "\t\n\r\0"):
        return ""  # a word that this answer has no form for
    # The value goes into the line that is typed, with its user's own bytes; the help is only shown.
    return "\t".join([kind, value, *([clean_text(" ".join(item.help.split()))] if item.help else [])]) + "\n"


class _Live(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """A parameter's own type, with what exists now as proposals."""

    def __init__(self, inner: click.ParamType[Any], lister: Lister) -> None:
        self.name = inner.name
        self.inner, self._lister = inner, lister

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.inner.convert(value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        del param  # it is the one that this type was made for
        return [
            item for item in self._lister(ctx, incomplete) if item.type in ("file", "dir") or _fits(item, incomplete)
        ]


def _fits(item: CompletionItem[str], incomplete: str) -> bool:
    return str(item.value).startswith(incomplete)


def _attach(command: click.Command, path: tuple[str, ...]) -> None:
    """Give the parameters of a command, and of commands in it, what they propose."""
    for param in command.params:
        keys = (f"{'.'.join(path)}.{param.name}", param.metavar or "", param.name or "")
        lister = next((LISTERS[key] for key in keys if key in LISTERS), None)
        if lister is not None and not isinstance(param.type, _Live):
            param.type = _Live(param.type, lister)
    for name, child in getattr(command, "commands", {}).items():
        _attach(child, (*path, name))


def _clusters(ctx: click.Context) -> Iterator[Any]:
    """Records of the caller's clusters; of those that the line chooses, or that surround it, if there are such."""
    from pvc.errors import PvcError
    from pvc.ops.jobdir import list_job_dirs

    wanted = ctx.params.get("job_id")
    if wanted is None and ctx.params.get("job_name") is None and os.environ.get("SLURM_JOB_ID", "").isdecimal():
        wanted = int(os.environ["SLURM_JOB_ID"])
    for jobdir in list_job_dirs():
        try:
            record = jobdir.read_record()
        except PvcError:
            continue  # it begins or ends just now
        if wanted in (None, record.job_id, *record.jobs) and ctx.params.get("job_name") in (None, record.name):
            yield record


def _jobs(ctx: click.Context, _: str) -> Iterator[CompletionItem[str]]:
    ctx.params.pop("job_id", None)
    return (CompletionItem(str(each.job_id), help=f"{each.name}: {each.definition}") for each in _clusters(ctx))


def _names(ctx: click.Context, _: str) -> Iterator[CompletionItem[str]]:
    ctx.params.pop("job_name", None)
    return (CompletionItem(each.name, help=f"{each.job_id}: {each.definition}") for each in _clusters(ctx))


def _vms(ctx: click.Context, _: str) -> Iterator[CompletionItem[str]]:
    given = {word for value in ctx.params.values() if isinstance(value, tuple) for word in value}
    seen: dict[str, str] = {}
    for record in _clusters(ctx):
        for group in record.groups:
            for rank in range(group.first_rank, group.first_rank + group.count):
                seen.setdefault(f"vm{rank}", group.template)
    return (CompletionItem(name, help=template) for name, template in seen.items() if name not in given)


def _hosts(ctx: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    """VMs, perhaps after a user, as the first word that is no option; later words are the guest's."""
    words = ctx.params.get("words") or ()
    if any(not word.startswith("-") for word in words):
        return iter(())
    user, at, _ = incomplete.rpartition("@")
    return (CompletionItem(f"{user}{at}{item.value}", help=item.help) for item in _vms(ctx, ""))


def _places(ctx: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    """Local files, and VMs before a colon."""
    if ":" not in incomplete:
        user, at, _ = incomplete.rpartition("@")
        yield from (CompletionItem(f"{user}{at}{item.value}:", help=item.help) for item in _vms(ctx, ""))
        yield CompletionItem(incomplete, type="file")


def _templates(_: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    from pvc.config.load import load_user_config
    from pvc.ops.definition import list_templates

    before, comma, _word = incomplete.rpartition(",")
    for each in list_templates(load_user_config()):
        # A count may follow, or another template
        yield CompletionItem(f"{before}{comma}{each.name}", "open", each.description or each.image or None)


def _definitions_or_vms(ctx: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    yield from _vms(ctx, incomplete)
    if not ctx.params.get("words"):
        yield from _templates(ctx, incomplete)


def _images(_: click.Context, incomplete: str) -> Iterator[CompletionItem[str]]:
    from pvc.config.load import find_site_dir, find_user_dir, load_repositories
    from pvc.images.repository import Repositories

    before, equals, _word = incomplete.rpartition("=")
    for found in Repositories(load_repositories(find_site_dir(), find_user_dir())).list():
        short, full = found.image.name, found.uri
        for name in dict.fromkeys((short, full) if ":" in incomplete else (short,)):
            yield CompletionItem(f"{before}{equals}{name}", help=full)


def _repositories(_: click.Context, __: str) -> Iterator[CompletionItem[str]]:
    from pvc.config.load import find_site_dir, find_user_dir, load_repositories

    return (CompletionItem(each.name, help=each.path) for each in load_repositories(find_site_dir(), find_user_dir()))


def _resource_sets(_: click.Context, __: str) -> Iterator[CompletionItem[str]]:
    from pvc.config.load import load_user_config

    return (CompletionItem(name) for name in load_user_config().resource_sets)


def _files(_: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    return [CompletionItem(incomplete, type="file")]


def _shell_words(ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
    return [] if incomplete.startswith("-") else _files(ctx, incomplete)


# By "COMMAND.PARAMETER", or by a parameter's metavar or name wherever it is.
LISTERS: dict[str, Lister] = {
    "[IMAGE]...": _images,
    "[REPOSITORY]...": _repositories,
    "[TEMPLATE=]IMAGE": _images,
    "IMAGE": _images,
    "arguments": _shell_words,
    "cp.words": _places,
    "definition": _templates,
    "job_id": _jobs,
    "job_name": _names,
    "places": _places,
    "repository": _repositories,
    "resource_set": _resource_sets,
    "save.image": _images,
    "scp.words": _places,
    "script": _files,
    "ssh.words": _hosts,
    "start.words": _definitions_or_vms,
    "template.show.name": _templates,
    "user_data": _files,
    "vm": _vms,
    "vms": _vms,
}


def main(group: click.Group, helps: Mapping[str, str], shell: str) -> int:
    """Answer the question in the environment, and nothing else; returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        sys.stdout.buffer.write(os.fsencode(answer(group, helps, shell, os.environ.get(LINE, ""))))
        sys.stdout.buffer.flush()
    except Exception:  # noqa: BLE001  nothing of it may reach the line that is being typed
        return 1
    return 0
