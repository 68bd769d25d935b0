# SPDX-License-Identifier: Apache-2.0
"""Copies of images on a node, from the configuration to QEMU's command line; each user has their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Testbed
from tests.waits import wait_until

CACHE = "/var/tmp/pvc-images"


@pytest.fixture
def cached(tb: Testbed) -> Iterator[Testbed]:
    """On n1, batch.yaml names a directory for copies."""
    tb.root(
        "cp /etc/pvc/batch.yaml /run/batch.yaml && "
        f"echo '  image-cache-dir: {CACHE}' >> /run/batch.yaml && mount --bind /run/batch.yaml /etc/pvc/batch.yaml",
        "n1",
    )
    tb.reload("n1")
    yield tb
    tb.root(f"umount /etc/pvc/batch.yaml; rm -rf /run/batch.yaml {CACHE}", "n1")
    tb.reload("n1")


def list_copies(tb: Testbed) -> str:
    return tb.root(f"find {CACHE} -name '.*' -prune -o -printf '%u %m %P\\n'", "n1")


def start(tb: Testbed, small: str, user: str) -> str:
    """The files that QEMU has open of a cluster of this user's, once all copies are there."""
    cluster = Cluster(tb, small, "-w", "n1", user=user).wait_running()
    try:
        wait_until(lambda: list_copies(tb).count(f"{user} 400 ") >= 3, 120, "no copies were made")
        return tb.root("find /proc/$(pgrep -f '^qemu-system' | head -1)/fd -printf '%l\\n'", "n1")
    finally:
        cluster.close()
        tb.wait_no_jobs()


def test_the_second_start_of_each_user_reads_the_copy(cached: Testbed, small: str) -> None:
    start(cached, small, "student")
    lines = list_copies(cached).splitlines()
    assert lines[0] == "root 711 "
    assert "student 700 30001" in lines
    assert len([line for line in lines if line.startswith("student 400 30001/")]) == 3  # disk, kernel, initrd
    again = start(cached, small, "student")
    assert again.count(f"{CACHE}/30001/") >= 3
    assert "/images/data/" not in again
    theirs = start(cached, small, "teacher")
    assert f"{CACHE}/30001/" not in theirs
    assert "teacher 700" in list_copies(cached)
