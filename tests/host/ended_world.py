# SPDX-License-Identifier: Apache-2.0
"""What a user leaves, holds or uses up while a job of theirs begins and ends on a node; run by test_ended.py.

    python -m tests.host.ended_world SCENARIO

A node of its own as in node_world.py. Its jobs belong to uid 65534, whose processes these are, too.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pvc.errors import ConfigError, HostError
from pvc.host import ended
from pvc.node import requests, teardown
from pvc.node.reclaim import reclaim
from pvc.node.sweeper import Sweeper
from pvc.state.ledger import Ledger, Refusal
from tests.host.node_world import CONF, REQUEST, ROOT, RUNS, STATE, context, run
from tests.waits import wait_until

USER, OTHER = 65534, 12345
NASTY = b"\n\x1b]0;owned\x07\xff\xc2\x9b31m"
_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_NOSUID, _MS_NODEV = 2, 4


# --- what users do -------------------------------------------------------------------------------------------------


@contextmanager
def users(script: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program of the user's, that has said "ready" and runs until the end."""
    argv = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "/usr/bin/python3", "-I", "-c"]
    with subprocess.Popen([*argv, script, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def as_user(script: str, *words: str) -> None:
    argv = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "/usr/bin/python3", "-I", "-c"]
    subprocess.run([*argv, script, *words], check=True, timeout=120)


DEEP = """
import os, sys
os.chdir(sys.argv[1])
for _ in range(int(sys.argv[2])):
    os.mkdir("d"); os.chdir("d")
"""
MANY = """
import os, sys
os.chdir(sys.argv[1])
for number in range(int(sys.argv[2])):
    os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY))
"""
# From the inside, with its own descriptor of each directory: it does not matter where these are.
RACING = """
import os, sys, threading, time
lock, open_now = threading.Lock(), [os.open(sys.argv[1], os.O_RDONLY)]
def make(number):
    while True:
        number += 4
        time.sleep(0.002)  # the machine is others', too
        with lock:
            fd = open_now[number % len(open_now)]
        try:
            os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.mkdir(f"d{number}", dir_fd=fd)
            below = os.open(f"d{number}", os.O_RDONLY, dir_fd=fd)
        except OSError:
            continue
        with lock:
            if len(open_now) < 200:
                open_now.append(below)
            elif sys.argv[2] == "on":
                open_now.append(below)
                os.close(open_now.pop(0))
            else:
                os.close(below)
for each in range(4):
    threading.Thread(target=make, args=(each,), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""
INSIDE = """
import os, signal, sys
os.chdir(sys.argv[1]); os.mkdir("here"); os.chdir("here")
kept = open("open", "w"); kept.write("x" * 100000); kept.flush()
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
# A mount namespace of the user's own, in which something is mounted on the job's directories.
HIDDEN = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1]); os.makedirs("a/b")
uid = os.getuid()
assert libc.unshare(0x10000000 | 0x00020000) == 0, ctypes.get_errno()
open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
assert libc.mount(b"/usr", b"a/b", None, 4096 | 16384, None) == 0, ctypes.get_errno()
assert libc.mount(b"none", b"a", b"tmpfs", 0, None) == 0, ctypes.get_errno()
print("ready", flush=True)
__import__("threading").Event().wait()
"""


def set_batch(key: str, value: str) -> None:
    data = json.loads((CONF / "batch.yaml").read_text())
    data["settings"][key] = value
    (CONF / "batch.yaml").write_text(json.dumps(data))


def fill(place: Path) -> None:
    """As a user can who may write anywhere on that file system."""
    with (place / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def use_inodes(place: Path) -> None:
    for number in range(1000):
        (place / f"inode{number}").mkdir()


@contextmanager
def serving(path: bytes, *, options: str = "") -> Iterator[None]:
    """A FUSE file system of the user's on ``path``, by what fusermount(1) does; nobody ever answers for it."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={device},rootmode=40000,user_id={USER},group_id={USER}{options}"
    assert _LIBC.mount(b"user", path, b"fuse.slow", _MS_NOSUID | _MS_NODEV, data.encode()) == 0, ctypes.get_errno()
    try:
        yield
    finally:
        os.close(device)


