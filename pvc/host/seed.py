# SPDX-License-Identifier: Apache-2.0
"""The NoCloud seed as an ISO 9660 image.

cloud-init finds it by its label: ds-identify and DataSourceNoCloud accept "cidata" and "CIDATA". Rock Ridge
carries the real names ("user-data"), which plain ISO 9660 has no characters for.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

LABEL = "CIDATA"


def seed_image(files: Mapping[str, str | bytes]) -> bytes:
    """An ISO 9660 image with ``files`` (name to content) at its root."""
    from pycdlib import PyCdlib  # heavy: only supervisors need it

    iso = PyCdlib()
    iso.new(interchange_level=3, vol_ident=LABEL, rock_ridge="1.09")
    for i, (name, text) in enumerate(files.items()):
        data = text.encode() if isinstance(text, str) else text
        iso.add_fp(io.BytesIO(data), len(data), f"/FILE{i}.;1", rr_name=name)
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue()


def write_seed(path: Path, files: Mapping[str, str | bytes]) -> None:
    """Write the seed to ``path``, readable by its owner only: it holds the cluster's host key.

    :raise OSError: the directory is missing or full.
    """
    image = seed_image(files)
    path.touch(mode=0o600)
    path.write_bytes(image)
