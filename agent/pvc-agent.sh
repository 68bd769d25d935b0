#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install pvc-agent from the directory of this script, and start it; again and again is fine. See pvc-agent(7).
# The agent is that of the pvc that runs the VM, so what starts it is made anew at each boot where that can be.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
from=$(dirname "$0")

# An image of pvc's has started it from the seed already; another start would tear what it carries.
for pid in $(pidof pvc-agent 2>/dev/null); do
    [ "$(readlink "/proc/$pid/exe")" = /run/pvc-agent/pvc-agent ] && cmp -s "/proc/$pid/exe" "$from/pvc-agent" && exit 0
done

modprobe virtio_console 2>/dev/null
for place in /usr/local/sbin /var/lib/pvc-agent /run/pvc-agent; do
    # A program that runs cannot be written to, but replaced.
    mkdir -p "$place" && cp "$from/pvc-agent" "$place/.pvc-agent.new" && chmod 755 "$place/.pvc-agent.new" &&
        "$place/.pvc-agent.new" --version >/dev/null && mv -f "$place/.pvc-agent.new" "$place/pvc-agent" && break
    rm -f "$place/.pvc-agent.new"
done 2>/dev/null
[ -x "$place/pvc-agent" ] || { echo "pvc-agent: cannot be installed" >&2; exit 1; }

if [ -d /run/systemd/system ]; then
    mkdir -p /run/systemd/system
    cat >/run/systemd/system/pvc-agent.service <<UNIT
[Unit]
Description=Agent of pvc
Documentation=man:pvc-agent(7)
DefaultDependencies=no
Before=shutdown.target
Conflicts=shutdown.target

[Service]
ExecStart=$place/pvc-agent
Restart=always
RestartSec=1
KillMode=process
OOMScoreAdjust=-900
TasksMax=infinity
UNIT
    systemctl daemon-reload
    systemctl --no-block restart pvc-agent.service
elif command -v openrc-run >/dev/null; then
    cat >/etc/init.d/pvc-agent <<SERVICE
#!$(command -v openrc-run)
description="Agent of pvc"
supervisor=supervise-daemon
command=$place/pvc-agent
respawn_delay=1
SERVICE
    chmod 755 /etc/init.d/pvc-agent
    rc-service -q pvc-agent restart
else
    setsid "$place/pvc-agent" </dev/null >/dev/null 2>&1 &
fi
