# SPDX-License-Identifier: Apache-2.0
"""Processes beside QEMU, all as a normal user with groups: a TPM from swtpm, directories over virtio-fs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemons import describe_daemon
from guests import build_guest
from harness import HYPERVISORS, Console, Launched, guest_template, is_alive, supervised

from pvc.model.event import EventKind
from pvc.model.vm import Mount, Phase, VmTemplate
from tests.waits import wait_until

pytestmark = pytest.mark.vm
UID, GROUP = 12345, 23456
AS_USER = ("setpriv", f"--reuid={UID}", f"--regid={UID}", f"--groups={GROUP}", "--")
NO_USER_NAMESPACES = ("unshare", "--user", "--map-root-user", "sh", "-c")
# TPM 2.0 Library, part 3: TPM2_NV_DefineSpace of 8 bytes at 0x01500001 by the owner, and TPM2_NV_ReadPublic of it.
NV_DEFINE = "8002 0000002d 0000012a 40000001 00000009 40000009 0000 00 0000 0000 000e 01500001 000b 00020002 0000 0008"
NV_READ_PUBLIC = "8001 0000000e 00000169 01500001"


@pytest.fixture
def home() -> Iterator[Path]:
    """The user's home, that others may look into."""
    path = Path(tempfile.mkdtemp(prefix="pvc-test-home-", dir="/var/tmp"))
    path.chmod(0o755)
    os.chown(path, UID, UID)
    yield path
    shutil.rmtree(path)


@contextmanager
def launched(home: Path, template: VmTemplate, wrapper: Sequence[str] = AS_USER) -> Iterator[Launched]:
    with supervised(home, template, owner=UID, wrapper=wrapper) as cluster:
        yield cluster


def make_share(home: Path, name: str, **files: str) -> Path:
    """A directory of the user's, with a file of a group of theirs and a way out."""
    path = home / name
    path.mkdir()
    (path / "way-out").symlink_to("/")
    for file, text in {**files, "of-group": "for the group\n"}.items():
        (path / file).write_text(text)
    os.chown(path / "of-group", 0, GROUP)
    (path / "of-group").chmod(0o640)
    (path / "secret").write_text("root's\n")
    (path / "secret").chmod(0o600)
    os.chown(path, UID, UID)
    return path


def run(console: Console, command: str) -> str:
    """What a command of the guest's shell says."""
    console.data = b""
    console.send(f"{command}; echo '<'END'>'\n".encode())
    return console.wait(b"<END>").decode(errors="replace")


def tpm(command: str) -> str:
    """A shell command that sends words to the TPM and shows its answer in hex digits."""
    octets = "".join(f"\\x{byte:02x}" for byte in bytes.fromhex(command.replace(" ", "")))
    answer = "head -c 60 <&3 | hexdump -v -e '1/1 \"%02x\"'"
    return f"exec 3<>/dev/tpm0; printf '{octets}' >&3; echo TPM=$({answer})=; exec 3>&-"


