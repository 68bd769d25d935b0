#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A bootable Debian disk as somebody makes it who does not know pvc: plain mmdebstrap with cloud-init and sshd.
# Usage: make-foreign-debian.sh SUITE DIRECTORY; needs root. Leaves disk.qcow2, kernel and initrd there.
set -eu
suite=$1
target=$2
# shellcheck disable=SC1091
own=$(. /etc/os-release && echo "$VERSION_CODENAME")
# shellcheck disable=SC2016
mirror=$(apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v own="$own" '$1 == "Debian" && $2 == own {print $3; exit}')
work=$(mktemp -d "$target/.work-XXXXXX")
trap 'rm -rf "$work"' EXIT
mmdebstrap --variant=apt \
    --include=linux-image-cloud-amd64,systemd-sysv,udev,dbus,netplan.io,systemd-resolved,iproute2,iputils-ping \
    --include=cloud-init,openssh-server \
    "$suite" "$work/root.tar" "${mirror:?no Debian mirror}"
mkdir "$work/root"
tar -xpf "$work/root.tar" -C "$work/root" --numeric-owner --exclude='./dev/*'
cp "$work/root/boot/vmlinuz-"* "$work/kernel"
cp "$work/root/boot/initrd.img-"* "$work/initrd"
mke2fs -q -F -t ext4 -L root -d "$work/root" "$work/disk.raw" 4G
qemu-img convert -O qcow2 "$work/disk.raw" "$work/disk.qcow2"
mv "$work/disk.qcow2" "$work/kernel" "$work/initrd" "$target"
