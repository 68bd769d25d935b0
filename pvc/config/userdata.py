# SPDX-License-Identifier: Apache-2.0
"""User-data for cloud-init, looked at before there is a job: of what cloud-init would pass over, a guest says nothing.

Forms and their first lines are those of cloud-init's reference ("User-data formats"); how it tells them apart is in
its handlers (``type_from_starts_with``: letters of either case, white space before them) and ``user_data.py``
(``mime-version:`` in the first 4096 bytes). What is between the lines of a template, of a script and of a handler in
Python is for the guest to judge.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from email.message import Message

# As much as fits into the environment of a job (execve(2): 128 KiB), packed and with room for the rest of an order.
MAX_PACKED = 120 << 10
MAX_USER_DATA = 4 << 20
_GZIP = b"\x1f\x8b"
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_MIME = "mime-version:"
_MIME_WITHIN = 4096
_CONFIG, _SCRIPT, _INCLUDE, _ARCHIVE, _JINJA = (
    "text/cloud-config",
    "text/x-shellscript",
    "text/x-include-url",
    "text/cloud-config-archive",
    "text/jinja2",
)
_JSON_PATCH = "text/cloud-config-jsonp"
# The longest come first, for some begin like others.
_HEADERS = {
    "#cloud-config-archive": _ARCHIVE,
    "#cloud-config-jsonp": _JSON_PATCH,
    "## template: jinja": _JINJA,
    "#cloud-boothook": "text/cloud-boothook",
    "#include-once": "text/x-include-once-url",
    "#cloud-config": _CONFIG,
    "#part-handler": "text/part-handler",
    "#upstart-job": "text/upstart-job",
    "#include": _INCLUDE,
    "#!": _SCRIPT,
}
# What a part of a MIME message may be besides: its own first line decides, or it is unpacked first.
_OPEN = frozenset({"text/plain", "text/x-not-multipart"})
_PACKED = frozenset(
    f"application/{name}"
    for name in ("gzip", "gzip-compressed", "gzipped", "x-gunzip", "x-gzip", "x-gzip-compressed")
)  # fmt: skip
_SCRIPTS_BY_TIME = frozenset(f"text/x-shellscript-per-{when}" for when in ("boot", "instance", "once"))
_TYPES = frozenset(_HEADERS.values()) | _OPEN | _PACKED | _SCRIPTS_BY_TIME
_KNOWN = (
    "#cloud-config, #!, ## template: jinja, #include, #cloud-boothook, #part-handler, #cloud-config-archive and MIME"
)
_LINE = re.compile(r"line (\d+): (.*)", re.DOTALL)
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*://|/)\S+", re.IGNORECASE)


def read_user_data(content: bytes) -> str:
    """What a guest is given: the text, unpacked where it is gzip's, and without a byte order mark.

    :raise ValueError: cloud-init would not understand it; the reason begins with the line where there is one.
    """
    text = _decode(_unpack(content))
    check_user_data(text)
    return text


def read_user_data_file(path: Path) -> str:
    """The same of a file.

    :raise ValueError: also where it cannot be read; names the file.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_USER_DATA + 1)
    except (OSError, ValueError) as err:
        raise ValueError(f"cannot read {path}: {getattr(err, 'strerror', None) or err}") from None
    try:
        return read_user_data(content)
    except ValueError as err:
        line = _LINE.match(str(err))
        raise ValueError(f"{path}:{line[1]}: {line[2]}" if line else f"{path} {err}") from None


def check_user_data(text: str) -> None:
    """:raise ValueError: the same of a text."""
    if not text.strip():
        raise ValueError("is empty")
    _check(text)
    packed = len(base64.b64encode(zlib.compress(text.encode(), 1)))
    if packed > MAX_PACKED:
        raise ValueError(
            f"has {packed >> 10} KiB packed, and {MAX_PACKED >> 10} KiB fit: let the guest fetch large files itself"
        )


def is_cloud_config(text: str) -> bool:
    """Whether it is one cloud-config, and nothing else."""
    return _find_type(text) == _CONFIG and not _is_mime(text)


def _unpack(content: bytes) -> bytes:
    if len(content) > MAX_USER_DATA:
        raise ValueError(f"is larger than {MAX_USER_DATA >> 20} MiB")
    if not content.startswith(_GZIP):
        return content
    unpacker = zlib.decompressobj(wbits=31)
    try:
        found = unpacker.decompress(content, MAX_USER_DATA + 1)
    except zlib.error as err:
        raise ValueError(f"is damaged gzip ({err})") from None
    if len(found) > MAX_USER_DATA:
        raise ValueError(f"is larger than {MAX_USER_DATA >> 20} MiB, unpacked")
    if not unpacker.eof:
        raise ValueError("is gzip that ends too early")
    return found


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("is UTF-16, and cloud-init takes UTF-8") from None
        line = content.count(b"\n", 0, err.start) + 1
        raise ValueError(f"line {line}: is not UTF-8 text") from None


def _check(text: str) -> None:
    if _is_mime(text):
        _check_mime(text)
        return
    kind = _find_type(text)
    if kind is None:
        raise ValueError(_explain_header(text))
    _check_kind(text, kind)


