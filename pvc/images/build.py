# SPDX-License-Identifier: Apache-2.0
"""Making an image from packages: mmdebstrap or mkosi, mke2fs, and nothing that needs a loop device.

    packages -> root.tar (a builder) -> file system (mke2fs -d) -> disk.qcow2 (qemu-img)
                                      -> kernel, initrd (bootfiles)

As root directly; as a user the builder maps or fakes root, and fakeroot keeps the owners for mke2fs.
"""

from __future__ import annotations

import json
import logging
import os
import pwd
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pvc import files, run
from pvc.errors import CommandError, HostError
from pvc.host import qemuimg
from pvc.host.exitcodes import Outcome, judge
from pvc.images import aptsources, bootfiles, mkosi, mmdebstrap, uefidisk
from pvc.images.recipe import Builder, Recipe, join_recipes, plan_stages
from pvc.images.recipefiles import EPOCH
from pvc.images.stage import BuildHost, StagePlan
from pvc.images.workdir import work_directory

LOG = logging.getLogger(__name__)

# Raised when the builder makes something else of the same recipe.
_BUILDER = 4
_TOOLS = {"mke2fs": "e2fsprogs", "qemu-img": "qemu-utils", "tar": "tar"}
_UUID_SPACE = uuid.UUID("5d0f7b0e-6f5c-4c0e-9c57-0d5c1f0e7a10")
_SWITCHES = ("/proc/sys/kernel/unprivileged_userns_clone", "/proc/sys/user/max_user_namespaces")
# What mmdebstrap and mkosi say when something that they ran has failed.
_ITS_OWN = re.compile(
    r"\u2023|I: |E: setup failed|E: command failed|E: run_chroot failed|E: mmdebstrap failed|W: hooklistener"
)
_NEEDED_SPACE = 3 << 30
_BUILD_TIMEOUT_S = 3600.0
_UEFI_ROOT = "/dev/vda2"
_ROOT = re.compile(r"\broot=/dev/vda(?!\w)")
_RESULT = ("disk.qcow2", "kernel", "initrd", "packages")

# Says what begins, for people who wait.
Step = Callable[[str], None]


@dataclass(frozen=True)
class BuiltImage:
    """Files of an image that was made; ``packages`` lists names and versions. No kernel: the disk boots itself.

    ``append`` is for the kernel beside the disk.
    """

    disk: Path
    kernel: Path | None
    initrd: Path | None
    append: str
    packages: Path
    cached: bool


@contextmanager
def built(
    lineage: Recipe | Sequence[Recipe], step: Step, *, cache: Path | None = None, fresh: bool = False
) -> Iterator[BuiltImage]:
    """Make the image of a recipe, or take it from ``cache``; without a cache its files go at the end.

    ``lineage``: what it extends (see ``load_lineage``) is made first, each recipe on the result of the one before, and
    kept in the cache for others that extend it. An image in the cache is good as long as recipes and mirrors' package
    lists are the same; ``fresh``: it is not.

    :raise HostError: a tool or disk space is missing, mirrors do not answer, or a package fails.
    """
    stages = plan_stages([lineage] if isinstance(lineage, Recipe) else lineage)
    recipe = join_recipes(stages)
    with _work_directory(cache) as work:
        arch, sources = _read_sources(recipe)
        keys = [_key(stages[:count], arch, sources) for count in range(1, len(stages) + 1)]
        key = keys[-1]
        step("asking the mirrors for their package lists")
        state = aptsources.read_state(sources, arch, work)
        hit = _find_cached(cache, key, state) if cache and not fresh else None
        if hit is not None:
            yield _result(recipe, hit, cached=True)
            return
        if state is None:
            raise HostError(
                f"no answer from the mirrors of Debian {recipe.suite}: " + ", ".join(s.uri for s in sources),
                hint="check the network, and that apt-get update works on this machine",
            )
        _check_tools(recipe)
        _check_rights(recipe)
        _check_space(work)
        _make_root(stages, _Kept(None if fresh else cache, keys, state[:16]), sources, work, step)
        _make_file_system(recipe, work, step)
        _make_boot_files(recipe, work, step)
        _make_disk(recipe, work, step)
        result = work / "result"
        if cache:
            result = _keep(result, cache, f"{key}-{state[:16]}")
        yield _result(recipe, result, cached=False)