def is_mounted(path: bytes) -> bool:
    # Only newlines, blanks and backslashes are written in another way (proc_pid_mountinfo(5)).
    text = path.replace(b"\\", b"\\134").replace(b"\n", b"\\012").replace(b" ", b"\\040").replace(b"\t", b"\\011")
    return any(line.split(b" ")[4:5] == [text] for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n"))


# --- what must be --------------------------------------------------------------------------------------------------


def ask(verb: str, job_id: int = 12, uid: int = USER, **more: str) -> str:
    """What pvc-node says to Slurm's request, which is no fault of the node."""
    values = slurm(job_id, uid) if verb == "setup" else {"SLURM_JOB_ID": str(job_id)}
    code, said = requests.handle(context(), verb, {**values, **more})
    assert code == 0, said
    return said


def begin(job_id: int = 12, uid: int = USER, **more: str) -> Path:
    """A job's directory after a set-up by Slurm's request, which is no fault of the node."""
    said = ask("setup", job_id, uid, **more)
    assert Ledger(STATE, job_id).read_ready() is not None, said
    return RUNS / str(job_id)


def end(job_id: int = 12) -> None:
    """A tear-down: no fault of the node, whatever there is, and all of the job's is gone but what is to be swept."""
    assert ask("teardown", job_id) == "undone"
    assert not Ledger(STATE, job_id).exists()
    assert str(job_id) not in os.listdir(RUNS)
    assert not Path(f"/run/netns/pvc-{job_id}").exists()


def slurm(job_id: int, uid: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": str(job_id),
        **dict.fromkeys(("SLURM_JOB_UID", "SLURM_JOB_GID"), str(uid)),
        "SLURM_NODELIST": "n[1-3]",
        "SLURM_JOB_CPUS_PER_NODE": "4(x3)",
        "SLURMD_NODENAME": "n1",
        "SPANK_PVC_REQUEST": REQUEST,
    }


def read_refusal(job_id: int) -> Refusal:
    record = context().read_record(job_id)
    assert record is not None
    assert record.refusal is not None
    return record.refusal


def sweep_all() -> None:
    """What the daemon does in the background, to its end: nothing is left."""
    Sweeper(context()).start()
    wait_until(lambda: ended.is_swept(RUNS))


def serve_others() -> None:
    """The honest twins: the same user's next job, which may have the same number, and another user's."""
    begin()
    begin(13, OTHER)
    for job_id in (12, 13):
        end(job_id)


# --- scenarios -----------------------------------------------------------------------------------------------------


def deep() -> None:
    """1,500 directories in one another."""
    as_user(DEEP, str(begin()), "1500")
    end()
    serve_others()
    sweep_all()


def many() -> None:
    """More files than a tear-down has time for: it takes none of its own for them."""
    as_user(MANY, str(begin()), "30000")
    end()
    assert len(os.listdir(RUNS / ended.NAME)) == 1
    (aside,) = (RUNS / ended.NAME).iterdir()
    assert len(os.listdir(aside)) == 30000
    serve_others()
    sweep_all()


def racing() -> None:
    """A process that is not the job's goes on making things in 200 directories that it has open."""
    with users(RACING, str(begin()), "stay"):
        wait_until(lambda: len(list(RUNS.glob("12/*/*"))) > 20)
        end()
        serve_others()
        sweep_all()
        # What it has open is of no use: nothing new appears.
        time.sleep(0.3)
        assert os.listdir(RUNS) == [ended.NAME]
        assert ended.is_swept(RUNS)


def growing() -> None:
    """The same, always in the newest directories: as long as that goes on there may be more, and not afterwards."""
    with users(RACING, str(begin()), "on"):
        wait_until(lambda: len(list(RUNS.glob("12/*/*"))) > 20)
        sweeper = Sweeper(context())
        sweeper.start()
        end()
        sweeper.wake()
        serve_others()
        assert os.listdir(RUNS) == [ended.NAME]
    sweeper.wake()
    wait_until(lambda: ended.is_swept(RUNS))
    serve_others()


def reclaimed() -> None:
    """A node that crashed meanwhile: what is found of an earlier boot is undone just the same."""
    directory = begin()
    as_user(DEEP, str(directory), "1500")
    ledger = Ledger(STATE, 12)
    record = ledger.read_record()
    assert record is not None
    ledger.write_record(replace(record, boot="another"))
    with users(RACING, str(directory), "on"):
        assert reclaim(context(), "n1").clean
    assert os.listdir(RUNS) == [ended.NAME]
    serve_others()
    sweep_all()


def names() -> None:
    """Names that command terminals, or are no text, and the longest there may be."""
    top = os.fsencode(begin())
    for name in (NASTY, b"n" * 255, b"-rf", b"\xff" * 255, b"...", b"$(reboot)"):
        os.mkdir(top + b"/" + name)
        (Path(os.fsdecode(top + b"/" + name)) / "file").touch()
    os.mkfifo(top + b"/fifo")
    os.symlink("/etc", top + b"/" + NASTY + b"/link")
    end()
    serve_others()
    sweep_all()
    assert Path("/etc/passwd").exists()


def inside() -> None:
    """A stopped process that stands in the directory and has a file of it open."""
    with users(INSIDE, str(begin())):
        end()
        serve_others()
        sweep_all()


def hidden_mounts() -> None:
    """Mounts in a namespace of the user's pin nothing."""
    with users(HIDDEN, str(begin())):
        end()
        serve_others()
        sweep_all()
    assert Path("/usr/bin").exists()


def slow_file_systems() -> None:
    """File systems that never answer: in the job's directory, on it, several on one another, with names of no text."""
    for options in ("", ",allow_other"):
        directory = os.fsencode(begin())
        places = [directory + b"/" + NASTY, directory + b"/a/b", directory]
        for place in places[:2]:
            os.makedirs(place)
        with serving(places[0], options=options), serving(places[1], options=options):
            assert is_mounted(places[1])
            with serving(directory, options=options), serving(directory, options=options):
                end()
                serve_others()
                sweep_all()
                assert not any(is_mounted(place) for place in places)
                assert b"fuse.slow" not in Path("/proc/self/mountinfo").read_bytes()


def slow_cache() -> None:
    """The same on the directory for copies of images, which is there before the next job and after it."""
    set_batch("image-cache-dir", str(ROOT / "images"))
    begin()
    end()
    copies = ROOT / "images" / str(USER)
    as_user("import os, sys; open(sys.argv[1] + '/copy', 'w'); os.chmod(sys.argv[1], 0)", str(copies))
    for options in ("", ",allow_other"):
        with serving(os.fsencode(copies), options=options):
            serve_others()
            assert not is_mounted(os.fsencode(copies))
    assert os.listdir(copies) == ["copy"]
    assert copies.stat().st_mode & 0o777 == 0o700


def names_of_mounts() -> None:
    """A mount's name that is no text, anywhere on the node, is nothing to a set-up."""
    place = ROOT.parent / "elsewhere"
    for number, name in enumerate((b"\xff\xfe", b"a\x0bb\x1cc\xc2\x85d\xe2\x80\xa8e")):
        where = os.fsencode(place / str(number)) + b"/" + name
        os.makedirs(where)
        with serving(where):
            serve_others()
            subprocess.run(["umount", "-l", where], check=True)


def full_disk() -> None:
    """A user has filled the disk of the job directories, and that of the node's records: no job can begin there now."""
    for place in (RUNS, STATE):
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=200,mode=755", "tmpfs", place], check=True)
    as_user(MANY, str(begin()), "10")
    begin(14)
    for place in (RUNS, STATE):
        with pytest.raises(OSError, match="No space"):
            fill(place)
        with pytest.raises(OSError, match="No space"):
            use_inodes(place)
    assert ask("setup", 13, OTHER).startswith("refused: ")
    assert "No space left" in read_refusal(13).message
    for job_id in (12, 13, 14):
        ask("teardown", job_id)
    for place in (RUNS, STATE):
        (place / "filler").unlink()
        for path in place.glob("inode*"):
            path.rmdir()
    for job_id in (12, 13, 14):
        teardown.tear_down(context(), job_id)
        assert context().read_record(job_id) is None
    serve_others()
    sweep_all()


def no_processes() -> None:
    """A user has all processes that the node may have: as the kernel says it, for the machine is others', too."""

    def refuse_process(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def refuse_thread(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    begin()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse_process)
        patch.setattr(threading.Thread, "start", refuse_thread)
        assert ask("setup", 13, OTHER).startswith("refused: ")
        ask("teardown")
    for job_id in (12, 13):
        teardown.tear_down(context(), job_id)
    serve_others()


def taken_place() -> None:
    """Somebody was first to make the directory of the jobs' directories, where anybody may."""
    place = Path("/var/tmp/first")
    place.mkdir(mode=0o1777)
    place.chmod(0o1777)
    set_batch("run-dir", str(place / "pvc"))
    as_user("import os, sys; os.makedirs(sys.argv[1] + '/12/mine')", str(place / "pvc"))
    begin()
    facts = (place / "pvc").stat()
    assert (facts.st_uid, facts.st_mode & 0o022) == (0, 0)
    assert os.listdir(place / "pvc" / "12") == []
    # What was there is its owner's still.
    (other,) = (entry for entry in place.iterdir() if entry.name != "pvc")
    assert other.stat().st_uid == USER
    assert (other / "12" / "mine").is_dir()
    ask("teardown")


def place_of_others() -> None:
    """Who can write above the directory of the jobs' directories can exchange it: refused, and no fault of the node."""
    place = Path("/var/tmp/scratch")
    place.mkdir()
    set_batch("run-dir", str(place / "pvc"))
    for uid, gid, mode in (0, USER, 0o775), (0, 0, 0o777), (USER, 0, 0o755):
        os.chown(place, uid, gid)
        place.chmod(mode)
        assert ask("setup").startswith("refused: ")
        refusal = read_refusal(12)
        assert refusal.exit_code == ConfigError.exit_code
        assert f"run-dir: {place}/pvc must be a directory of root that only root can write to" in refusal.message
        assert "pvc doctor --node" in (refusal.hint or "")
        # Nothing was made, so nothing is left.
        assert ask("teardown") == "undone"
    os.chown(place, 0, 0)
    place.chmod(0o1777)
    begin()
    # It becomes so while a job runs: the job's directory is kept until it is mended.
    place.chmod(0o777)
    assert ask("teardown") == "undone, but for its directory"
    assert (place / "pvc" / "12").is_dir()
    place.chmod(0o755)
    assert teardown.tear_down(context(), 12) == "undone"
    assert os.listdir(place / "pvc") == []


def killed() -> None:
    """A sweep that is killed again and again comes to its end."""
    as_user(DEEP, str(begin()), "3000")
    end()
    for _ in range(5):
        child = os.fork()
        if child == 0:
            ended.sweep(RUNS)
            os._exit(0)
        time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    sweep_all()


def broken_disk() -> None:
    """What is no user's doing is a fault of the node, as ever."""
    begin()
    subprocess.run(["mount", "--bind", RUNS, RUNS], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", RUNS], check=True)
    (RUNS / "12").stat()
    with pytest.raises(HostError, match="Read-only"):
        teardown.tear_down(context(), 12)
    subprocess.run(["umount", RUNS], check=True)
    end()
    serve_others()


SCENARIOS: tuple[Callable[[], None], ...] = (
    deep,
    many,
    racing,
    growing,
    reclaimed,
    names,
    inside,
    hidden_mounts,
    slow_file_systems,
    slow_cache,
    names_of_mounts,
    full_disk,
    no_processes,
    taken_place,
    place_of_others,
    killed,
    broken_disk,
)


if __name__ == "__main__":
    run(next(each for each in SCENARIOS if each.__name__ == sys.argv[1]))
