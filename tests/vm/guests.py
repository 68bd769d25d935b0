# SPDX-License-Identifier: Apache-2.0
"""A guest of ten megabytes for tests: Debian's cloud kernel and busybox, unpacked from packages, nothing installed.

It mounts its seed, brings its interfaces up (by DHCP where the seed says so), says "SSH-2.0-busybox" on port 22 and
runs a shell on the serial console. ``frames`` (frames.c) sends and watches Ethernet frames.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

TOOL = Path(__file__).parent / "frames.c"
AGENT = Path(__file__).parents[2] / "agent"
CACHE = Path("/var/tmp/pvc-test-guest-13")

MODULES = (
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/virtio/virtio_mmio",
    "drivers/block/virtio_blk",
    "drivers/char/hw_random/virtio-rng",
    "drivers/char/virtio_console",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/cdrom/cdrom",
    "fs/isofs/isofs",
    "fs/fuse/fuse",
    "fs/fuse/virtiofs",
    "drivers/misc/pvpanic/pvpanic",
    "drivers/misc/pvpanic/pvpanic-mmio",
)

# What the kernel does at boot that no test asks for, a third of an emulated processor's time until then: self-tests of
# ciphers, tables for tracing, keys for modules (Documentation/admin-guide/kernel-parameters.txt).
LESS = (
    "cryptomgr.notests initcall_blacklist="
    "init_kprobe_trace,trace_eval_init,crypto_kdf108_init,load_system_certificate_list,add_pcspkr"
)

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /tmp && mount -t devpts devpts /dev/pts
echo 1 > /proc/sys/kernel/printk
for name in $(cat /modules); do insmod /lib/$name.ko 2>/dev/null || again="$again $name"; done
for name in $again; do insmod /lib/$name.ko 2>/dev/null; done
# Not a job of this shell, which waits for its jobs below.
[ -x /bin/pvc-agent ] && (setsid /bin/pvc-agent </dev/null >/dev/null 2>&1 &)
mkdir -p /seed
for disk in vdb vda; do [ -b /dev/$disk ] && mount -t iso9660 -o ro /dev/$disk /seed 2>/dev/null && break; done
while read -r tag target mode; do
    mkdir -p "$target"
    mount -t virtiofs -o "$mode" "$tag" "$target" && echo "GUEST-SHARE $target"
done < /seed/mounts-virtiofs 2>/dev/null
hostname "$(sed -n 's/.*"local-hostname": "\\(.*\\)".*/\\1/p' /seed/meta-data)"
echo "GUEST-IS $(hostname) $(nproc) $(awk '/MemTotal/{print $2}' /proc/meminfo)"
echo "GUEST-DISK $(cat /sys/block/vda/size)"
ip link set lo up
mkdir -p /etc/resolv
for link in /sys/class/net/eth*; do
    [ -e "$link" ] || continue
    name=${link##*/}
    # One line a key, in this order; without a network configuration cloud-init asks DHCP.
    say=$(awk -v mac="$(cat $link/address)" '/"macaddress"/ { here = index($0, mac) }
        here && /"mtu"/ { mtu = $0; gsub(/[^0-9]/, "", mtu) }
        here && /"dhcp4"/ { print mtu, (/true/ ? "dhcp" : "none"); exit }' /seed/network-config 2>/dev/null)
    [ -n "${say% *}" ] && ip link set "$name" mtu "${say% *}"
    ip link set "$name" up
    [ "${say#* }" = none ] || udhcpc -q -n -t 20 -T 1 -A 1 -i "$name" -s /dhcp >/dev/null &
done
wait
for link in /sys/class/net/eth*; do
    [ -e "$link" ] && echo "GUEST-LINK ${link##*/} $(cat $link/mtu) $(cat $link/address)"
done
ip -o -4 address show scope global | awk '{print "GUEST-ADDRESS", $2, $4}'
(while :; do nc -l -p 22 -e /banner; done) &
echo GUEST-READY
exec setsid cttyhack sh
"""

DHCP = """#!/bin/busybox sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
[ -n "$router" ] && ip route add default via "${router%% *}" metric "${interface#eth}"
echo "search $search" > "/etc/resolv/$interface"
for server in $dns; do echo "nameserver $server" >> "/etc/resolv/$interface"; done
cat /etc/resolv/* > /etc/resolv.conf
exit 0
"""

BANNER = "#!/bin/busybox sh\necho SSH-2.0-busybox\nsleep 1\n"


@dataclass(frozen=True)
class Guest:
    """Files to boot; ``append`` is for a serial console."""

    kernel: Path
    initrd: Path
    append: str = f"console=ttyS0 quiet panic=0 mitigations=off tsc=unstable no_timer_check {LESS}"


def agent_guest() -> Guest:
    """The guest with the agent of this checkout in it, as a package would put it there."""
    plain = build_guest()
    program = build_agent()
    initrd = CACHE / f"initrd-{hashlib.sha256(program.read_bytes()).hexdigest()[:16]}.gz"
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not initrd.exists():
            # The kernel unpacks archives that follow one another (Documentation/driver-api/early-userspace).
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                (Path(scratch) / "bin").mkdir()
                shutil.copy(program, Path(scratch) / "bin/pvc-agent")
                archive = subprocess.run(
                    "find . | cpio -o -H newc --quiet | gzip -1",
                    shell=True,
                    check=True,
                    cwd=scratch,
                    capture_output=True,
                )
            partial = initrd.with_suffix(".partial")
            partial.write_bytes(plain.initrd.read_bytes() + archive.stdout)
            partial.rename(initrd)
    return Guest(plain.kernel, initrd)


def build_agent() -> Path:
    """The agent of this checkout."""
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    subprocess.run(["make", "-s", "-C", AGENT], check=True, env=env)
    return AGENT / "pvc-agent"


def build_guest() -> Guest:
    """Make the guest once; later calls find it."""
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        guest = Guest(CACHE / "vmlinuz", CACHE / "initrd.gz")
        if not guest.initrd.exists():
            _build(guest)
    return guest


def _build(guest: Guest) -> None:
    work = CACHE / "work"
    shutil.rmtree(work, ignore_errors=True)
    packages, unpacked, root = work / "packages", work / "unpacked", work / "root"
    packages.mkdir(parents=True)
    dependencies = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], check=True, capture_output=True, text=True
    ).stdout
    kernel = next(line.split()[-1] for line in dependencies.splitlines() if "Depends:" in line)
    subprocess.run(["apt-get", "-q", "download", kernel, "busybox-static"], check=True, cwd=packages)
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    for name in ("bin", "dev", "proc", "sys", "lib"):
        (root / name).mkdir(parents=True)
    shutil.copy(unpacked / "bin/busybox", root / "bin/busybox")
    argv = ["gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-o", root / "bin/frames", TOOL]
    subprocess.run(argv, check=True)
    modules = next((unpacked / "lib/modules").iterdir()) / "kernel"
    for module in MODULES:
        shutil.copy(modules / f"{module}.ko", root / "lib")
    (root / "modules").write_text("\n".join(module.rpartition("/")[2] for module in MODULES) + "\n")
    for name, text in {"init": INIT, "dhcp": DHCP, "banner": BANNER}.items():
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    shutil.copy(next((unpacked / "boot").glob("vmlinuz-*")), guest.kernel)
    subprocess.run("find . | cpio -o -H newc --quiet | gzip -1 > ../initrd.gz", shell=True, check=True, cwd=root)
    (work / "initrd.gz").rename(guest.initrd)
    shutil.rmtree(work)


if __name__ == "__main__":
    print(build_guest())
