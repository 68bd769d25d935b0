# SPDX-License-Identifier: Apache-2.0
"""A supervisor in a test: a pvc-node that speaks the socket's protocol, the launcher's side, a control client."""

from __future__ import annotations

import array
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from guests import Guest

from pvc import codec
from pvc.channel.doorword import find_door_word
from pvc.model.cluster import LAUNCH, ClusterKeys, ClusterSpec, NodeShare, Placement, VmGroup
from pvc.model.event import Event, EventKind
from pvc.model.node import ImageCache, NodeGrant, VmGrant
from pvc.model.request import Size
from pvc.model.vm import Accel, DirectBoot, Disk, Phase, VmTemplate
from tests.waits import PATIENCE_S

ROOT = Path(__file__).parents[2]
# What both drivers promise is one suite: parametrize with ``hypervisor``, give it to guest_template.
HYPERVISORS = ("qemu", "libvirt")
# Root's libvirtd would be the machine's. In a user namespace of its own the supervisor is somebody whom /etc/passwd
# knows, and may still read the checkout and the test's directories.
AS_USER = ("unshare", "--user", "--map-user=65534", "--map-group=65534")
NODE = "n1"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has now, nor will have by the kernel's choice before it is used."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.SystemRandom().sample(range(first // 2, first), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no port below {first} is free")