def find_helpers(cluster: Launched) -> dict[str, list[int]]:
    """Process ids below the supervisor by the program's name; libvirt's daemon is the job's, no VM's."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = (int(rest.split()[1]), name)
    found: dict[str, list[int]] = {}
    for pid, (_, name) in parents.items():
        ancestor = pid
        while ancestor in parents and ancestor != cluster.process.pid:
            ancestor = parents[ancestor][0]
        if ancestor == cluster.process.pid and pid != ancestor and name != "libvirtd":
            found.setdefault(name, []).append(pid)
    return found


def order(cluster: Launched, name: str) -> dict[str, Any]:
    (result,) = cluster.ask(op="order", order=name, vms=[0], grace_s=0)["vms"]
    return dict(result)


@pytest.mark.parametrize("daemon", ["old", "new"])
def test_a_guests_root_gets_what_the_owner_has_and_no_more(home: Path, daemon: str) -> None:
    describe_daemon(daemon, home)
    open_dir, closed = make_share(home, "open, dir", hello="hello\n"), make_share(home, "closed", old="old\n")
    mounts = (
        Mount(os.fspath(open_dir), "/open", tag="open", type="virtiofs"),
        Mount(os.fspath(closed), "/closed", True, "closed", "virtiofs"),
    )
    before = sorted(os.listdir(closed))
    with launched(home, guest_template(build_guest(), mounts=mounts)) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            assert b"GUEST-SHARE /open" in console.data
            assert b"GUEST-SHARE /closed" in console.data
            assert "hello" in run(console, "cat /open/hello; echo back > /open/new; mkdir /open/d")
            assert "for the group" in run(console, "cat /open/of-group")
            assert "root's" not in run(console, "cat /open/secret")
            # A link means the guest's own file; a new one leads nowhere else.
            assert "<END>" in run(console, "ls /open/way-out/modules && ln -s /etc/shadow /open/out; cat /open/out")
            for change in (
                "echo x > /closed/new",
                "rm /closed/old",
                "chmod 777 /closed/old",
                "mv /closed/old /closed/n",
            ):
                assert "Read-only file system" in run(console, f"mount -o remount,rw /closed; {change}")
            assert "old" in run(console, "cat /closed/old")
        helpers = find_helpers(cluster)
        daemons = [pid for name, pids in helpers.items() if "virtiofsd" in name or "ld-linux" in name for pid in pids]
        assert len(daemons) == 2
        for pid in daemons:
            status = Path(f"/proc/{pid}/status").read_text()
            assert re.search(rf"^Uid:(\t{UID}){{4}}$", status, re.MULTILINE)
            assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink(f"/proc/{cluster.process.pid}/ns/user")
            assert os.listdir(f"/proc/{pid}/root") in (os.listdir(open_dir), os.listdir(closed))
    for made in ("new", "d", "out"):
        facts = (open_dir / made).lstat()
        assert (facts.st_uid, facts.st_gid) == (UID, UID)
    assert (open_dir / "new").read_text() == "back\n"
    assert sorted(os.listdir(closed)) == before
    wait_until(lambda: not any(is_alive(pid) for pid in daemons))


@pytest.mark.parametrize("hypervisor", HYPERVISORS)
def test_what_a_tpm_keeps_and_how_helpers_are_missed(home: Path, hypervisor: str) -> None:
    describe_daemon("old", home)
    share = make_share(home, "share")
    mounts = (Mount(os.fspath(share), "/data", tag="data", type="virtiofs"),)
    with launched(home, guest_template(build_guest(), tpm="2.0", mounts=mounts, hypervisor=hypervisor)) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            said = run(console, "cd /sys/class/tpm/tpm0; ls -l /dev/tpm0; cat tpm_version_major pcr-sha256/0; cd /")
            assert "/dev/tpm0" in said
            # SeaBIOS has measured what it is.
            assert re.search(r"\r\n2\r\n(?!0{64})[0-9A-F]{64}\r\n", said)
            assert "TPM=80010000000a0000018b=" in run(console, tpm(NV_READ_PUBLIC))
            assert "TPM=8002" in run(console, tpm(NV_DEFINE))
        (victim,) = find_helpers(cluster)["swtpm"]
        os.kill(victim, signal.SIGKILL)
        event = cluster.wait_event(EventKind.VM, detail=f"{NO_PORT}; without its TPM: swtpm was killed by SIGKILL")
        assert event.phase is Phase.BOOTING
        assert "starts again" in str(event.hint)
        pids = cluster.qemu_pids()
        assert order(cluster, "stop")["phase"] == "stopped"
        assert order(cluster, "start")["detail"] == NO_PORT
        assert not set(pids) & set(cluster.qemu_pids())
        with cluster.connect() as connection:
            console = Console(connection, 0)
            console.wait_prompt()
            assert re.search(r"TPM=8001[0-9a-f]{8}00000000000e01500001000b", run(console, tpm(NV_READ_PUBLIC)))
        helpers = find_helpers(cluster)
        os.kill(helpers["virtiofsd"][0], signal.SIGKILL)
        told = f"{NO_PORT}; without its directory /data: virtiofsd was killed by SIGKILL"
        cluster.wait_event(EventKind.VM, detail=told)
        assert order(cluster, "stop")["phase"] == "stopped"
        assert not find_helpers(cluster)
        order(cluster, "start")
        left = [pid for pids in find_helpers(cluster).values() for pid in pids]
        assert len(left) == 3
        cluster.process.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in left))


NO_PORT = "runs; no port of the node leads to its ssh"


@pytest.mark.parametrize("daemon", ["none", "old"])
def test_a_node_that_cannot_share_says_why(home: Path, daemon: str) -> None:
    describe_daemon(daemon, home)
    mounts = (Mount(os.fspath(make_share(home, "share")), "/data", tag="data", type="virtiofs"),)
    wrapper = AS_USER
    if daemon == "old":
        script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
        wrapper = (*AS_USER, *NO_USER_NAMESPACES, script, "sh")
    with launched(home, guest_template(build_guest(), mounts=mounts), wrapper) as cluster:
        failed = cluster.wait_phase(0, Phase.FAILED)
        if daemon == "none":
            assert "this node has no virtiofsd, which /data needs" in failed.detail
            assert "Debian: virtiofsd" in str(failed.hint)
        else:
            assert "virtiofsd for the directory /data" in failed.detail
            assert "unshare failed" in failed.detail
            assert "user namespaces" in str(failed.hint)
        wait_until(lambda: not find_helpers(cluster))
