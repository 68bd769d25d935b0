# SPDX-License-Identifier: Apache-2.0
"""A recipe's files as a tar archive."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

from pvc.images.recipe import RecipeFile

# The time of all that a build makes, where packages give none: two builds of the same are the same.
EPOCH = 1735689600  # 2025-01-01


def pack_files(wanted: Iterable[RecipeFile]) -> bytes:
    """An archive of files and links that belong to root; directories are left to tar."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for file in wanted:
            member = tarfile.TarInfo(file.path.lstrip("/"))
            member.mode, member.mtime = int(file.mode, 8), EPOCH
            if file.link is not None:
                member.type, member.linkname = tarfile.SYMTYPE, file.link
                archive.addfile(member)
                continue
            data = file.content.encode()
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return target.getvalue()
