# SPDX-License-Identifier: Apache-2.0
"""Roots of other Debian releases for a testbed's nodes, so that Slurm, QEMU, Python, etcd and Open vSwitch are theirs.

A root is made once by mmdebstrap(1), named after all that goes into it, and shared by all nodes, which see it
read-only. pvc's Python dependencies are in it as an environment of its own Python; pvc itself is the checkout.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pvc import files, run
from pvc.config import share
from pvc.errors import UsageError
from pvc.images import aptsources
from pvc.testbed.facts import parse_package_list
from pvc.testbed.layout import CHECKOUT, COMMANDS, ENVIRONMENT

Tell = Callable[[str], None]

# The Python that has pvc and its dependencies in such a root.
PYTHON = f"{ENVIRONMENT}/bin/python"
# Sections of conf/debian-packages.txt that are for nodes; what builds things in them is not.
_SECTIONS = ("on every node and on the login node", "the testbed", "images")
_LEFT_OUT = frozenset(
    {"libvirt-dev", "pkg-config", "python3-dev", "mmdebstrap", "fakeroot", "uidmap", "mtools", "fdisk"}
)
# The plug-in's headers; libvirt's module, which pip would have to compile; what newer releases package apart; and what
# people and tests use on nodes.
_BESIDES = ("libslurm-dev", "slurm-client", "python3-libvirt", "libvirt-daemon-driver-qemu", "virtiofsd")
_TRIED_WITH = ("iperf3", "libvirt-clients", "rsync")
# Raised when something else is made of the same lists.
_FORM = "2"
_BUILD_TIMEOUT_S = 1800.0


def find_cache() -> Path:
    """Where roots are kept: $XDG_CACHE_HOME/pvc/roots when set, else /var/cache/pvc/roots."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path("/var/cache")) / "pvc" / "roots"


def find_packages(text: str) -> tuple[str, ...]:
    """Of conf/debian-packages.txt, what a root needs: pure."""
    wanted = [part for part in text.split("\n# ") if part.split("\n", 1)[0] in _SECTIONS]
    listed = parse_package_list("\n".join(part.split("\n", 1)[1] for part in wanted))
    return tuple(sorted({*listed, *_BESIDES, *_TRIED_WITH} - _LEFT_OUT))


def find_dependencies(setup: str) -> tuple[str, ...]:
    """What pip installs for pvc, from the text of setup.cfg: pure."""
    parser = configparser.ConfigParser()
    parser.read_string(setup)
    lines = (line.strip() for line in parser["options"]["install_requires"].splitlines())
    return tuple(re.sub(r"\s+", "", line) for line in lines if line and not line.startswith("#"))


@dataclass(frozen=True)
class Root:
    """A root that was or can be made: what goes into it, and the directory that is named after that."""

    suite: str
    packages: tuple[str, ...]
    dependencies: tuple[str, ...]
    path: Path


def find_root(suite: str) -> Root:
    """The root of a Debian release, whether or not it is there.

    :raise UsageError: this is no name of a release.
    """
    if re.fullmatch(r"[a-z]+", suite) is None:
        raise UsageError(f"{suite!r} is no Debian release", hint="say its code name, as in --os trixie")
    top = share.find_share()
    packages = find_packages((top / "conf" / "debian-packages.txt").read_text())
    dependencies = find_dependencies((top / "setup.cfg").read_text())
    # A moving release is made again when this list changes, or by hand: rm -r the directory.
    key = hashlib.sha256("\n".join([_FORM, suite, *packages, *dependencies]).encode()).hexdigest()[:12]
    return Root(suite, packages, dependencies, find_cache() / f"{suite}-{key}")


def ensure_root(suite: str, tell: Tell) -> Path:
    """The root of a Debian release, made unless it is in the cache.

    :raise UsageError: this is no name of a release.
    :raise HostError: it cannot be made: no mirror, no such release, no space.
    """
    root = find_root(suite)
    if root.path.is_dir():
        return root.path
    sources = aptsources.read_sources(suite, ["main"], aptsources.read_codename(Path("/etc/os-release").read_text()))
    cache = root.path.parent
    cache.mkdir(parents=True, exist_ok=True)
    with files.locked(cache / f".{suite}.lock", timeout_s=_BUILD_TIMEOUT_S):
        if not root.path.is_dir():
            tell(f"making a root of Debian {suite}: some minutes, once")
            with tempfile.TemporaryDirectory(dir=cache, prefix=f".{suite}-") as scratch:
                _make(root, sources, Path(scratch))
                (Path(scratch) / "root").rename(root.path)
    return root.path


def _make(wanted: Root, sources: tuple[aptsources.Source, ...], scratch: Path) -> None:
    root, dependencies = scratch / "root", wanted.dependencies
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]
    argv += ['--aptopt=Apt::Install-Recommends "false"', *(f"--aptopt={line}" for line in aptsources.read_proxies())]
    # A release that moves may be past the date in its Release file on a mirror.
    argv += ['--aptopt=Acquire::Check-Valid-Until "false"', f"--include={','.join(wanted.packages)}"]
    argv += [wanted.suite, os.fspath(root)]
    lines = [source.line for source in sources if source.release == wanted.suite]
    run.run([*argv, *lines], timeout_s=_BUILD_TIMEOUT_S)
    root.chmod(0o755)
    version = run.run(["chroot", root, "/usr/bin/python3", "-c", "import sys; print(*sys.version_info[:2], sep='.')"])
    # This machine's pip knows the way to its index; the root may have no way out.
    wheels = scratch / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "-q", f"--dest={wheels}", "--only-binary=:all:"]
    pip += [f"--python-version={version.strip()}", *dependencies]
    run.run(pip, env=dict(os.environ), timeout_s=_BUILD_TIMEOUT_S)
    inside = root / "wheels"
    wheels.rename(inside)
    run.run(["chroot", root, "/usr/bin/python3", "-m", "venv", "--system-site-packages", ENVIRONMENT], timeout_s=300)
    install = [PYTHON, "-m", "pip", "install", "-q", "--no-index", "--find-links=/wheels", *dependencies]
    run.run(["chroot", root, *install], timeout_s=_BUILD_TIMEOUT_S)
    shutil.rmtree(inside)
    # Nodes have the checkout of their testbed there, and its commands beside the root's Python, which finds it.
    (root / CHECKOUT.lstrip("/")).mkdir()
    for name in COMMANDS:
        (root / ENVIRONMENT.lstrip("/") / "bin" / name).touch(mode=0o755)
    (site,) = (root / ENVIRONMENT.lstrip("/")).glob("lib/python3*/site-packages")
    (site / "pvc.pth").write_text(f"{CHECKOUT}\n")


def build_plugin(root: Path, checkout: Path, target: Path) -> None:
    """Compile the plug-in for the root's Slurm.

    :raise HostError: it does not compile, with what the compiler said.
    """
    with tempfile.TemporaryDirectory(prefix="pvc-spank-") as scratch:
        argv = ["make", "-s", "-j2", "-C", f"{checkout}/spank", f"BUILD={scratch}", f"SLURM={root}/usr/include"]
        run.run(argv, timeout_s=300.0)
        shutil.copy(Path(scratch) / "pvc.so", target)