def make_keys(directory: Path) -> ClusterKeys:
    """A cluster's keys, as the launcher would make them."""
    directory.mkdir(exist_ok=True)
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9", "-subj", "/CN=pvc"]
    files = ["-keyout", directory / "tls.key", "-out", directory / "tls.pem"]
    subprocess.run(["openssl", "req", "-x509", *kind, *files], check=True, capture_output=True)
    for name in ("ssh", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", directory / name], check=True)
    return ClusterKeys(
        *((directory / name).read_text() for name in ("tls.pem", "tls.key", "ssh", "ssh.pub", "host", "host.pub"))
    )


def guest_template(guest: Guest, disk: Disk | None = None, **changes: Any) -> VmTemplate:
    """A template of the small test guest."""
    boot = DirectBoot(os.fspath(guest.kernel), os.fspath(guest.initrd), guest.append)
    return VmTemplate(**{"name": "tiny", "disk": disk, "boot": boot, "resource_set": "none"} | changes)


def user_net(port: int) -> tuple[str, ...]:
    """Arguments for a network without privileges: ``port`` of 127.0.0.1 leads to the guest's port 22."""
    return (
        *("-netdev", f"user,id=user0,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=user0,romfile=,bus=pcie.0,addr=0x8"),
    )


def make_spec(
    templates: Sequence[VmTemplate],
    keys: ClusterKeys,
    *,
    memory_mib: int = 416,
    accel: Accel = Accel.TCG,
    cpus: int = 1,
    libvirt_hook: str | None = None,
) -> ClusterSpec:
    """A cluster of one VM of each template, all on one node."""
    return ClusterSpec(
        job_id=12,
        name="test",
        definition="tiny",
        placement=Placement((Size(len(templates), cpus),), (NodeShare(NODE, 0, len(templates)),)),
        groups=tuple(VmGroup(template.name, i, 1) for i, template in enumerate(templates)),
        templates={template.name: template for template in templates},
        memory_mib=(memory_mib,),
        accel=accel,
        authorized_keys=(),
        keys=keys,
        libvirt_hook=libvirt_hook,
    )


def make_grant(
    run_dir: Path, vms: Sequence[VmGrant], *, address: str = "127.0.0.1", image_cache: ImageCache | None = None
) -> NodeGrant:
    """A node's grant for VMs whose ports are at ``address``."""
    return NodeGrant(12, NODE, address, os.fspath(run_dir), tuple(vms), image_cache=image_cache)


class FakeNode:
    """pvc-node's socket: answers every attach with one grant and descriptors, or with a refusal."""

    def __init__(self, path: Path, grant: NodeGrant, taps: Sequence[int] = (), refusal: dict[str, Any] | None = None):
        self.requests: list[Any] = []
        self._grant, self._taps, self._refusal = grant, taps, refusal
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(os.fspath(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = json.loads(connection.makefile().readline())
        self.requests.append(request)
        if self._refusal is not None:
            connection.sendall(json.dumps({"ok": False} | self._refusal).encode() + b"\n")
            return
        taps = self._taps
        if "vm" in request:
            taps = [taps[nic.tap_index] for vm in self._grant.vms if vm.rank == request["vm"] for nic in vm.nics]
        answer = {"ok": True, "grant": codec.to_data(self._grant), "fds": len(taps)}
        connection.sendall(json.dumps(answer).encode() + b"\n")
        for first in range(0, len(taps), 200):
            fds = array.array("i", taps[first : first + 200])
            connection.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])

    def close(self) -> None:
        """Listen no more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


class Launched:
    """A supervisor process as its launcher sees it."""

    def __init__(self, spec: ClusterSpec, node_socket: Path, *, home: Path, wrapper: Sequence[str] = ()) -> None:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": os.fspath(home),
            "PYTHONPATH": os.fspath(ROOT),
            "SLURMD_NODENAME": NODE,
            "SLURM_JOB_CPUS_PER_NODE": str(len(os.sched_getaffinity(0))),
            "PVC_NODE_SOCKET": os.fspath(node_socket),
        }
        self.started = time.time()
        if any(template.hypervisor == "libvirt" for template in spec.templates.values()):
            wrapper = (*wrapper, *AS_USER)
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", "from pvc.cli.main import main; main()", "supervise"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            start_new_session=True,
        )
        self.spec, self.keys = spec, spec.keys
        self.events: list[Event] = []
        self._arrived = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdin is not None
        self.process.stdin.write(LAUNCH.dumps(spec).encode() + b"\n")
        self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._arrived:
                self.events.append(codec.loads(Event, line))
                self._arrived.notify_all()

    def wait_event(self, kind: EventKind, *, timeout_s: float = 300, **wanted: Any) -> Event:
        """The first event of a kind with these values, come or to come."""

        def find() -> Event | None:
            for event in self.events:
                if event.kind is kind and all(getattr(event, key) == value for key, value in wanted.items()):
                    return event
            return None

        with self._arrived:
            assert self._arrived.wait_for(find, timeout_s), f"no {kind} {wanted} in {self.events}"
            found = find()
            assert found is not None
            return found

    def wait_phase(self, rank: int, phase: Phase, *, timeout_s: float = 300) -> Event:
        """The event that tells of a VM's phase."""
        return self.wait_event(EventKind.VM, rank=rank, phase=phase, timeout_s=timeout_s)

    def connect(self) -> ssl.SSLSocket:
        """A TLS connection to the control port with the cluster's pair."""
        return self.connect_with(self.keys)

    def connect_with(self, keys: ClusterKeys | None) -> ssl.SSLSocket:
        """A TLS connection with another pair, or with none."""
        event = self.wait_event(EventKind.LISTENING)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=self.keys.tls_cert)
        if keys is not None:
            fd = os.memfd_create("pair")
            os.write(fd, (keys.tls_key + keys.tls_cert).encode())
            context.load_cert_chain(f"/proc/self/fd/{fd}")
            os.close(fd)
        assert event.host is not None
        assert event.port is not None
        plain = socket.create_connection((event.host, event.port), timeout=PATIENCE_S)
        try:
            return context.wrap_socket(plain, server_hostname=find_door_word(self.keys.tls_key))
        except BaseException:
            plain.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request and its answer."""
        with self.connect() as connection:
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer: dict[str, Any] = json.loads(connection.makefile("rb").readline())
            return answer

    def children(self) -> list[int]:
        """The supervisor's children."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in text.split()]

    def qemu_pids(self) -> list[int]:
        """Those of them that are QEMU."""
        return [pid for pid in self.children() if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def wait_end(self, timeout_s: float = PATIENCE_S) -> int:
        """The supervisor's exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(PATIENCE_S)
        return code

    def close(self) -> None:
        """End the supervisor if a test did not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Supervised(Launched):
    """The same with the pvc-node that it asks; see ``supervised``."""

    node: FakeNode


@contextmanager
def supervised(
    base: Path,
    *templates: VmTemplate,
    vms: Sequence[VmGrant] | None = None,
    taps: Sequence[int] = (),
    address: str = "127.0.0.1",
    image_cache: ImageCache | None = None,
    run_dir: Path | None = None,
    keys: ClusterKeys | None = None,
    owner: int | None = None,
    wrapper: Sequence[str] = (),
    change: Callable[[ClusterSpec], ClusterSpec] = lambda spec: spec,
    **spec: Any,
) -> Iterator[Supervised]:
    """A supervisor of a cluster of one VM of each template, with its pvc-node; nothing of them is left afterwards.

    ``base`` gets all of its files, those of VMs in ``run`` unless ``run_dir`` says where. ``owner``: whose they are.
    ``vms``: what the node grants, by default nothing but to run. ``spec``: see ``make_spec``; ``change``: of all of it.
    """
    if run_dir is None:
        run_dir = base / "run"
        run_dir.mkdir(mode=0o700, parents=True)
        if owner is not None:
            os.chown(run_dir, owner, owner)
    plan = change(make_spec(templates, keys or make_keys(base / "keys"), **spec))
    if vms is None:
        vms = [VmGrant(rank, (), {}) for rank in range(sum(group.count for group in plan.groups))]
    node = FakeNode(base / "sock", make_grant(run_dir, vms, address=address, image_cache=image_cache), taps)
    try:
        (base / "sock").chmod(0o777)
        cluster = Supervised(plan, base / "sock", home=base, wrapper=wrapper)
        cluster.node = node
        try:
            yield cluster
        finally:
            cluster.close()
    finally:
        node.close()


class Console:
    """A console connection that collects what comes."""

    def __init__(self, connection: ssl.SSLSocket, rank: int) -> None:
        self.data = b""
        self._connection = connection
        connection.sendall(json.dumps({"op": "console", "vm": rank}).encode() + b"\n")
        self.answer = json.loads(self.wait(b"\n"))
        self.data = self.data.partition(b"\n")[2]

    def wait(self, text: bytes, timeout_s: float = PATIENCE_S) -> bytes:
        """All output once ``text`` is in it."""
        deadline = time.monotonic() + timeout_s
        while text not in self.data:
            self._connection.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                data = self._connection.recv(65536)
            except TimeoutError:
                raise AssertionError(f"no {text!r} after {timeout_s:g} s: {self.data[-2000:]!r}") from None
            assert data, f"console closed before {text!r}: {self.data!r}"
            self.data += data
        return self.data

    def wait_prompt(self) -> None:
        """Return when a shell reads; what was typed before it would be lost."""
        self.wait(b"/ # ", 300)

    def send(self, text: bytes) -> None:
        """Type something."""
        self._connection.sendall(text)


def is_alive(pid: int) -> bool:
    """Whether a process runs, zombies not counted."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
