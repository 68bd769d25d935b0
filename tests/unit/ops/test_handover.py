# SPDX-License-Identifier: Apache-2.0
"""What travels through the job's environment."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from pvc.errors import UsageError
from pvc.ops import handover
from pvc.ops.definition import Overrides, resolve
from tests.unit.ops.worlds import make_config


def make(tmp_path: Path, user_data: str) -> handover.Handover:
    order = resolve("plain:3", make_config(tmp_path), Overrides(user_data=user_data), 2)
    return handover.Handover(order, wait=True, quiet=True)


def test_round_trip(tmp_path: Path) -> None:
    given = make(tmp_path, "#cloud-config\nruncmd: ['echo \"ü\"']\n" * 9000)
    text = handover.encode(given)
    assert text.isascii()
    assert handover.decode(text) == given


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    noise = "".join(map(chr, Random(2).choices(range(33, 126), k=300_000)))
    with pytest.raises(UsageError, match="KiB fit"):
        handover.encode(make(tmp_path, noise))


@pytest.mark.parametrize("text", ["", "x", "eJwDAAAAAAE=", "!!!"])
def test_damage_is_noticed(text: str) -> None:
    with pytest.raises(UsageError, match="damaged"):
        handover.decode(text)