def _check_kind(text: str, kind: str) -> None:
    if kind == _CONFIG:
        _check_mapping(text)
    elif kind == _ARCHIVE:
        _check_archive(text)
    elif kind == _JSON_PATCH:
        _load(text)
    elif kind in (_INCLUDE, "text/x-include-once-url"):
        _check_include(text)
    elif kind == _JINJA:
        _check_jinja(text)
    elif kind == _SCRIPT and not text.startswith("#!"):
        raise ValueError("line 1: a script begins with #! and has nothing before it, no blank line either")


def _is_mime(text: str) -> bool:
    return _MIME in text[:_MIME_WITHIN].lower()


def _find_type(text: str) -> str | None:
    start = text[:_MIME_WITHIN].lstrip().lower()
    return next((kind for header, kind in _HEADERS.items() if start.startswith(header)), None)


def _explain_header(text: str) -> str:
    lines = text.splitlines()
    number, first = next((i, line.strip()) for i, line in enumerate(lines, 1) if line.strip())
    if first.startswith(_BOM):
        return "line 1: there are two byte order marks before its first word"
    if first.lower().startswith("content-type:"):
        return f"line {number}: a MIME message has a line MIME-Version: 1.0 among its first"
    squeezed = re.sub(r"\s+", "", first.lower())
    for header in _HEADERS:
        if squeezed.startswith(header.replace(" ", "")) and header != "#!":
            return f"line {number}: {first[:60]!r} is not cloud-init's {header!r}; each blank counts"
    for later, line in enumerate(lines[number:], number + 1):
        if _find_type(line) is not None and not line.startswith("#!"):
            before = f"{first[:60]!r} is before it (line {number})"
            return f"line {later}: {line.strip()[:60]!r} has to be the first line, and {before}"
    return f"line {number}: {first[:60]!r} is none of {_KNOWN}, and cloud-init passes over what begins otherwise"


def _load(text: str) -> Any:
    """YAML as cloud-init reads it, for it is read by PyYAML there, too."""
    from pvc.config.yamlmarks import parse_document

    document = parse_document("", text.encode())
    # What is stricter in configuration of ours is nothing to cloud-init; what is no YAML has no key.
    for problem in document.problems:
        if problem.text.startswith("is not YAML") or not problem.key:
            raise ValueError(f"line {problem.line}: {problem.text}")
    return document.data


def _check_mapping(text: str) -> None:
    data = _load(text)
    if data is not None and not isinstance(data, dict):
        raise ValueError("is not a mapping of keys to values, as a cloud-config is")


def _check_archive(text: str) -> None:
    data = _load(text)
    if not isinstance(data, list):
        raise ValueError("is not a list, as a cloud-config-archive is")
    for number, item in enumerate(data, 1):
        content, kind = (item.get("content"), item.get("type")) if isinstance(item, dict) else (item, None)
        try:
            if not isinstance(content, str):
                raise ValueError("is neither a text nor a mapping with content")
            _check_part(content, kind or _find_type(content) or _CONFIG)
        except ValueError as err:
            raise ValueError(f"part {number}: {err}") from None


def _check_include(text: str) -> None:
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
        word = re.sub(r"^#include(-once)?", "", line.strip(), flags=re.IGNORECASE).strip()
        if not word or word.startswith("#"):
            continue
        if not _URL.fullmatch(word):
            raise ValueError(f"line {number}: {word[:60]!r} is no URL to include")
        count += 1
    if not count:
        raise ValueError("includes nothing: after #include come URLs, one a line")


def _check_jinja(text: str) -> None:
    """What comes out of it begins like the other forms; what words of the template make is not known here."""
    lines = text.strip().splitlines()
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        if line.lstrip().startswith(("{%", "{{", "{#")) or _find_type(line) is not None:
            return
        raise ValueError(f"line {number}: after ## template: jinja comes #cloud-config, #! or #cloud-boothook")
    raise ValueError("has nothing below ## template: jinja")


def _check_mime(text: str) -> None:
    from email import message_from_string

    message = message_from_string(text)
    if "mime-version" not in message:
        raise ValueError("line 1: has MIME-Version: in its text, so cloud-init takes it for MIME, but not as a header")
    parts: Sequence[Message] = [each for each in message.walk() if each.get_content_maintype() != "multipart"]
    if message.get_content_maintype() == "multipart" and message.defects:
        raise ValueError("is a MIME message whose parts cannot be told apart: its boundary is missing or not closed")
    for number, part in enumerate(parts, 1):
        name = part.get_filename()
        try:
            payload = part.get_payload(decode=True)
            content = payload if isinstance(payload, bytes) else b""
            kind = part.get_content_type()
            if kind in _PACKED:
                content, kind = _unpack(content), "text/plain"
            _check_part(_decode(content), kind)
        except ValueError as err:
            raise ValueError(f"part {number}{f' ({name})' if name else ''}: {err}") from None


def _check_part(text: str, kind: str) -> None:
    if kind not in _TYPES:
        raise ValueError(f"is of type {kind!r}, which cloud-init does not know")
    if kind in _OPEN or kind == _SCRIPT:
        found = _find_type(text)
        if found is None and kind != _SCRIPT:
            raise ValueError(_explain_header(text) if text.strip() else "is empty")
        kind = found or kind
    _check_kind(text, kind)
