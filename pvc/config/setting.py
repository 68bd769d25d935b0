# SPDX-License-Identifier: Apache-2.0
"""Settings as rows of tables: structure, defaults, error texts and manual pages all come from the row.

A ``Kind`` says what values a setting takes: a JSON schema for the structure and a function for the meaning.
A ``Table`` is the keys of one mapping.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pvc.config.schema import Fault, Schema, find_faults, show, strip
from pvc.config.yamlmarks import Document, KeyPath
from pvc.parse import expand_home, parse_name

_EXPANSION = re.compile(r"%\{([^}]*)\}")
START_NAMES = ("vm_rank", "job_id")


@dataclass(frozen=True)
class Expansion:
    """What %{env:NAME}, %{homedir}, %{user} (or %{clusteruser}) and %{clusterdir} stand for.

    ``at_start``: %{vm_rank} and %{job_id} stay, for they are known when a VM starts.
    """

    user: str
    homedir: str
    environment: Mapping[str, str]

    def expand(self, text: str, *, at_start: bool = False) -> str:
        """Replace every %{...} in ``text``.

        :raise ValueError: one of them is unknown, or names a variable that is not set.
        """
        return _EXPANSION.sub(lambda match: self._value(match[1], at_start), text)

    def _value(self, name: str, at_start: bool) -> str:
        if name in {"user", "clusteruser"}:
            return self.user
        if name == "homedir":
            return self.homedir
        if at_start and name in START_NAMES:
            return f"%{{{name}}}"
        if at_start and name == "clusterdir":
            return f"{self.homedir}/.pvc/jobs/%{{job_id}}"
        if name == "clusterdir" or name in START_NAMES:
            raise ValueError(f"%{{{name}}} is not known before a VM starts, and this is looked up before")
        kind, _, variable = name.partition(":")
        if kind == "env" and variable:
            if variable not in self.environment:
                raise ValueError(f"the environment has no variable {variable} (%{{{name}}})")
            return self.environment[variable]
        raise ValueError(f"%{{{name}}} is none of %{{env:NAME}}, %{{homedir}} and %{{user}}")

    def expand_path(self, text: str, *, at_start: bool = False) -> str:
        """The same of a path, which may begin with ~/ as well.

        :raise ValueError: as ``expand``.
        """
        return expand_home(self.expand(text, at_start=at_start), self.homedir)


@dataclass(frozen=True)
class Scope:
    """The place in a document that is being read."""

    document: Document
    path: KeyPath = ()
    expansion: Expansion | None = None
    bad: frozenset[KeyPath] = frozenset()

    def at(self, part: str | int) -> Scope:
        """The place one key or index further in."""
        return Scope(self.document, (*self.path, part), self.expansion, self.bad)

    def add(self, text: str) -> None:
        """Note a problem here."""
        self.document.add(self.path, text)

    def warn(self, text: str) -> None:
        """Note here what is no problem, and good to know."""
        self.document.warn(self.path, text)


Reader = Callable[[Any, Scope], Any]


@dataclass(frozen=True)
class Kind:
    """Values of one kind: ``name`` for the manual, ``expected`` for errors, ``schema`` and ``read`` to check."""

    name: str
    expected: str
    structure: Schema
    read: Reader

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema, with the text for errors in it."""
        return {**self.structure, "description": self.expected}


@dataclass(frozen=True)
class Setting:
    """One key. ``default`` is as it would be written in the file; None: there is none."""

    key: str
    kind: Kind
    help: str
    default: Any = None
    required: bool = False
    default_text: str = ""  # for the manual, where the default is no constant