def _key(stages: Sequence[Recipe], arch: str, sources: Sequence[aptsources.Source]) -> str:
    """A checksum of all that decides what is made, but for the packages themselves."""
    digests = " ".join(stage.digest() for stage in stages)
    return sha256(f"{_BUILDER} {digests} {arch} {[s.line for s in sources]}".encode()).hexdigest()[:16]


def _result(recipe: Recipe, directory: Path, *, cached: bool) -> BuiltImage:
    disk, kernel, initrd, packages = (directory / name for name in _RESULT)
    if recipe.boot == "uefi":
        return BuiltImage(disk, None, None, "", packages, cached)
    return BuiltImage(disk, kernel, initrd, recipe.append, packages, cached)


def _read_sources(recipe: Recipe) -> tuple[str, tuple[aptsources.Source, ...]]:
    codename = aptsources.read_codename(files.read_text(Path("/etc/os-release"), ""))
    arch = run.run(["dpkg", "--print-architecture"]).strip()
    return arch, aptsources.read_sources(recipe.suite, recipe.components, codename)


@contextmanager
def _work_directory(cache: Path | None) -> Iterator[Path]:
    """A directory of our own: beside the cache, so that the result can be renamed into it, or in TMPDIR."""
    with work_directory(".build-" if cache else "pvc-build-", cache) as path:
        try:
            # mmdebstrap's helpers run as another user when root is only mapped.
            path.chmod(0o755)
            yield path
        except OSError as err:
            raise HostError(f"cannot build the image in {path}") from err


def _find_cached(cache: Path, key: str, state: str | None) -> Path | None:
    if state is not None:
        exact = cache / f"{key}-{state[:16]}"
        return exact if exact.is_dir() else None
    found = sorted(cache.glob(f"{key}-*"), key=lambda path: path.stat().st_mtime)
    if found:
        LOG.warning("the mirrors do not answer: taking the image built at %s", time.ctime(found[-1].stat().st_mtime))
    return found[-1] if found else None


def _keep(result: Path, cache: Path, name: str) -> Path:
    """Name the result in the cache; older results of the same recipe go."""
    target = cache / name
    with suppress(OSError):
        os.rename(result, target)
    if not target.is_dir():
        raise HostError(f"cannot write to the cache {cache}")
    for other in cache.glob(f"{name.partition('-')[0]}-*"):
        if other != target:
            files.remove_tree(other)
    return target


def _check_tools(recipe: Recipe) -> None:
    wanted = _TOOLS | (uefidisk.TOOLS if recipe.boot == "uefi" else {})
    if recipe.builder is Builder.MKOSI:
        mkosi.check()
    else:
        wanted["mmdebstrap"] = "mmdebstrap"
    if os.geteuid() != 0:
        wanted["fakeroot"] = "fakeroot"
    missing = sorted({package for tool, package in wanted.items() if shutil.which(tool, path=run.PATH) is None})
    if missing:
        raise HostError(f"cannot build an image without {', '.join(missing)}", hint=f"apt install {' '.join(missing)}")


def _check_rights(recipe: Recipe) -> None:
    """A normal user becomes root of a user namespace, or mmdebstrap falls back to fakechroot."""
    falls_back = recipe.builder is Builder.MMDEBSTRAP and shutil.which("fakechroot", path=run.PATH)
    if os.geteuid() == 0 or falls_back:
        return
    user = pwd.getpwuid(os.geteuid()).pw_name
    texts = {path: files.read_text(Path(path), "") for path in ("/etc/subuid", "/etc/subgid", *_SWITCHES)}
    obstacles = find_obstacles(user, os.geteuid(), texts)
    if shutil.which("newuidmap", path=run.PATH) is None:
        obstacles.append("there is no newuidmap (package uidmap)")
    if obstacles:
        raise HostError(
            f"cannot build an image as {user}: {'; '.join(obstacles)}",
            hint=f"the administrator can do: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user} "
            "(other numbers than other users have); or build the image as root",
        )


