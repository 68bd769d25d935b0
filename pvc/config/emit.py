# SPDX-License-Identifier: Apache-2.0
"""Configuration as YAML text, with comments at its keys: what ``yamlmarks`` reads back as the same data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pvc.config.yamlmarks import KeyPath

Comments = Mapping[KeyPath, list[str]]
_WIDTH = 118


class Written(str):
    """A number, as it is written: 22.10 is the name of a release, and 0x10 somebody's choice."""


def emit(data: Any, comments: Comments) -> str:
    """The document; ``comments`` stand above the keys or list items of their paths, those of () on top."""
    lines = [*_comment(comments.get((), ()), "")]
    if data is not None:
        lines += _emit(data, (), "", comments)
    return "\n".join(lines) + "\n"


def _emit(value: Any, path: KeyPath, indent: str, comments: Comments) -> Iterator[str]:
    """A mapping or list that is not empty in lines of its own, anything else in one."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _comment(comments.get((*path, key), ()), indent)
            yield from _entry(f"{indent}{_plain(key)}:", item, (*path, key), indent, comments)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _comment(comments.get((*path, index), ()), indent)
            yield from _item(item, (*path, index), indent, comments)
    else:
        yield from _entry("", value, path, indent, comments)


def _entry(head: str, value: Any, path: KeyPath, indent: str, comments: Comments) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield head
        yield from _emit(value, path, f"{indent}  ", comments)
    elif value is None:
        yield head or f"{indent}null"
    else:
        first, *rest = _scalar(value, indent)
        yield f"{head} {first}" if head else f"{indent}{first}"
        yield from rest


def _item(value: Any, path: KeyPath, indent: str, comments: Comments) -> Iterator[str]:
    if not isinstance(value, dict | list) or not value:
        first, *rest = _scalar(value, indent)
        yield f"{indent}- {first}"
        yield from rest
        return
    inner = f"{indent}  "
    # A comment may stand between the dash and the first key.
    lines = list(_emit(value, path, inner, comments))
    if lines[0].lstrip().startswith("#"):
        yield f"{indent}-"
        yield from lines
    else:
        yield f"{indent}- {lines[0][len(inner) :]}"
        yield from lines[1:]


def _scalar(value: Any, indent: str) -> list[str]:
    if isinstance(value, Written):
        return [str(value)]
    if value is None or isinstance(value, bool):
        return [{None: "null", True: "yes", False: "no"}[value]]
    if isinstance(value, dict | list):
        return ["{}" if isinstance(value, dict) else "[]"]
    if isinstance(value, str) and "\n" in value:
        return _block(value, indent)
    return [_plain(value)]


def _block(text: str, indent: str) -> list[str]:
    """A text of several lines as it is, where YAML lets it be; else in quotes."""
    body = text.split("\n")
    plain = all(line.isprintable() for line in body) and not text.startswith((" ", "\n"))
    if not plain or not text.endswith("\n") or text.endswith("\n\n"):
        return [_plain(text)]
    return ["|", *(f"{indent}  {line}" if line else "" for line in body[:-1])]


def _plain(value: Any) -> str:
    import yaml

    # In other quotes a line's end is a line's end, and a key has one line.
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text: str = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, width=float("inf"), allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(texts: list[str] | tuple[str, ...], indent: str) -> Iterator[str]:
    from textwrap import wrap

    for text in texts:
        if text.startswith("pvc "):  # a command to be copied
            yield f"{indent}# {text}"
            continue
        for line in wrap(text, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False) or [""]:
            yield f"{indent}# {line}".rstrip()
