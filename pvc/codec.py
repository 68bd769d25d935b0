# SPDX-License-Identifier: Apache-2.0
"""Frozen dataclasses to JSON-able data and back, strictly; and documents that outlast a version of pvc.

``from_data`` refuses unknown keys, missing keys and wrong types, so it also guards the trust
boundaries: what comes from another process is rebuilt field by field or refused. A document that another version
may read has a ``Format``, and with it a version.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
import types
import typing
from collections.abc import Callable
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from typing import Any, TypeVar

T = TypeVar("T")
_Decoder = Callable[[Any, str], Any]
_NETWORKS = (IPv4Network, IPv6Network)
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})", re.ASCII)


def to_data(value: Any) -> Any:
    """JSON-able data of a value made of dataclasses, enums, tuples, dicts and plain values."""
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_data(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_data(item) for key, item in value.items()}
    if isinstance(value, _NETWORKS):
        return str(value)
    return value


def from_data(cls: type[T], data: Any, *, loose: bool = False) -> T:
    """The value of type ``cls`` that ``to_data`` turned into ``data``. ``loose``: unknown keys are left out.

    :raise ValueError: a key is missing or unknown, or a value has the wrong type; the message gives its path.
    """
    kind: Any = cls
    decoded: T = _decoder(kind, loose)(data, "")
    return decoded


def dumps(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(to_data(value), separators=(",", ":"), sort_keys=True)


def loads(cls: type[T], text: str | bytes) -> T:
    """The inverse of ``dumps``.

    :raise ValueError: not JSON, or not a ``cls``.
    """
    return from_data(cls, read_json(text))


def read_json(text: str | bytes) -> Any:
    """What a text means that somebody else may have written.

    :raise ValueError: it is not JSON (NaN and its like are not), or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class OtherVersionError(ValueError):
    """A document is of a major version that this pvc does not know; the message names both."""


@dataclasses.dataclass(frozen=True)
class Format:
    """How documents are written that another version of pvc may read: with ``major`` and ``minor`` beside their fields.

    Within a major version a reader leaves out the fields that it does not know, and a field that is missing has its
    default. Version 0.1.0 of pvc wrote no version: its documents are what 1.0 is in each format.
    """

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    def mark(self, data: dict[str, Any]) -> dict[str, Any]:
        """``data`` with the version in which it is written."""
        return {"version": str(self), **data}

    def dumps(self, value: Any) -> str:
        """One line of JSON."""
        return dumps(self.mark(to_data(value)))

    def loads(self, cls: type[T], text: str | bytes, *, exactly: bool = False) -> T:
        """The inverse of ``dumps``. ``exactly``: a field that is not known is an error, as for who plans by them.

        :raise OtherVersionError: it is of another major version.
        :raise ValueError: not JSON, or not a ``cls``.
        """
        data = read_json(text)
        self.check(data)
        return from_data(cls, {key: data[key] for key in data if key != "version"}, loose=not exactly)

    def check(self, data: Any) -> None:
        """Refuse what ``mark`` would not have given this major version.

        :raise OtherVersionError: it is of another one.
        :raise ValueError: it is no document, or what it has for a version is none.
        """
        if not isinstance(data, dict):
            raise _wrong("", "an object", data)
        text = data.get("version", "1.0")
        match = _VERSION.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"version: {text!r:.40} is none")
        if int(match[1]) != self.major:
            raise OtherVersionError(f"it is of format {text}, and this pvc reads {self.major}.x")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _wrong(path: str, expected: str, data: Any) -> ValueError:
    return ValueError(f"{path or 'value'}: expected {expected}, got {type(data).__name__}")


@cache
def _decoder(kind: Any, loose: bool) -> _Decoder:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if kind is Any:
        return lambda data, _path: data
    if origin in (types.UnionType, typing.Union):
        return _union(arguments, loose=loose)
    if origin is tuple:
        return _sequence(arguments, loose=loose)
    if origin is dict:
        return _mapping(arguments[1], loose=loose)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass(kind, loose=loose)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _enum(kind)
    if kind in _NETWORKS:
        return _network(kind)
    return _plain(kind)


