# SPDX-License-Identifier: Apache-2.0
"""Files that appear complete under their name, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

from pvc.errors import HostError, UsageError


@contextmanager
def appearing(target: Path, *, replace: bool = False) -> Iterator[IO[bytes]]:
    """A new file that gets its name at the end, if all went well; a killed command leaves none where O_TMPFILE works.

    ``replace``: another one of that name goes, and one that comes meanwhile is as good.

    :raise UsageError: it exists, or may not be there.
    :raise HostError: the disk is full.
    """
    directory = target.absolute().parent
    name: str | None = None
    try:
        try:
            handle = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError as err:
            if err.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            name = f"{directory}/.{target.name[:40]}.{secrets.token_hex(4)}"
            handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as err:
        raise UsageError(f"cannot write {target}") from err
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            if replace:
                target.unlink(missing_ok=True)
            with suppress(FileExistsError) if replace else nullcontext():
                _appear(stream, name, target)
    except FileExistsError:
        raise UsageError(f"{target} exists") from None
    except OSError as err:
        raise HostError(f"cannot write {target}", hint="free space there, or write elsewhere") from err
    finally:
        if name is not None:
            with suppress(FileNotFoundError):
                os.unlink(name)


def _appear(stream: IO[bytes], name: str | None, target: Path) -> None:
    if name is None:
        # Only linkat(2), which Python takes with a directory's descriptor alone, follows the link in /proc.
        here = os.open("/", os.O_PATH | os.O_CLOEXEC)
        try:
            os.link(f"/proc/self/fd/{stream.fileno()}", target.absolute(), src_dir_fd=here)
        finally:
            os.close(here)
        return
    try:
        os.link(name, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links.
        os.rename(name, target)
