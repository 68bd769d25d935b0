# SPDX-License-Identifier: Apache-2.0
"""Set-ups that begin late, or while somebody looks for orphans: run by test_node.py like node_world.py."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading

from pvc.node import setup, teardown
from pvc.node.context import read_boot_id
from pvc.node.reclaim import is_still, reclaim
from pvc.state.ledger import Ledger, Record
from tests.host.node_world import DATA_PATH, REQUEST, RUNTIME, STATE, assert_clean, child, context, job, run, snapshot
from tests.waits import wait_until


def begun_now() -> None:
    """A set-up that has not written its record yet is nothing that an earlier boot left."""
    before = snapshot()
    ledger = Ledger(STATE, 12)
    with context().job_lock(12):
        ledger.path.mkdir()
        looking = threading.Thread(target=reclaim, args=(context(), None))
        looking.start()
        wait_until(_is_somebody_at_the_lock, bear=(OSError,))
        ledger.open(Record(12, 65534, read_boot_id()))
    looking.join()
    assert ledger.exists()
    teardown.tear_down(context(), 12)
    assert_clean(before)


def _is_somebody_at_the_lock() -> bool:
    """Besides who has it."""
    return sum(os.path.realpath(fd.path) == f"{RUNTIME}/locks/12" for fd in os.scandir("/proc/self/fd")) > 1


def set_up_later() -> None:
    """What steps ask is done once, whether it worked or was refused; what was cut short is done again."""
    before = snapshot()
    for text, answer in ((REQUEST, "2 VMs"), ("1;cpus=2;nope:2", "refused")):
        assert setup.set_up(context(), job(), text, again=False).startswith(answer)
        record = Ledger(STATE, 12).read_record()
        assert setup.set_up(context(), job(), text, again=False) == "was there"
        assert Ledger(STATE, 12).read_record() == record
        teardown.tear_down(context(), 12)
        assert_clean(before)
    assert child("setup", 5) == -signal.SIGKILL
    assert setup.set_up(context(), job(), REQUEST, again=False).startswith("2 VMs")
    # Put back into the queue and started again while somebody looked at what it was: that is not undone.
    old = Ledger(STATE, 12).read_record()
    assert setup.set_up(context(), job(), REQUEST).startswith("2 VMs")
    assert old is not None
    assert teardown.tear_down(context(), 12, is_still(old)) == "left as it is"
    assert Ledger(STATE, 12).read_ready() is not None
    teardown.tear_down(context(), 12)
    assert_clean(before)


def written_by_others() -> None:
    """What 0.1.0 set up is undone; what a later major version did is looked at once, and stays until root says so."""
    before = snapshot()
    setup.set_up(context(), job(), REQUEST)
    ledger = Ledger(STATE, 12)
    texts = {path: path.read_text() for path in ledger.path.iterdir()}
    for path, text in texts.items():
        path.write_text(re.sub(r'"version":"1[.]0"', '"version":"2.0"', text))
    here = context()
    for _ in range(2):
        assert reclaim(here, None).clean
    assert teardown.tear_down(here, 12).startswith("left as it is: ")
    assert sorted(texts) == sorted(ledger.path.iterdir())
    # Without a version, as 0.1.0 wrote it
    for path, text in texts.items():
        path.write_text(re.sub(r'[{]"version":"1[.]0"[}]\n|,?"version":"1[.]0"', "", text))
    assert ledger.read_record() is not None
    assert "version" not in "".join(path.read_text() for path in ledger.path.iterdir())
    assert teardown.tear_down(here, 12) == "undone"
    assert_clean(before)


SCENARIOS = (begun_now, set_up_later, written_by_others)


if __name__ == "__main__":
    os.environ[DATA_PATH] = sys.argv[2]
    run(next(each for each in SCENARIOS if each.__name__ == sys.argv[1]))