@dataclass(frozen=True)
class Table:
    """The keys of one mapping, and those of other programs with what to say of them.

    ``foreign``: they are refused; ``idle``: they have no effect, and whoever relies on one is warned.
    """

    settings: Sequence[Setting]
    foreign: Mapping[str, str] = field(default_factory=dict)
    idle: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of such a mapping."""
        return {
            "type": "object",
            "description": "a mapping of keys to values",
            "properties": {setting.key: setting.kind.schema for setting in self.settings},
            "required": [setting.key for setting in self.settings if setting.required],
            "additionalProperties": False,
            "foreign": dict(self.foreign),
            "idle": dict(self.idle),
        }

    def read(self, value: Any, scope: Scope) -> dict[str, Any]:
        """Values of all keys, defaults included; None for those with problems, which ``scope`` has taken."""
        return {**self.defaults(scope), **self.read_given(value, scope)}

    def read_given(self, value: Any, scope: Scope) -> dict[str, Any]:
        """Values of the keys that are there and have one."""
        given = strip(self.schema, value, scope.path, scope.document.warn)
        return self.collect(given, check(self.schema, given, scope))

    def collect(self, value: Any, scope: Scope) -> dict[str, Any]:
        """The same, where the structure has been checked."""
        if not isinstance(value, dict):
            return {}
        return {
            setting.key: read(setting.kind, value[setting.key], scope.at(setting.key))
            for setting in self.settings
            if setting.key in value
        }

    def defaults(self, scope: Scope) -> dict[str, Any]:
        """Defaults, in the form that ``read`` gives."""
        return {
            setting.key: None if setting.default is None else setting.kind.read(setting.default, scope)
            for setting in self.settings
        }


def check(schema: Schema, value: Any, scope: Scope) -> Scope:
    """Note what is wrong with the structure of ``value``; the scope returned knows which values are unusable."""
    faults = [Fault((*scope.path, *fault.path), fault.text) for fault in find_faults(schema, value)]
    for fault in faults:
        scope.document.add(fault.path, fault.text)
    return Scope(scope.document, scope.path, scope.expansion, scope.bad | {fault.path for fault in faults})


def read(kind: Kind, value: Any, scope: Scope) -> Any:
    """The meaning of a value whose structure was checked; None, and a problem noted, when it has none."""
    if scope.path in scope.bad:
        return None
    try:
        return kind.read(value, scope)
    except ValueError as err:
        scope.add(str(err))
        return None


def named_entries(document: Document, expansion: Expansion | None = None) -> Iterator[tuple[str, Any, Scope]]:
    """(name, value, place) of each entry of a document that is a mapping of names; bad names are noted."""
    if document.data is None:
        return
    if not isinstance(document.data, dict):
        document.add((), f"{show(document.data)} is not a mapping of names")
        return
    for name, value in document.data.items():
        scope = Scope(document, (name,), expansion)
        try:
            parse_name(name)
        except ValueError as err:
            scope.add(str(err))
        yield name, value, scope


def _plain(value: Any, _scope: Scope) -> Any:
    return value


# Without quotes YAML makes numbers of 2048, 22.04 and 486.
_TEXT = ("string", "number")


def _as_written(value: str | float, scope: Scope) -> str:
    return value if isinstance(value, str) else scope.document.written.get(scope.path, str(value))


def text(parse: Callable[[str], Any] = str, *, name: str = "text", expected: str = "text") -> Kind:
    """A string, or a number as it is written, given to ``parse`` (which raises ValueError)."""
    return Kind(name, expected, {"type": list(_TEXT)}, lambda value, scope: parse(_as_written(value, scope)))


def expanded(
    parse: Callable[[str], Any] = str, *, name: str = "text", expected: str = "text", at_start: bool = False
) -> Kind:
    """The same after %{...} has been replaced; ``at_start``: as far as it is known before a VM starts."""
    return _replaced(parse, name, expected, lambda by, text: by.expand(text, at_start=at_start))


def path(
    parse: Callable[[str], Any] = str, *, name: str = "path", expected: str = "a path", at_start: bool = False
) -> Kind:
    """A path with %{...} as in ``expanded``; it may begin with ~/."""
    return _replaced(parse, name, expected, lambda by, text: by.expand_path(text, at_start=at_start))


def _replaced(parse: Callable[[str], Any], name: str, expected: str, replace: Callable[[Expansion, str], str]) -> Kind:
    def meaning(value: str | float, scope: Scope) -> Any:
        found = _as_written(value, scope)
        return parse(replace(scope.expansion, found) if scope.expansion else found)

    return Kind(name, expected, {"type": list(_TEXT)}, meaning)


def word(name: str, pattern: str, expected: str) -> Kind:
    """A string, or a number as it is written, that matches ``pattern`` as a whole."""

    def meaning(value: str | float, scope: Scope) -> str:
        found = _as_written(value, scope)
        if re.fullmatch(pattern, found) is None:
            raise ValueError(f"{found} is not {expected}")
        return found

    return Kind(name, expected, {"type": list(_TEXT), "pattern": f"^(?:{pattern})\\Z"}, meaning)


def integer(minimum: int, maximum: int) -> Kind:
    """A whole number from ``minimum`` to ``maximum``."""
    structure = {"type": "integer", "minimum": minimum, "maximum": maximum}
    return Kind("number", f"a number from {minimum} to {maximum}", structure, lambda value, _scope: int(value))


def boolean() -> Kind:
    """``yes`` or ``no``."""
    return Kind("yes | no", "yes or no", {"type": "boolean"}, _plain)


def choice(*values: str, parse: Callable[[str], Any] = str) -> Kind:
    """One of several words."""
    expected = " or ".join([", ".join(values[:-1]), values[-1]]) if len(values) > 1 else values[0]
    return Kind(" | ".join(values), expected, {"enum": list(values)}, lambda value, _scope: parse(value))


def list_of(kind: Kind, *, minimum: int = 0, single: bool = False, empty: bool = False) -> Kind:
    """A list, read as a tuple; ``single`` allows one value without brackets, ``empty`` none at all."""
    structure: dict[str, Any] = {"type": "array", "items": kind.schema, "minItems": minimum}
    if empty:
        structure |= {"type": ["array", "null"]}
    if single:
        structure |= {"type": ["array", *_as_list(kind.structure["type"])]}
        structure |= {key: value for key, value in kind.structure.items() if key != "type"}

    def meaning(value: Any, scope: Scope) -> tuple[Any, ...]:
        if value is None:
            return ()
        if not isinstance(value, list):
            return (kind.read(value, scope),)
        return tuple(read(kind, item, scope.at(index)) for index, item in enumerate(value))

    name = f"list of {_plural(kind.name)}"
    expected = f"a list with at least {minimum} {kind.name}" if minimum else f"a {name}"
    return Kind(name, expected + (", or one without brackets" if single else ""), structure, meaning)


def mapping(table: Table, build: Callable[[Mapping[str, Any]], Any], expected: str) -> Kind:
    """A mapping with the keys of ``table``, turned into a value by ``build``."""

    def meaning(value: Any, scope: Scope) -> Any:
        count = len(scope.document.problems)
        values = {**table.defaults(scope), **table.collect(value, scope)}
        complete = all(key in value for key in table.schema["required"])
        return build(values) if complete and len(scope.document.problems) == count and not _broken(scope) else None

    return Kind("mapping", expected, table.schema, meaning)


def _broken(scope: Scope) -> bool:
    depth = len(scope.path)
    return any(path[:depth] == scope.path for path in scope.bad)


def _plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