def _plain(kind: Any) -> _Decoder:
    def decode(data: Any, path: str) -> Any:
        if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
            return _finite(data, path)
        if type(data) is not kind:
            raise _wrong(path, kind.__name__, data)
        return data

    return decode


def _finite(data: float, path: str) -> float:
    """A number that can be counted with: 1e999 is JSON too, and an integer can be too large for a float."""
    try:
        number = float(data)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{path or 'value'}: the number is too large")
    return number


def _enum(kind: type[enum.Enum]) -> _Decoder:
    def decode(data: Any, path: str) -> Any:
        try:
            return kind(data)
        except ValueError:
            raise ValueError(f"{path}: {data!r} is none of {[m.value for m in kind]}") from None

    return decode


def _network(kind: Any) -> _Decoder:
    def decode(data: Any, path: str) -> Any:
        if not isinstance(data, str):
            raise _wrong(path, "a network", data)
        try:
            return kind(data)
        except ValueError as err:
            raise ValueError(f"{path}: {err}") from None

    return decode


def _union(arguments: tuple[Any, ...], *, loose: bool) -> _Decoder:
    kinds = [argument for argument in arguments if argument is not type(None)]
    # What is one of them field by field is not taken for another with some left out.
    passes = (False, True) if loose and len(kinds) > 1 else (loose,)
    inner = [_decoder(kind, each) for each in passes for kind in kinds]
    optional = type(None) in arguments

    def decode(data: Any, path: str) -> Any:
        if data is None and optional:
            return None
        error: ValueError | None = None
        for decoder in inner:
            try:
                return decoder(data, path)
            except ValueError as err:
                error = err
        raise error or _wrong(path, "null", data)

    return decode


def _sequence(arguments: tuple[Any, ...], *, loose: bool) -> _Decoder:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item = _decoder(arguments[0], loose)

        def decode(data: Any, path: str) -> Any:
            if not isinstance(data, list | tuple):
                raise _wrong(path, "a list", data)
            return tuple(item(entry, f"{path}[{i}]") for i, entry in enumerate(data))

        return decode
    items = [_decoder(argument, loose) for argument in arguments]

    def decode_fixed(data: Any, path: str) -> Any:
        if not isinstance(data, list | tuple) or len(data) != len(items):
            raise _wrong(path, f"a list of {len(items)}", data)
        return tuple(each(entry, f"{path}[{i}]") for i, (each, entry) in enumerate(zip(items, data, strict=True)))

    return decode_fixed


def _mapping(value_kind: Any, *, loose: bool) -> _Decoder:
    inner = _decoder(value_kind, loose)

    def decode(data: Any, path: str) -> Any:
        if not isinstance(data, dict):
            raise _wrong(path, "an object", data)
        return {str(key): inner(entry, f"{path}.{key}") for key, entry in data.items()}

    return decode


def _dataclass(kind: Any, *, loose: bool) -> _Decoder:
    hints = typing.get_type_hints(kind)
    fields = {field.name: _decoder(hints[field.name], loose) for field in dataclasses.fields(kind)}
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }

    def decode(data: Any, path: str) -> Any:
        if not isinstance(data, dict):
            raise _wrong(path, f"an object ({kind.__name__})", data)
        unknown = set() if loose else data.keys() - fields.keys()
        missing = required - data.keys()
        if unknown or missing:
            what = f"unknown {sorted(unknown)}" if unknown else f"missing {sorted(missing)}"
            raise ValueError(f"{path or kind.__name__}: {what}")
        known = ((key, entry) for key, entry in data.items() if key in fields)
        return kind(**{key: fields[key](entry, f"{path}.{key}" if path else key) for key, entry in known})

    return decode
