# SPDX-License-Identifier: Apache-2.0
"""YAML to plain data that remembers on which line each key stands.

A stricter reading than YAML 1.1 asks for, because configuration should mean what it looks like: keys are
text, a key given twice is a problem, "52:54:00" is text (YAML 1.1: a number of base 60), and so are dates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pvc.errors import Problem

KeyPath = tuple[str | int, ...]
MAX_BYTES = 4 << 20
# Anchors can be nested so that few lines mean billions of values.
MAX_NODES = 200_000
MAX_DEPTH = 50
_MAX_DIGITS = 100
_MERGE = "tag:yaml.org,2002:merge"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FALSE, _TRUE = {"no", "false", "off"}, {"yes", "true", "on"}


@dataclass
class Document:
    """The content of one file: ``lines`` maps the path of a key or list item to its line, 1-based.

    ``written`` is how numbers are written, by their paths: 22.10 is the name of a release, too.
    """

    file: str
    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def line(self, path: KeyPath) -> int:
        """The line of ``path``, or of the nearest thing around it; 0 for the whole file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def add(self, path: KeyPath, text: str) -> None:
        """Note a problem with the value at ``path``."""
        self.problems.append(Problem(self.file, self.line(path), format_path(path), text))

    def warn(self, path: KeyPath, text: str) -> None:
        """Note what its author should know of the value at ``path``, which is right."""
        self.warnings.append(Problem(self.file, self.line(path), format_path(path), text))


def format_path(path: KeyPath) -> str:
    """``lan.settings.dns-search[1]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_document(path: Path) -> Document:
    """Read a YAML file; whatever is wrong with it is in ``problems`` (then ``data`` is what could be read)."""
    document = Document(str(path))
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as err:
        document.add((), f"cannot be read: {err.strerror}")
        return document
    if len(content) > MAX_BYTES:
        document.add((), f"is larger than {MAX_BYTES >> 20} MiB")
        return document
    return parse_document(document.file, content)


def parse_document(file: str, content: bytes) -> Document:
    """The same for the content of a file."""
    document = Document(file)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        document.problems.append(Problem(file, line, "", "is not UTF-8 text"))
        return document
    try:
        _refuse_depth(text)
        node = yaml.compose(text, Loader=_LOADER)
        if node is not None:
            document.data = _Builder(document).build(node, ())
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        what = " ".join(part for part in (err.context, err.problem) if part)
        document.problems.append(Problem(file, mark.line + 1 if mark else 0, "", f"is not YAML: {what}"))
    except yaml.reader.ReaderError as err:
        line = text.count("\n", 0, err.position) + 1
        document.problems.append(Problem(file, line, "", "is not YAML: it contains a control character"))
    return document


def _refuse_depth(text: str) -> None:
    """Refuse deep nesting before a tree is made of it: PyYAML's C composer recurses until the stack ends.

    :raise yaml.MarkedYAMLError: not YAML, or nested deeper than MAX_DEPTH.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark: Any = event.start_mark
                raise yaml.MarkedYAMLError(problem=f"it nests more than {MAX_DEPTH} levels", problem_mark=mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Builder:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._count = 0
        self._open: set[int] = set()  # nodes being built: an anchor inside itself has no end

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        self._count += 1
        if self._count > MAX_NODES:
            if self._count == MAX_NODES + 1:
                self._document.add(path, f"the file means more than {MAX_NODES} values")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._document.add(path, "contains itself")
            return None
        # Anchors in anchors are as deep as they like, line by line.
        if len(self._open) >= MAX_DEPTH:
            self._document.add(path, f"nests more than {MAX_DEPTH} levels")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                self._merge(value_node, path, merged)
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._add(line, path, "a key must be a word")
                continue
            key = key_node.value
            if key in found:
                first = self._document.lines[(*path, key)]
                self._add(line, (*path, key), f"is given twice (first on line {first})")
                continue
            self._document.lines[(*path, key)] = line
            found[key] = self.build(value_node, (*path, key))
        return {**merged, **found}

    def _merge(self, node: yaml.Node, path: KeyPath, merged: dict[str, Any]) -> None:
        """``<<: *anchor``: earlier anchors win over later ones, keys of the mapping itself over all."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for source in sources:
            value = self.build(source, path) if isinstance(source, yaml.MappingNode) else None
            if not isinstance(value, dict):
                self._add(source.start_mark.line + 1, path, "'<<' takes mappings only")
                continue
            for key, item in value.items():
                merged.setdefault(key, item)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        kind = node.tag.rpartition(":")[2]
        text: str = node.value
        if not node.tag.startswith("tag:yaml.org,2002:") or kind not in _SCALARS:
            self._document.add(path, f"the tag {node.tag!r} is not understood")
            return None
        if kind in _NUMBERS:
            self._document.written[path] = text
        return _SCALARS[kind](text)

    def _add(self, line: int, path: KeyPath, text: str) -> None:
        self._document.problems.append(Problem(self._document.file, line, format_path(path), text))


def _parse_int(text: str) -> int | str:
    digits = text.replace("_", "").lower()
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    # Nothing counts so far, and Python refuses to print numbers of thousands of digits.
    if len(digits) > _MAX_DIGITS:
        return text
    for prefix, base in (("0x", 16), ("0b", 2), ("0o", 8), ("0", 8), ("", 10)):
        if digits.startswith(prefix) and digits != prefix:
            try:
                return sign * int(digits[len(prefix) :], base)
            except ValueError:
                return text
    return sign * int(digits) if digits.isdecimal() else text


def _parse_float(text: str) -> float | str:
    try:
        return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        return text


def _parse_bool(text: str) -> bool | str:
    lowered = text.lower()
    return lowered in _TRUE if lowered in _TRUE | _FALSE else text


_NUMBERS = frozenset({"int", "float"})
_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda _text: None,
    "bool": _parse_bool,
    "int": _parse_int,
    "float": _parse_float,
    "str": str,
    "timestamp": str,
    "value": str,
    "merge": str,
}
