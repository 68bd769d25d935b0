# SPDX-License-Identifier: Apache-2.0
"""Sources that are no files: standard input, and what a web server has. They become a file of the repository first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pvc.errors import HostError, UsageError
from pvc.images import header
from pvc.images.store import Store
from pvc.images.streams import Progress, write_sparse

STANDARD = "-"
_CHUNK = 4 << 20
_SILENCE_S = 60.0


def is_spooled(source: str) -> bool:
    """Whether a source is one of these, and not the name of a file."""
    return source == STANDARD or source.startswith(("https://", "http://"))


@contextmanager
def spooled(store: Store, source: str, progress: Progress) -> Iterator[Path]:
    """The file that ``source`` has become, while the block runs. Errors in the block name ``source``, not the file.

    :raise UsageError: it is too large for a disk, or the server does not have it.
    :raise HostError: it cannot be read to its end, or the repository is full.
    """
    with store.temporary() as (target, path):
        with _open(source) as (stream, total), store.explained("write to"):
            _copy(stream, total, source, target, progress)
        try:
            yield path
        except UsageError as err:
            err.message = err.message.replace(os.fspath(path), source)
            raise


def _copy(stream: IO[bytes], total: int | None, source: str, target: IO[bytes], progress: Progress) -> None:
    label, done = source.rpartition("/")[2] or source, 0
    progress(label, 0, total or 1)
    while chunk := _read(stream, source):
        done += len(chunk)
        if done > header.MAX_DISK:
            raise UsageError(f"{source} has more than {header.MAX_DISK >> 40} TiB")
        write_sparse(target, chunk)
        if total:
            progress(label, min(done, total - 1), total)
    if total is not None and done != total:
        raise HostError(f"{source} ended after {done} of {total} bytes", hint="try again")
    target.truncate(done)
    progress(label, total or 1, total or 1)


def _read(stream: IO[bytes], source: str) -> bytes:
    from http.client import HTTPException

    try:
        return stream.read(_CHUNK)
    except (OSError, HTTPException) as err:
        raise HostError(f"cannot read {source} to its end") from err


@contextmanager
def _open(source: str) -> Iterator[tuple[IO[bytes], int | None]]:
    if source == STANDARD:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError(
                "standard input is a terminal", hint="let a program or a file be it: … | pvc image import -"
            )
        yield sys.stdin.buffer, None
        return
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    try:
        answer: Any = urlopen(source, timeout=_SILENCE_S)
    except HTTPError as err:
        raise UsageError(f"{source}: the server says: {err.code} {err.reason}") from None
    except (URLError, OSError, ValueError) as err:
        reason = err.reason if isinstance(err, URLError) else err
        raise HostError(
            f"cannot fetch {source}: {reason}", hint="fetch it by other means, and import the file"
        ) from None
    with answer:
        length = answer.headers.get("Content-Length", "")
        yield answer, int(length) if length.isdecimal() and len(length) < 19 else None