def find_obstacles(user: str, uid: int, texts: Mapping[str, str]) -> list[str]:
    """Why ``user`` cannot be root in a namespace of many users, from the files that decide it: path to text."""
    found = []
    for path in ("/etc/subuid", "/etc/subgid"):
        ranges = [line.split(":") for line in texts[path].splitlines()]
        # A distribution's users and groups have numbers up to 65534.
        if not any(
            len(each) == 3 and each[0] in (user, str(uid)) and each[2].isdecimal() and int(each[2]) >= 65536
            for each in ranges
        ):
            found.append(f"{path} gives {user} no 65536 numbers")
    found += [f"{path} is 0, so there are no user namespaces" for path in _SWITCHES if texts[path].strip() == "0"]
    return found


def _check_space(work: Path) -> None:
    free = shutil.disk_usage(work).free
    if free < _NEEDED_SPACE:
        raise HostError(
            f"{work.parent} has {free >> 20} MiB free; building an image needs {_NEEDED_SPACE >> 20} MiB",
            hint="name another place: --cache DIR, or TMPDIR=DIR",
        )


def _environment(work: Path) -> dict[str, str]:
    """What builders need of ours: proxies, and temporary files on the disk that was checked for space."""
    kept = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    return {**run.BASE_ENV, **kept, "TMPDIR": os.fspath(work), "HOME": os.environ.get("HOME", "/")}


# --- packages


@dataclass(frozen=True)
class _Kept:
    """Results of stages in a cache, by the keys of all stages and the state of the mirrors."""

    cache: Path | None
    keys: Sequence[str]
    state: str

    def path(self, number: int) -> Path | None:
        """Where the result of a stage is, whether or not it is there."""
        return self.cache / f"stage-{self.keys[number]}-{self.state}.tar.zst" if self.cache else None

    def find(self) -> int:
        """How many stages need not be done, of all but the last."""
        done = [n for n in range(1, len(self.keys)) if (path := self.path(n - 1)) is not None and path.is_file()]
        return max(done, default=0)


def _make_root(
    stages: Sequence[Recipe], kept: _Kept, sources: tuple[aptsources.Source, ...], work: Path, step: Step
) -> None:
    """Write work/root.tar: the guest's files with packages, recipe's files, and commands done.

    Whatever is younger than work/begin was made by the build: a stage from the cache brings its own beginning.
    """
    done = kept.find()
    begin = work / "begin"
    begin.touch()
    os.utime(begin, (time.time() - 2, time.time() - 2))
    if done:
        source = kept.path(done - 1)
        assert source is not None
        step("taking what it extends from the cache")
        run.run(["zstd", "-q", "-d", "-o", work / "root.tar", source], timeout_s=_BUILD_TIMEOUT_S)
        os.utime(begin, (source.stat().st_mtime, source.stat().st_mtime))
    for number in range(done, len(stages)):
        if number:
            (work / "root.tar").rename(work / "below.tar")
        _run_stage(_plan_stage(stages[: number + 1], sources, work), work, step)
        (work / "below.tar").unlink(missing_ok=True)
        target = kept.path(number)
        if target is not None and number < len(stages) - 1:
            _keep_stage(work, target, step)


def _keep_stage(work: Path, target: Path, step: Step) -> None:
    """Name the result so far in the cache; older ones of the same recipes go."""
    step("keeping it for recipes that extend the same")
    packed = work / "stage.tar.zst"
    run.run(["zstd", "-q", "-1", "-T0", "-f", work / "root.tar", "-o", packed], timeout_s=_BUILD_TIMEOUT_S)
    begin = (work / "begin").stat().st_mtime
    os.utime(packed, (begin, begin))
    os.rename(packed, target)
    for other in target.parent.glob(f"{target.name[:22]}-*"):
        if other != target:
            other.unlink(missing_ok=True)


def _plan_stage(stages: Sequence[Recipe], sources: Sequence[aptsources.Source], work: Path) -> StagePlan:
    host = BuildHost(os.geteuid() == 0, aptsources.read_proxies())
    if stages[-1].builder is Builder.MKOSI:
        return mkosi.plan_stage(stages, sources, work, host, mkosi.find_mkosi())
    return mmdebstrap.plan_stage(stages, sources, work, host)


