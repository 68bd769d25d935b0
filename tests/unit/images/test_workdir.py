# SPDX-License-Identifier: Apache-2.0
"""Directories for what is unfinished: gone at the end, and after a death with the next one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pvc.images.workdir import work_directory


def test_it_goes_with_its_owner_and_with_the_next_one(tmp_path: Path) -> None:
    with work_directory("x-", tmp_path) as alive:
        assert alive.stat().st_mode & 0o777 == 0o700
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            with work_directory("x-", tmp_path) as path:
                (path / "file").touch()
                os.utime(path, (0, 0))
                os.write(writing, path.name.encode())
                signal.pause()
        dead = tmp_path / os.read(reading, 100).decode()
        # Its owner lives.
        with work_directory("x-", tmp_path):
            assert (dead / "file").exists()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        (tmp_path / "other").mkdir()
        os.utime(alive, (0, 0))
        with work_directory("x-", tmp_path) as next_one:
            assert set(tmp_path.iterdir()) == {alive, next_one, tmp_path / "other"}
    assert list(tmp_path.iterdir()) == [tmp_path / "other"]
    os.close(reading)
    os.close(writing)
