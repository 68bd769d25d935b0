# SPDX-License-Identifier: Apache-2.0
"""The daily commands for guests as people have them: a Debian with cloud-init and sshd, and an Alpine with neither.

Both are in one job, on a network that nobody outside reaches: all of it goes over the agents.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.slurm.clusters import Cluster
from tests.slurm.images import import_alpine
from tests.slurm.testbed import Done, Testbed
from tests.waits import wait_until

# Emulated distributions on a busy machine; how soon they answer is for the benchmarks.
BOOT_S = 600
DEBIAN, ALPINE = "vm0", "vm1"
USER_DATA = """#cloud-config
write_files:
  - path: /etc/pvc/hooks/walltime
    permissions: "0755"
    content: |
      #!/bin/sh
      echo "$1 s: $2" >> /root/told
runcmd:
  - echo user-data was here
"""
# One every half minute, from the first minutes on: the hook is there once cloud-init has run.
WARNINGS = [f"--warn={seconds}s" for seconds in range(600, 1770, 30)]


@pytest.fixture(scope="module")
def cluster(testbed: Testbed, debian: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    alpine = import_alpine(testbed, tmp_path_factory.mktemp("alpine"))
    testbed.wait_no_jobs()
    (testbed.home() / "user-data").write_text(USER_DATA)
    options = ("-N", "2", "-m", "512M", "--resource-set", "lan", "--user-data", "user-data", "-t", "30", *WARNINGS)
    made = Cluster(testbed, f"{debian},{alpine}", *options, size=("-c", "1"))
    try:
        made.wait_running()
        pvc(made, "wait", "--for", "agent", "--timeout", f"{BOOT_S}s")
        yield made
    finally:
        made.close()
        testbed.wait_no_jobs()


def run(made: Cluster, argv: list[str] | str, *, code: int = 0, stdin: str = "") -> Done:
    """A command of a user on the login node."""
    done = made.tb.run(argv, check=False, timeout=BOOT_S + 60, stdin=stdin)
    assert done.code == code, f"{argv} ended with {done.code}\n{done.out}\n{done.err}"
    return done


def pvc(made: Cluster, command: str, *words: str, code: int = 0, stdin: str = "") -> Done:
    return run(made, ["pvc", command, "-j", str(made.job_id), *words], code=code, stdin=stdin)


def test_cloud_init_is_waited_for_and_shown(cluster: Cluster) -> None:
    pvc(cluster, "wait", DEBIAN, "--for", "cloud-init", "--for", "port:22", "--timeout", f"{BOOT_S}s")
    log = pvc(cluster, "logs", DEBIAN, "--source", "cloud-init").out
    assert "user-data was here" in log.splitlines()
    assert re.search(r"^Cloud-init v\. \S+ finished at", log, re.MULTILINE)
    assert "has no cloud-init" in pvc(cluster, "wait", ALPINE, "--for", "cloud-init", code=7).err


def test_ssh_without_a_port(cluster: Cluster) -> None:
    said = pvc(cluster, "ssh", DEBIAN, "hostname; cat >&2; exit 3", code=3, stdin="over there")
    assert (said.out, said.err) == ("vm0\n", "over there")
    assert pvc(cluster, "ssh", f"debian@{DEBIAN}", "sudo", "id", "-un").out == "root\n"
    (cluster.tb.home() / "letter").write_text("dear guest\n")
    pvc(cluster, "scp", "letter", f"debian@{DEBIAN}:letter")
    assert pvc(cluster, "ssh", DEBIAN, "cat /home/debian/letter; stat -c %U /home/debian/letter").out == (
        "dear guest\ndebian\n"
    )


def test_plain_ssh_by_name(cluster: Cluster) -> None:
    """Host keys are known, so nothing is asked."""
    config = pvc(cluster, "ssh-config").out.strip()
    assert run(cluster, ["ssh", "-F", config, DEBIAN, "hostname"]).out == "vm0\n"
    run(cluster, f"head -c 3000000 /dev/urandom > bulk && scp -q -F {config} bulk {DEBIAN}:bulk")
    run(cluster, f"scp -q -F {config} {DEBIAN}.{cluster.job_id}:bulk back && cmp bulk back")
    over = f"tar -c bulk letter | ssh -F {config} debian@{DEBIAN} 'mkdir tar && tar -x -C tar && cat tar/letter'"
    assert run(cluster, over).out == "dear guest\n"


def test_rsync(cluster: Cluster) -> None:
    """By the settings for ssh, and by pvc ssh; the guest gets the program of this machine, for its image has none."""
    rsync = shutil.which("rsync")
    assert rsync is not None
    there = cluster.tb.home() / "rsync"
    there.mkdir()
    shutil.copy(rsync, there)
    for line in subprocess.run(["ldd", rsync], capture_output=True, text=True, check=True).stdout.splitlines():
        found = re.search(r"lib(?:acl|popt|lz4|zstd|xxhash|crypto)\S* => (\S+)", line)
        if found is not None:
            shutil.copy(found[1], there)
    pvc(cluster, "cp", "rsync", f"{DEBIAN}:/opt/")
    far = "--rsync-path='LD_LIBRARY_PATH=/opt/rsync /opt/rsync/rsync'"
    config = pvc(cluster, "ssh-config").out.strip()
    run(cluster, "mkdir -p many/deep && for i in 1 2 3; do head -c 300000 /dev/urandom > many/deep/$i; done")
    sent = run(cluster, f"rsync -a --stats {far} -e 'ssh -F {config}' many/ {DEBIAN}:many/").out
    assert re.search(r"regular files transferred: 3$", sent, re.MULTILINE), sent
    run(cluster, "head -c 1000 /dev/urandom >> many/deep/2")
    own = f"-e 'pvc ssh -j {cluster.job_id}'"
    sent = run(cluster, f"rsync -a --stats {far} {own} many/ {DEBIAN}:many/").out
    assert re.search(r"regular files transferred: 1$", sent, re.MULTILINE), sent
    run(cluster, f"rsync -a {far} {own} debian@{DEBIAN}:/opt/rsync/ copy/ && cmp copy/rsync rsync/rsync")
    run(cluster, f"rsync -a {far} {own} {DEBIAN}:many/ again/ && diff -r many again")


@pytest.mark.parametrize("vm", [DEBIAN, ALPINE])
def test_commands_and_files(cluster: Cluster, vm: str) -> None:
    done = pvc(cluster, "exec", "-w", vm, "--", "sh", "-c", "cat; id -un; echo err >&2; exit 5", code=5, stdin="in\n")
    assert (done.out, done.err) == ("in\nroot\n", "err\n")
    tree = cluster.tb.home() / "tree"
    (tree / "deep").mkdir(parents=True, exist_ok=True)
    (tree / "deep" / "data").write_bytes(bytes(range(256)) * 8000)
    if not (tree / "link").is_symlink():
        (tree / "link").symlink_to("deep/data")
    pvc(cluster, "cp", "tree", f"{vm}:/root/")
    sums = "cd /root/tree && sha256sum deep/data link"
    there = pvc(cluster, "exec", "-w", vm, "--", "sh", "-c", sums).out
    pvc(cluster, "cp", f"{vm}:/root/tree", f"from-{vm}")
    assert run(cluster, f"cd from-{vm} && [ -L link ] && sha256sum deep/data link").out == there
    gone = pvc(cluster, "cp", f"{vm}:/root/nothing", "nothing", code=7)
    assert "No such file" in gone.err


def test_as_another_user(cluster: Cluster) -> None:
    done = pvc(cluster, "exec", "-u", "debian", "-w", DEBIAN, "--", "sh", "-c", "id -un; pwd; cat /etc/shadow", code=1)
    assert done.out == "debian\n/home/debian\n"
    assert "Permission denied" in done.err
    pvc(cluster, "cp", "-u", "debian", "letter", f"{DEBIAN}:mine")
    assert pvc(cluster, "exec", "-w", DEBIAN, "--", "stat", "-c", "%U", "/home/debian/mine").out == "debian\n"


def test_a_forward_to_sshd(cluster: Cluster) -> None:
    pvc(cluster, "wait", DEBIAN, "--for", "port:22", "--timeout", f"{BOOT_S}s")
    ready = pvc(cluster, "forward", "--background", f"0:{DEBIAN}:22").out
    port = re.findall(r"127\.0\.0\.1:(\d+)", ready)[0]
    place = f".pvc/jobs/{cluster.job_id}"
    keys = f"-i {place}/id_ed25519 -o UserKnownHostsFile={place}/known_hosts -o HostKeyAlias={DEBIAN}"
    assert run(cluster, f"ssh -F none {keys} -p {port} root@127.0.0.1 hostname").out == "vm0\n"
    pvc(cluster, "forward", "--stop", DEBIAN)


def test_a_forward_to_alpine(cluster: Cluster) -> None:
    """Busybox's own server of files, on a port of the guest's loopback."""
    serve = "mkdir -p /srv; hostname > /srv/name; httpd -p 127.0.0.1:8080 -h /srv 2>/dev/null || "
    serve += "(while :; do nc -l -p 8080 -s 127.0.0.1 < /srv/name; done) </dev/null >/dev/null 2>&1 &"
    pvc(cluster, "exec", "-w", ALPINE, "--", "sh", "-c", serve)
    pvc(cluster, "wait", ALPINE, "--for", "port:8080", "--timeout", f"{BOOT_S}s")
    ready = pvc(cluster, "forward", "--background", f"0:{ALPINE}:8080").out
    port = re.findall(r"127\.0\.0\.1:(\d+)", ready)[0]
    name = pvc(cluster, "exec", "-w", ALPINE, "--", "hostname").out
    line = f"exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /name HTTP/1.0\\r\\n\\r\\n' >&3; timeout 60 cat <&3"
    heard: list[str] = []

    def ask() -> bool:
        heard[:] = cluster.tb.run(["bash", "-c", line], check=False, timeout=300).out.splitlines()
        return bool(heard)

    wait_until(ask, 120, "nothing from the guest")
    assert heard[-1] == name.strip()
    pvc(cluster, "forward", "--stop", ALPINE)


def test_the_guests_hook_hears_of_the_end(cluster: Cluster) -> None:
    """It was put there by the user-data, and gets the seconds that are left and the text."""
    pvc(cluster, "wait", DEBIAN, "--for", "cmd:test -s /root/told", "--timeout", f"{BOOT_S}s")
    told = pvc(cluster, "exec", "-w", DEBIAN, "--", "head", "-n", "1", "/root/told").out
    left = re.fullmatch(rf"(\d+) s: job {cluster.job_id} and its VMs end in .*\n", told)
    assert left is not None, told
    assert 500 < int(left[1]) < 1800