def _run_stage(plan: StagePlan, work: Path, step: Step) -> None:
    """Write work/root.tar as planned."""
    for name, content in plan.files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if content.startswith(b"#!"):
            path.chmod(0o755)
    _watch(plan, work, step)
    os.rename(work / plan.result, work / "root.tar")
    files.remove_tree(work / "mkosi")


def _watch(plan: StagePlan, work: Path, step: Step) -> None:
    """Run the builder, telling its steps.

    :raise CommandError: it failed; the error has its last words.
    """
    # Its children and what it mounts have to go with us, too: it is killed before it could end them.
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--"] if os.geteuid() == 0 else []
    process = run.spawn(run.bound([*alone, *plan.argv]), env=_environment(work), stdout=run.DEVNULL, stderr=run.PIPE)
    assert process.stderr is not None
    last: list[str] = []
    try:
        with process.stderr:
            for raw in process.stderr:
                line = raw.decode(errors="replace").rstrip()
                LOG.debug("%s", line)
                last = [*last[-30:], line] if line else last
                if text := plan.tell(line):
                    step(text)
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if judge(plan.builder, code) is Outcome.FAILED:
        for line in last:
            LOG.info("%s", line)
        raise CommandError([plan.builder], code, find_error(last), hint="pvc -vv image build")


def find_error(lines: Sequence[str]) -> str:
    """What a builder's last lines say that went wrong: apt's first complaint, else the last that is not its own."""
    others = [line for line in lines if not _ITS_OWN.match(line)]
    complaints = [line for line in others if line.startswith(("E:", "W:"))]
    return (complaints[:1] or others[-1:] or list(lines[-1:]) or ["no message"])[0]


# --- file system

# $1 work directory, $2 size in KiB, $3 UUID, $4 time of what is younger than the file $1/begin, $5 options of tar.
# The journal is small: the disk is an overlay's base. Nothing of the inode tables has to be written, neither here
# nor by the guest: the file is all zeros. Days in /etc/shadow are those of the build; logs tell its times.
# A guest that enlarges its root needs room in the journal for all blocks that are reserved for descriptors (Linux 6.1,
# fs/ext4/resize.c): of 16 MiB a transaction has 1024 blocks, and mke2fs reserves 1023 where nothing is said. Up to 2
# TiB need 255; a disk of more is enlarged without them.
_DISK_SCRIPT = """
cd "$1"
mkdir root result
tar -xpf root.tar -C root --numeric-owner --exclude='./dev/*' $5
rm root.tar
mv root/var/lib/pvc-packages result/packages
mkdir boot
for file in root/boot/vmlinu* root/boot/initrd* root/boot/System.map*; do
    [ ! -f "$file" ] || mv "$file" boot/
done
rm -f root/vmlinuz root/vmlinuz.old root/initrd.img root/initrd.img.old root/etc/hostname
rm -f root/var/cache/ldconfig/aux-cache root/var/cache/debconf/*-old root/var/lib/dpkg/*-old
rm -f root/etc/passwd- root/etc/group- root/etc/shadow- root/etc/gshadow- root/etc/subuid- root/etc/subgid-
find root/var/log -type f -exec truncate -s 0 {} +
sed -i "s/^\\([^:]*:[^:]*:\\)[0-9][0-9]*:/\\1$(($4 / 86400)):/" root/etc/shadow
: > root/etc/machine-id
find root -newer begin -exec touch -h -d "@$4" {} +
export E2FSPROGS_FAKE_TIME="$4"
most=$((${2%k} * 2))
[ $most -gt $((2 << 30)) ] || most=$((2 << 30))
mke2fs -q -F -t ext4 -L root -m 0 -i 65536 -J size=16 -U "$3" \
    -E assume_storage_prezeroed=1,hash_seed="$3",resize=${most}k -d root disk.raw "$2"
# mke2fs takes times from its sources, where those of change and access are of now.
dumpe2fs disk.raw 2>/dev/null | awk -v time="@$4" '
    /^Inodes per group:/ { size = $4 }
    /^Group [0-9]+:/ { group = $2 + 0 }
    /^  Free inodes:/ {
        sub("^  Free inodes: *", "")
        next_used = group * size + 1
        count = split($0, free, ", *")
        for (i = 1; i <= count; i++) {
            split(free[i], ends, "-")
            if (ends[1] == "") continue
            for (; next_used < ends[1]; next_used++) set()
            next_used = (ends[2] == "" ? ends[1] : ends[2]) + 1
        }
        for (; next_used <= (group + 1) * size; next_used++) set()
    }
    function set() {
        if (next_used != 2 && next_used < 11) return
        print "sif <" next_used "> atime " time
        print "sif <" next_used "> ctime " time
        print "sif <" next_used "> crtime " time
    }' > times
debugfs -w -f times disk.raw > /dev/null 2> times.log || { cat times.log >&2; exit 1; }
"""


