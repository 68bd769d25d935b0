# SPDX-License-Identifier: Apache-2.0
"""The counter of the machine that the tests run on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pvc.host import tsc

pytestmark = pytest.mark.host


def test_frequency_is_one_of_a_processor() -> None:
    khz = tsc.read_khz()
    assert khz is not None
    assert tsc.read_khz() == khz
    # What a core has at the moment is not far from it: a third of it when idle, twice as much when it may hurry.
    found = re.search(r"cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text())
    assert found is not None
    assert 0.3 < float(found[1]) * 1000 / khz < 3
    # Another measurement is the same to 0.1 %.
    assert abs(tsc.read_khz.__wrapped__() - khz) < khz / 1000
