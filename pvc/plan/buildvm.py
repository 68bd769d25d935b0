# SPDX-License-Identifier: Apache-2.0
"""What the guest of ``pvc image build`` does: a NoCloud seed whose cloud-config runs a recipe, and says how it went.

The guest speaks over its second serial port, which every Linux on x86 has without a module. Lines that begin with
the token of this build are the script's, all others are what the recipe printed. What makes clones alike is removed
when everything else has ended: by a program that systemd runs last (systemd-shutdown(8)), or right before the power
goes off where there is no systemd.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

PORT = "/dev/ttyS1"
# The host of QEMU's user network as its guest sees it (qemu(1), -netdev user).
HOST_ADDRESS = "10.0.2.2"
CODENAME = "@CODENAME@"

_FIND = """
mkdir -p /run/pvc-build
for disk in /dev/disk/by-label/CIDATA /dev/disk/by-label/cidata /dev/vd? /dev/sr?; do
    [ -b "$disk" ] && mount -t iso9660 -o ro "$disk" /run/pvc-build 2>/dev/null || continue
    [ ! -f /run/pvc-build/pvc-build ] || exec sh /run/pvc-build/pvc-build
    umount /run/pvc-build
done
"""

_SCRIPT = """#!/bin/sh
# Run once, by cloud-init, in the guest of pvc image build.
token=@TOKEN@
port=@PORT@
seed=/run/pvc-build
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
cd /
stty -F $port raw -echo 2>/dev/null
tell() { printf '\\n%s %s\\n' $token "$*" > $port; }
fail() { tell fail "$1"; }

