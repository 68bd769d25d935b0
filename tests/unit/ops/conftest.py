"""Agents for the tests of what speaks to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agents import build_agent
from fleet import Fleet, fleet


@pytest.fixture(scope="module")
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """As many real agents as the module's COUNT says."""
    program = build_agent(tmp_path_factory.getbasetemp().parent / "pvc-agent")
    with fleet(program, tmp_path_factory.mktemp("fleet"), request.module.COUNT) as found:
        yield found
