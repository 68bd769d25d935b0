# SPDX-License-Identifier: Apache-2.0
"""What holds the job of a program: it ends with the program, with the last mention of it, and with no child."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pvc import Cluster
from pvc.errors import ConfigError, EndedError, GuestError, JobError, JobTimeoutError, PvcError
from pvc.ops.holder import Holder
from pvc.slurm.job import QueuedJob
from tests.unit.ops.worlds import make_record
from tests.waits import wait_until

pytestmark = pytest.mark.allow_run
# As the script of such an alloc: it tells a number and lasts as long as its input; then it leaves a mark.
READY = 'echo 7; cat >/dev/null; echo gone > "$0"'


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture
def holder(mark: Path) -> Iterator[Holder]:
    found = Holder(["sh", "-c", READY, os.fspath(mark)], {"PATH": os.environ["PATH"]})
    assert found.wait_ready(60) == 7
    yield found
    found.end()


def test_a_cluster_that_nobody_can_reach_any_more_is_closed_with_a_warning(holder: Holder, mark: Path) -> None:
    clusters = [Cluster(make_record(), holder)]
    with pytest.warns(ResourceWarning, match=r"<Cluster 7 \(web:2,db:1\)> was not closed"):
        clusters.clear()
    wait_until(mark.exists, lack="its job ends")


def test_one_that_was_closed_or_found_goes_without_a_word(holder: Holder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Cluster(make_record(), holder) as cluster:
            pass
        with pytest.raises(EndedError, match=r"^cluster 7 has ended: this program has closed it$"):
            cluster.control  # noqa: B018  it is the error that counts
        cluster.close()
        del cluster
        found = Cluster(make_record())
        del found
        gc.collect()


def test_a_forked_child_neither_ends_the_job_nor_keeps_it(holder: Holder, mark: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        holder.end()
        os.read(reader, 1)  # it goes on, as a child of a program that was killed does
        os._exit(0)
    os.close(reader)
    try:
        assert holder._process.poll() is None
        assert not mark.exists()
        holder.let_go()  # as the kernel does when the program is killed
        wait_until(mark.exists, lack="its job ends although the child lives")
    finally:
        os.close(writer)
        assert os.waitpid(child, 0)[1] == 0


def said(script: str, timeout_s: float | None = 60) -> PvcError:
    found = Holder(["sh", "-c", script], {"PATH": os.environ["PATH"]})
    try:
        with pytest.raises(PvcError) as caught:
            found.wait_ready(timeout_s)
        return caught.value
    finally:
        found.end()


@pytest.mark.parametrize(
    ("script", "kind", "text"),
    [
        (
            "echo 'pvc: n1: networks.yaml:3: wrong' >&2; echo 'hint: fix' >&2; exit 3",
            ConfigError,
            "n1: networks.yaml:3: wrong",
        ),
        (
            "echo 'pvc: no VM is left' >&2; echo 'salloc: Relinquishing job allocation 7' >&2; exit 7",
            GuestError,
            "no VM is left",
        ),
        (
            "echo 'salloc: Pending job allocation 7' >&2; echo 'salloc: error: no' >&2; exit 1",
            JobError,
            "salloc: error: no",
        ),
        ("echo 'salloc: Granted job allocation 7' >&2; exit 1", JobError, "salloc ended with 1"),
    ],
)
def test_what_the_launcher_said_keeps_its_class(script: str, kind: type[PvcError], text: str) -> None:
    error = said(script)
    assert type(error) is kind
    assert str(error) == text


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        (("PENDING", "Resources"), r"job 7 is pending \(Resources\)$"),
        (("RUNNING", "None"), r"job 7 is running$"),
        (None, r"Slurm has no job 7 any more$"),
    ],
)
def test_slurms_reason_is_in_a_time_out(
    monkeypatch: pytest.MonkeyPatch, jobs: Sequence[str] | None, words: str
) -> None:
    state, reason = jobs or ("", "")
    queue = [QueuedJob(7, "pvc", state, "me", "0:01", "", reason, "pvc web:2")] if jobs else []
    monkeypatch.setattr("pvc.ops.holder.read_queue", lambda: queue)
    found = Holder(
        ["sh", "-c", "echo 'salloc: Pending job allocation 7' >&2; sleep 1000"], {"PATH": os.environ["PATH"]}
    )
    try:
        wait_until(lambda: b"7" in found._read_stderr(), lack="it has said its number")
        with pytest.raises(TimeoutError, match=rf"^the VMs do not run after 0 s: {words}") as caught:
            found.wait_ready(0)
        assert isinstance(caught.value, JobTimeoutError)
    finally:
        os.killpg(found._process.pid, signal.SIGKILL)
        found.end()