install_packages() {
    set -e
    command -v apt-get || { echo 'this guest has no apt-get: let commands install what is needed'; exit 1; }
    export DEBIAN_FRONTEND=noninteractive
    set -- -q -o Dpkg::Use-Pty=0 -o APT::Install-Recommends=false -o DPkg::Lock::Timeout=600
    [ ! -f $seed/apt.conf ] || export APT_CONFIG=$seed/apt.conf
    . /etc/os-release
    if [ -f $seed/sources.list ] && [ "$ID" = debian ]; then
        keys=
        for file in /usr/share/keyrings/debian-archive-keyring.pgp /usr/share/keyrings/debian-archive-keyring.gpg; do
            [ ! -f $file ] || keys="[signed-by=$file] "
        done
        mkdir -p /var/tmp/pvc-apt
        sed "s|^deb |deb $keys|; s/@CODENAME@/$VERSION_CODENAME/" $seed/sources.list > /var/tmp/pvc-apt/sources.list
        set -- "$@" -o Dir::Etc::SourceList=/var/tmp/pvc-apt/sources.list -o Dir::Etc::SourceParts=/dev/null
    fi
    apt-get "$@" update
    apt-get "$@" -y install $(cat $seed/packages)
    apt-get clean
    # Larger than most packages, and old tomorrow.
    rm -rf /var/tmp/pvc-apt /var/lib/apt/lists/*
}

recipe() {
    tell begin
    if [ -s $seed/packages ]; then
        tell step installing packages
        (install_packages) > $port 2>&1 || { fail "apt-get"; return 1; }
    fi
    if [ -s $seed/files.tar ]; then
        tell step writing files
        tar -xpf $seed/files.tar -C / > $port 2>&1 || { fail "tar"; return 1; }
    fi
    for command in $seed/command-*; do
        [ -f "$command" ] || break
        tell step "running command ${command##*-} of @COUNT@"
        sh -eu "$command" < /dev/null > $port 2>&1 || { fail "command ${command##*-}: exit code $?"; return 1; }
    done
}

if recipe; then
    tell step removing what makes clones alike
    if [ -d /run/systemd/system ]; then
        mkdir -p /usr/lib/systemd/system-shutdown
        cp $seed/pvc-clean /usr/lib/systemd/system-shutdown/pvc-clean
        chmod 755 /usr/lib/systemd/system-shutdown/pvc-clean
        systemctl --no-block poweroff
    else
        # cloud-init waits for this script, so nobody writes any more.
        sh $seed/pvc-clean
        echo o > /proc/sysrq-trigger
    fi
else
    sync
    echo o > /proc/sysrq-trigger
fi
"""

_CLEAN = """#!/bin/sh
# Run last by systemd-shutdown, once: nothing of this very machine stays in the image.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
# Not from the root file system: one with open files that are removed cannot become read-only.
[ "$0" = /run/pvc-clean ] || { cp "$0" /run/pvc-clean && exec sh /run/pvc-clean "$0"; }
exec > @PORT@ 2>&1
tell() { printf '\\n%s %s\\n' @TOKEN@ "$*"; }
mount -o remount,rw / || { tell fail the root cannot be written at the end; exit 1; }
[ ! -e /etc/machine-id ] || : > /etc/machine-id
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
rm -f /etc/ssh/ssh_host_* /etc/ssh/seed_host_* /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -rf /var/lib/cloud/* /var/log/cloud-init* /var/log/journal/* /var/tmp/pvc-apt
# Interfaces of this machine, as cloud-init and DHCP clients have written them.
rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* /etc/udev/rules.d/70-persistent-net.rules
rm -f /etc/systemd/network/10-cloud-init-* /etc/NetworkManager/system-connections/cloud-init-*
rm -f /var/lib/dhcp/*.leases /var/lib/dhclient/*.leases /var/lib/NetworkManager/*.lease
! grep -qs pvc-guest /etc/resolv.conf || rm -f /etc/resolv.conf
rm -f /root/.bash_history
case $1 in /usr/lib/*) rm -f "$1" ;; esac
fstrim / 2>/dev/null
sync
mount -o remount,ro / || { tell fail the root is still in use at the end; exit 1; }
tell clean
"""


@dataclass(frozen=True)
class GuestWork:
    """What is to be done in the guest; ``files`` is a tar archive, ``sources`` lines of sources.list(5)."""

    packages: Sequence[str]
    files: bytes
    commands: Sequence[str]
    sources: Sequence[str] = ()
    apt_settings: Sequence[str] = ()


def plan_build_seed(work: GuestWork, token: str, instance_id: str) -> dict[str, str | bytes]:
    """The seed's files by name."""
    found: dict[str, str | bytes] = {
        "meta-data": json.dumps({"instance-id": instance_id, "local-hostname": "build"}) + "\n",
        # JSON is YAML; DHCP on the first interface is cloud-init's own default.
        "user-data": "#cloud-config\n" + json.dumps({"runcmd": [["sh", "-c", _FIND]]}) + "\n",
        "vendor-data": "#cloud-config\n{}\n",
        "pvc-build": _fill(_SCRIPT, token).replace("@COUNT@", str(len(work.commands))),
        "pvc-clean": _fill(_CLEAN, token),
        "packages": " ".join(work.packages) + "\n" if work.packages else "",
    }
    if work.files:
        found["files.tar"] = work.files
    for number, command in enumerate(work.commands, 1):
        found[f"command-{number:0{len(str(len(work.commands)))}}"] = command + "\n"
    if work.sources:
        found["sources.list"] = "".join(f"{_through_host(line)}\n" for line in work.sources)
    if work.apt_settings:
        found["apt.conf"] = "".join(f"{_through_host(line)}\n" for line in work.apt_settings)
    return found


def _fill(text: str, token: str) -> str:
    return text.replace("@TOKEN@", token).replace("@PORT@", PORT)


def _through_host(line: str) -> str:
    """A proxy on the host's loopback device is at the host's address for the guest."""
    for name in ("127.0.0.1", "localhost", "[::1]"):
        for before, after in (("//", ":"), ("//", "/")):
            line = line.replace(f"{before}{name}{after}", f"{before}{HOST_ADDRESS}{after}")
    return line


def plan_build_args(port_fd: int, *, network: bool) -> tuple[str, ...]:
    """What the guest's QEMU needs besides a VM's usual arguments: the second serial port, and maybe a network."""
    argv = ["-chardev", f"socket,id=build,fd={port_fd}", "-serial", "chardev:build"]
    if network:
        argv += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="]
    return tuple(argv)
