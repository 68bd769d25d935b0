# SPDX-License-Identifier: Apache-2.0
"""Where the files are that are not Python: conf/ and templates/."""

from __future__ import annotations

import sys
from pathlib import Path

from pvc.errors import HostError


def find_share() -> Path:
    """The directory that holds ``conf/`` and ``templates/``.

    In a checkout (also when installed with ``pip install -e``) it is the top of the tree, else
    PREFIX/share/pvc of the environment that pvc is installed in.

    :raise HostError: neither is there.
    """
    checkout = Path(__file__).resolve().parents[2]
    installed = Path(sys.prefix) / "share" / "pvc"
    for place in (checkout, installed):
        if (place / "conf" / "batch.yaml").is_file():
            return place
    raise HostError(
        f"pvc's conf/ and templates/ are neither in {checkout} nor in {installed}", hint="install pvc again"
    )
