# SPDX-License-Identifier: Apache-2.0
"""The image that pvc builds on a real (emulated) machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pvc.host.seed import write_seed
from pvc.images import build
from pvc.images.image import Image
from pvc.images.recipe import Builder, find_recipe, load_lineage
from pvc.images.repository import Repositories
from pvc.images.resolve import resolve_template
from pvc.images.transfer import Incoming
from pvc.images.workdir import work_directory
from pvc.model.node import Nic
from pvc.model.site import Template
from pvc.model.vm import VmTemplate
from pvc.plan.cloudinit import SeedSpec, plan_seed
from tests.guests import DEFAULT_CACHE, mkosi_directory
from tests.unit.images.disks import quiet, repositories
from tests.vm.harness import free_port
from tests.waits import wait_until

pytestmark = pytest.mark.vm

NIC = Nic("nat", "52:54:00:00:00:07", 1400, "10.0.2.15/24", "10.0.2.2", 0, "fd00:c8::8/64")
# Emulation on a busy machine: what matters is that it comes up, how soon is for the benchmarks.
BOOT_S = 600.0


class Guest:
    """One VM with a NoCloud seed, a network of QEMU's own, and its console in a file."""

    def __init__(self, template: VmTemplate, base: Path, *, user_data: str | None = None) -> None:
        self.console = base / "console.log"
        self._key, self._port = base / "key", free_port()
        for name in ("key", "host"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", base / name], check=True)
        public, host, host_pub = (base / name for name in ("key.pub", "host", "host.pub"))
        (base / "known_hosts").write_text(f"[127.0.0.1]:{self._port} {host_pub.read_text()}")
        spec = SeedSpec(
            "i-1", "vm7", (NIC,), (public.read_text().strip(),), host.read_text(), host_pub.read_text(), user_data
        )
        write_seed(base / "seed.iso", plan_seed(spec))
        argv = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-nodefaults"]
        argv += ["-no-user-config", "-display", "none", "-m", "512", "-serial", f"file:{self.console}"]
        assert template.disk is not None
        disk = f"if=none,id=d0,file={template.disk.path},format={template.disk.format},snapshot=on"
        argv += ["-drive", disk, "-device", "virtio-blk-pci,drive=d0"]
        argv += ["-drive", f"if=none,id=d1,file={base}/seed.iso,format=raw,readonly=on"]
        argv += ["-device", "virtio-blk-pci,drive=d1", "-device", "virtio-rng-pci"]
        argv += ["-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{self._port}-:22"]
        argv += ["-monitor", f"unix:{base}/monitor,server=on,wait=off"]
        argv += ["-device", f"virtio-net-pci,netdev=n0,mac={NIC.mac},romfile="]
        if template.boot is not None:
            argv += ["-kernel", template.boot.kernel, "-append", template.boot.append]
            argv += ["-initrd", template.boot.initrd] if template.boot.initrd else []
        self._base = base
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def ssh(self, command: str, user: str = "root") -> str:
        """Run a command, waiting for the guest to answer first; its host key must be the seed's."""
        options = ["-o", f"UserKnownHostsFile={self._base}/known_hosts", "-o", "StrictHostKeyChecking=yes"]
        options += ["-o", "BatchMode=yes", "-o", "ConnectTimeout=30", "-o", "IdentitiesOnly=yes"]
        argv = ["ssh", "-i", os.fspath(self._key), "-p", str(self._port), *options, f"{user}@127.0.0.1", command]

        def ask() -> subprocess.CompletedProcess[str] | None:
            assert self.process.poll() is None
            done = subprocess.run(argv, capture_output=True, text=True)
            return done if done.returncode != 255 else None  # which is ssh's own

        done = wait_until(ask, BOOT_S, lambda: f"no answer: {self.console.read_text(errors='replace')[-2000:]}")
        assert done is not None
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_console(self, text: str) -> None:
        """Wait until the console has shown ``text``."""

        def said() -> str:
            return self.console.read_text(errors="replace") if self.console.exists() else ""

        def is_there() -> bool:
            assert self.process.poll() is None, said()[-2000:]
            return text in said()

        wait_until(is_there, BOOT_S, lambda: said()[-2000:])

    def press_power_button(self) -> None:
        """What pvc stop does first."""
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(os.fspath(self._base / "monitor"))
            monitor.sendall(b"system_powerdown\n")
            # Closed with something unread in it, a socket takes what it sent along: read up to the next prompt.
            said = b""
            while said.count(b"(qemu) ") < 2:
                part = monitor.recv(4096)
                assert part, said
                said += part

    def stop(self) -> None:
        """Power it off."""
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def booted(template: VmTemplate, base: Path, *, user_data: str | None = None) -> Iterator[Guest]:
    guest = Guest(template, base, user_data=user_data)
    try:
        yield guest
    finally:
        guest.stop()


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Repositories:
    return repositories(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def mkosi() -> Iterator[None]:
    """One that is new enough is in PATH."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{mkosi_directory()}:{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module", params=list(Builder))
def debian(where: Repositories, mkosi: None, request: pytest.FixtureRequest) -> Image:
    lineage = load_lineage(find_recipe("debian"), builder=request.param)
    with build.built(lineage, print, cache=DEFAULT_CACHE.parent / "images") as made:
        incoming = Incoming(made.disk, f"debian-{request.param}", None, made.kernel, made.initrd, made.append)
        return where.import_file(incoming, quiet).image


USER_DATA = """#cloud-config
users:
  - default
  - name: alice
    ssh_authorized_keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA x]
write_files:
  - {path: /root/written, content: hello}
runcmd:
  - hostname > /root/ran
"""


def test_the_debian_guest_has_what_pvc_promises(debian: Image, where: Repositories, tmp_path: Path) -> None:
    template = resolve_template(Template("t", debian.name, "nat"), where)
    with booted(template, tmp_path) as guest:
        assert guest.ssh("hostname; whoami").split() == ["vm7", "root"]
        assert guest.ssh("sudo -n whoami", user="debian").split() == ["root"]
        assert guest.ssh("cat /sys/class/net/eth0/mtu").strip() == "1400"
        assert "nameserver 10.0.2.3" in guest.ssh("cat /etc/resolv.conf")
        assert "10.0.2.15/24" in guest.ssh("ip -4 -o address show dev eth0")
        assert "fd00:c8::8/64" in guest.ssh("ip -6 -o address show dev eth0 scope global")
        guest.ssh("ping -c 1 10.0.2.2 && getent hosts vm7")
        # Nothing to do for cloud-init, and it says so.
        assert "disabled" in guest.ssh("cloud-init status || true")
        # 9p and InfiniBand are there for later, nothing failed, the machine id is its own.
        guest.ssh("modprobe 9pnet_virtio && modprobe mlx5_ib && modprobe overlay")
        assert guest.ssh("systemctl --failed --no-legend").strip() == ""
        assert len(guest.ssh("cat /etc/machine-id").strip()) == 32
        guest.wait_console("automatic login")
        guest.ssh("until systemctl is-active acpid; do sleep 1; done")
        guest.press_power_button()
        assert guest.process.wait(timeout=BOOT_S) == 0


def test_user_data_is_cloud_inits(debian: Image, where: Repositories, tmp_path: Path) -> None:
    template = resolve_template(Template("t", debian.name, "nat"), where)
    with booted(template, tmp_path, user_data=USER_DATA) as guest:
        assert "done" in guest.ssh("cloud-init status --wait")
        assert guest.ssh("cat /root/ran /root/written").split() == ["vm7", "hello"]
        guest.ssh("id alice && grep -q AAAA /home/alice/.ssh/authorized_keys")
        # What was there before cloud-init is there after it.
        assert guest.ssh("whoami", user="debian").strip() == "debian"


SMALL = """
description: small
suite: bookworm
packages: [linux-image-cloud-amd64, busybox-static]
append: root=/dev/vda
size: 1G
exclude: [/usr/share/doc/*, /usr/lib/modules/*/kernel/drivers/*, /lib/modules/*/kernel/drivers/*, /etc/kernel/*]
include: [/usr/share/doc/*/copyright]
initrd: {modules: [ext4]}
files: [{path: /etc/told, content: hello, mode: 0640}]
commands: [cp /etc/told /etc/ran, "chown 7:8 /etc/ran"]
"""
CHILD = """
extends: ./small.yaml
packages: [less]
commands: [cp /etc/ran /etc/child]
"""


def test_a_recipe_gives_the_same_by_either_builder(mkosi: None, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "child.yaml").write_text(CHILD)
    packages, names, disks = {}, {}, {}
    for run, builder in (("a", Builder.MMDEBSTRAP), ("b", Builder.MKOSI), ("c", Builder.MKOSI)):
        lineage = load_lineage(tmp_path / "child.yaml", builder=builder)
        with build.built(lineage, print) as made:
            disks[run] = (tmp_path / run).with_suffix(".raw")
            subprocess.run(["qemu-img", "convert", "-O", "raw", made.disk, disks[run]], check=True)
            packages[run] = made.packages.read_text()

        def look(command: str, run: str = run) -> str:
            return subprocess.run(
                ["debugfs", "-R", command, disks[run]], check=True, capture_output=True, text=True
            ).stdout

        assert look("cat /etc/child") == "hello"
        assert "User:     7   Group:     8" in look("stat /etc/ran")
        # Essential packages, which builders unpack in their own ways, and others.
        names[run] = look("ls -p /usr/share/doc/tar") + look("ls -p /usr/share/doc/less")
        assert "/copyright/" in names[run]
        assert "changelog" not in names[run]
        assert not look("ls -p /work")
    assert packages["a"] == packages["b"]
    subprocess.run(["cmp", disks["b"], disks["c"]], check=True)


def find_mounted_within(base: Path) -> list[int]:
    """Processes of other mount namespaces that have something mounted from or to what is below ``base``.

    A sandbox's mount points are below a root of its own: that something of ours is mounted there is said by what of the
    file system it shows, proc_pid_mountinfo(5). ``base`` is below a directory whose name nothing else has.
    """
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdecimal() or os.readlink(entry / "ns/mnt") == os.readlink("/proc/self/ns/mnt"):
                continue
            if f"/{base.parent.name}/{base.name}/" in (entry / "mountinfo").read_text():
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("builder", list(Builder))
def test_a_killed_build_leaves_no_mounts(
    mkosi: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder: Builder
) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    base = tmp_path / "tmp"
    base.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(base))
    pid = os.fork()
    if pid == 0:
        with (
            contextlib.suppress(BaseException),
            build.built(load_lineage(tmp_path / "small.yaml", builder=builder), print),
        ):
            pass
        os._exit(0)
    try:
        wait_until(lambda: bool(find_mounted_within(base)), 120, "nothing is ever mounted")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    wait_until(lambda: not find_mounted_within(base), 120, "processes of the build outlive it, and keep its mounts")
    assert f" {base}/" not in Path("/proc/self/mountinfo").read_text()
    for path in base.iterdir():
        os.utime(path, (0, 0))
    with work_directory("pvc-build-") as mine:
        assert list(base.iterdir()) == [mine]