def _make_file_system(recipe: Recipe, work: Path, step: Step) -> None:
    """Turn work/root.tar into the file system work/disk.raw; work/root and work/boot stay for the boot files."""
    step("making the file system")
    root = os.geteuid() == 0
    xattrs = "--xattrs --xattrs-include=security.capability" if root else ""
    script = _DISK_SCRIPT.replace("$5", xattrs)
    size = recipe.size_bytes - (uefidisk.OVERHEAD if recipe.boot == "uefi" else 0)
    argv = ["sh", "-euc", script, "sh", os.fspath(work), f"{size // 1024}k", str(_identity(recipe)), str(EPOCH)]
    run.run(argv if root else ["fakeroot", "--", *argv], env=_environment(work), timeout_s=_BUILD_TIMEOUT_S)


def _identity(recipe: Recipe) -> uuid.UUID:
    return uuid.uuid5(_UUID_SPACE, recipe.digest())


def _make_disk(recipe: Recipe, work: Path, step: Step) -> None:
    """Turn work/disk.raw into work/result/disk.qcow2, with a boot loader before it where the recipe wants one."""
    step("writing the disk")
    raw, result = work / "disk.raw", work / "result"
    if recipe.boot == "uefi":
        shim, grub = uefidisk.find_loaders(work / "root")
        append = _ROOT.sub(f"root={_UEFI_ROOT}", recipe.append)
        parts = uefidisk.UefiParts(shim, grub, result / "kernel", result / "initrd", append, raw)
        whole = work / "whole.raw"
        uefidisk.make_uefi_disk(whole, parts, _identity(recipe), work)
        raw.unlink()
        raw = whole
        for name in ("kernel", "initrd"):
            (result / name).unlink()
    qemuimg.convert(raw, "raw", result / "disk.qcow2", "qcow2")
    raw.unlink()


# --- kernel and initrd


def _make_boot_files(recipe: Recipe, work: Path, step: Step) -> None:
    """Write work/result/kernel and initrd."""
    uefi = recipe.boot == "uefi"
    step("making the initrd" if uefi else "unpacking the kernel and making its initrd")
    kernels = sorted((work / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise HostError("the recipe installs no kernel", hint="add linux-image-amd64 to its packages")
    version = kernels[-1].name.removeprefix("vmlinuz-")
    kernel = kernels[-1].read_bytes()
    # Firmware starts the kernel as its package has it, and as it is signed.
    (work / "result" / "kernel").write_bytes(kernel if uefi else bootfiles.unpack_kernel(kernel))
    if recipe.initrd is None:
        source = work / "boot" / f"initrd.img-{version}"
        if not source.is_file():
            raise HostError(f"the kernel package {version} made no initrd, and the recipe asks for none of pvc's")
        shutil.move(source, work / "result" / "initrd")
    else:
        wanted = recipe.initrd
        initrd = bootfiles.make_initrd(work / "root", version, wanted.modules, wanted.others, "2" if uefi else "")
        (work / "result" / "initrd").write_bytes(initrd)
    facts = {"kernel": version, "built": int(time.time()), "suite": recipe.suite}
    (work / "result" / "facts.json").write_text(json.dumps(facts) + "\n")
