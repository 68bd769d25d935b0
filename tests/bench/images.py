# SPDX-License-Identifier: Apache-2.0
"""What images cost: bringing them in and looking them through, against cp(1) and sha256sum(1) of the same file
in turn; an overlay for each VM, against qemu-img(1); how much of a shared base the page cache holds for N readers; what
500 starts of VMs read from the file server, with and without copies on the node.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pvc.host.overlay import write_overlay
from pvc.images.cache import NodeCache, Outcome
from pvc.images.repository import Repositories
from pvc.images.transfer import Incoming
from pvc.images.verify import verify_store
from pvc.model.site import Repository
from pvc.plan.disks import plan_overlay
from tests.bench._rows import Row, row, spread
from tests.bench._server import Starts, file_server, forget, put_image

SIZE = 512 << 20
RUNS = 5
OVERLAYS = (1, 4, 16, 64)
READERS = (1, 4, 16)
_READ = 256 << 20
_CACHED = 64 << 20
_WAVES, _JOBS, _VMS = 20, 5, 5
Action = Callable[[], None]


def measure() -> Iterator[Row]:
    """On the file system of $TMPDIR (else /tmp), which should be the one that images are on."""
    with tempfile.TemporaryDirectory(prefix="pvc-bench-") as scratch:
        base = Path(scratch) / "base.raw"
        _fill(base)
        yield from _measure_repository(base, Path(scratch))
        yield from _measure_overlays(base, Path(scratch))
        yield from _measure_memory(base, Path(scratch))
        yield from _measure_cache(base, Path(scratch))


def _fill(path: Path) -> None:
    """Bytes that neither compress nor are zero."""
    with path.open("wb") as stream:
        for _ in range(SIZE >> 20):
            stream.write(os.urandom(1 << 20))
        # A partition table with one Linux partition: what holds nothing known is no disk.
        stream.seek(446)
        stream.write(struct.pack("<B3xB3xII", 0, 0x83, 2048, SIZE // 512 - 2048) + bytes(48) + b"\x55\xaa")
        stream.flush()
        os.fsync(stream.fileno())


def _measure_repository(base: Path, scratch: Path) -> Iterator[Row]:
    where = Repositories([Repository("bench", os.fspath(scratch / "repository"))])
    copy, number = scratch / "copy", iter(range(1000))

    def bring() -> None:
        where.import_file(Incoming(base, f"image{next(number)}"), _quiet)

    def wipe() -> None:
        copy.unlink(missing_ok=True)
        subprocess.run(["rm", "-rf", scratch / "repository"], check=True)

    def plain() -> None:
        subprocess.run(["cp", "--reflink=never", base, copy], check=True)
        subprocess.run(["sync", copy], check=True)

    yield _compare("import", bring, "cp, sync", plain, before=wipe)
    wipe()
    bring()
    yield _compare("verify", lambda: _verify(where), "sha256sum", lambda: _sum(base))


def _verify(where: Repositories) -> None:
    (verdict,) = verify_store(where.store("bench"), _quiet)
    assert verdict.problem is None, verdict


def _sum(path: Path) -> None:
    subprocess.run(["sha256sum", path], check=True, stdout=subprocess.DEVNULL)


def _compare(phase: str, ours: Action, name: str, theirs: Action, *, before: Action = lambda: None) -> Row:
    times: list[float] = []
    plain: list[float] = []
    for _ in range(RUNS):
        for action, kept in ((theirs, plain), (ours, times)):
            before()
            kept.append(_time(action))
    ratios = [own / other for own, other in zip(times, plain, strict=True)]
    rate = round((SIZE >> 20) / sorted(times)[RUNS // 2], 1)
    return row(phase, times=times, mib_s=rate, against=name, **spread("plain_s", plain), **spread("ratio", ratios, 3))


def _time(action: Action) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def _measure_overlays(base: Path, scratch: Path) -> Iterator[Row]:
    for count in OVERLAYS:
        paths = [scratch / f"{number}.qcow2" for number in range(count)]
        times, plain = [], []
        for _ in range(RUNS):
            times.append(_time(partial(_write_overlays, base, paths)))
            space = sum(path.stat().st_blocks * 512 for path in paths)
            _remove(paths)
            plain.append(_time(partial(_create_by_tool, base, paths)))
            _remove(paths)
        more: Row = {"bytes": space, "against": "qemu-img create"}
        yield row("overlays", vms=count, times=times, **spread("plain_s", plain), **more)


def _write_overlays(base: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        write_overlay(path, plan_overlay(os.fspath(base), "raw", SIZE))


def _create_by_tool(base: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, path], check=True)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()


def _measure_memory(base: Path, scratch: Path) -> Iterator[Row]:
    """Readers at once, each of its own overlay: what they read is in the page cache once."""
    for count in READERS:
        paths = [scratch / f"{number}.qcow2" for number in range(count)]
        _write_overlays(base, paths)
        with base.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = _cached_mib()
        argv = ["qemu-io", "-f", "qcow2", "-c", f"read -q 0 {_READ}"]
        begin = time.perf_counter()
        readers = [subprocess.Popen([*argv, path], stdout=subprocess.DEVNULL) for path in paths]
        assert all(reader.wait() == 0 for reader in readers)
        end = time.perf_counter()
        figures: Row = {"read_mib": count * (_READ >> 20), "cached_mib": round(_cached_mib() - before, 1)}
        yield row("page cache", vms=count, times=[end - begin], **figures)
        _remove(paths)


def _measure_cache(base: Path, scratch: Path) -> Iterator[Row]:
    """500 starts of VMs on one node, in waves between which the page cache is lost; with and without copies there."""
    with base.open("rb") as stream:
        data = stream.read(_CACHED)
    with file_server(scratch, 4 * _CACHED) as server:
        image = put_image(server, data)
        for cached in (False, True):
            directory = scratch / "copies"
            directory.mkdir(mode=0o700, exist_ok=True)
            cache = NodeCache(directory, 2 * _CACHED) if cached else None
            starts, times, before = Starts(image, _CACHED // 2, cache), [], server.read_bytes()
            for _ in range(_WAVES):
                times.append(starts.wave(_JOBS, _VMS))
                for path in (image, *directory.iterdir()):
                    forget(path)
            read = server.read_bytes() - before
            figures: Row = {
                "server_read_mib": round(read / (1 << 20), 1),
                "image_mib": _CACHED >> 20,
                "images_read": round(read / _CACHED, 2),
                "fills": starts.outcomes.count(Outcome.FILLED),
                "first_wave_s": round(times[0], 3),
                "fill_s": [round(each, 3) for each in starts.fill_s],
            }
            if cached:
                figures["budget_images_read"] = 1.1
            yield row("node cache" if cached else "no node cache", vms=_WAVES * _JOBS * _VMS, times=times, **figures)


def _cached_mib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Cached:")) / 1024


def _quiet(label: str, done: int, total: int) -> None:
    """Nobody watches."""
