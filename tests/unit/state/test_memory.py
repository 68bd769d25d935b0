# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pvc.state.memory import MemoryStore
from tests.unit.state import contract


def test_transactions() -> None:
    contract.check_transactions(MemoryStore())


def test_nodes_of_a_job_agree_on_its_vnis() -> None:
    contract.check_nodes_agree(MemoryStore())


def test_jobs_never_share_a_vni() -> None:
    contract.check_jobs_never_share_a_vni(MemoryStore())


def test_nodes_that_differ() -> None:
    contract.check_nodes_that_differ(MemoryStore())


def test_sites_that_share_a_store() -> None:
    contract.check_sites_that_share_it(MemoryStore())


def test_what_a_store_forgot() -> None:
    contract.check_what_was_forgotten(MemoryStore())
