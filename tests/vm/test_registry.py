# SPDX-License-Identifier: Apache-2.0
"""Images by a real registry on this machine: sent once, checked on the way in, and told apart from containers."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import signal
import socket
import socketserver
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from harness import free_port

from pvc.errors import HostError, UsageError
from pvc.images.oci import parse_reference
from pvc.images.repository import FoundImage, Repositories
from pvc.images.transfer import Incoming
from pvc.images.verify import verify_store
from tests.unit.images import layouts
from tests.unit.images.disks import import_raw, quiet, raw_disk, repositories
from tests.unit.images.test_archive import filled
from tests.unit.images.test_chain import save
from tests.waits import wait_until

pytestmark = pytest.mark.vm

# "me" with the password "secret".
HTPASSWD = "me:$2y$04$kqItLmyl4IFSpeWxDoJ/.umuT9S/eGT6VEEGhMy2NNLEojkaASFGe\n"
CONFIG = """
version: 0.1
log: {{level: info, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"{more}}}
auth: {{htpasswd: {{realm: test, path: {htpasswd}}}}}
"""

# Asked as docker-credential-helpers say: the verb is an argument, the place comes by standard input.
HELPER = """#!/bin/sh
read -r place
echo "$1 $place" >> {log}
echo '{{"ServerURL": "x", "Username": "me", "Secret": "secret"}}'
"""


@dataclass
class Registry:
    """A registry that runs."""

    place: str
    base: Path
    data: Path

    def requests(self) -> list[str]:
        """What it was asked for, as METHOD PATH."""
        lines = (self.base / "access.log").read_text().splitlines()
        return [" ".join(line.split('"')[1].split()[:2]) for line in lines if '"' in line and "HTTP/1" in line]

    def sent(self) -> int:
        """How many files it has taken."""
        return sum(each.startswith("PUT") and "/blobs/uploads/" in each for each in self.requests())

    def fetched(self) -> int:
        """How many files it has given."""
        return sum(each.startswith("GET") and "/blobs/" in each for each in self.requests())


@contextmanager
def served(base: Path, more: str = "") -> Iterator[Registry]:
    """A registry on a port of its own; ``more`` belongs to its key ``http``."""
    port = free_port()
    (base / "htpasswd").write_text(HTPASSWD)
    config = CONFIG.format(data=base / "data", port=port, htpasswd=base / "htpasswd", more=more)
    (base / "config.yml").write_text(config)
    with (base / "access.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", base / "config.yml"], stdout=log, stderr=log)
    try:

        def listens() -> bool:
            assert process.poll() is None, (base / "access.log").read_text()
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return True

        wait_until(listens, bear=(OSError,))
        yield Registry(f"127.0.0.1:{port}", base, base / "data")
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with served(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def home(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who is logged in, as docker login leaves it."""
    path = tmp_path / "home"
    (path / ".docker").mkdir(parents=True)
    known = {"auths": {registry.place: {"auth": base64.b64encode(b"me:secret").decode()}}}
    (path / ".docker" / "config.json").write_text(json.dumps(known))
    monkeypatch.setenv("HOME", str(path))
    for name in ("XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return path


def push(where: Repositories, name: str, target: str) -> str:
    reference = parse_reference(target)
    assert reference is not None
    return where.export_oci(where.locate(name), reference, quiet)


def pull(where: Repositories, source: str, name: str = "") -> FoundImage:
    reference = parse_reference(source)
    assert reference is not None
    return where.import_oci(reference, Incoming(Path("there"), name, owner="me"), quiet, repository="site")


def files(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}


def skopeo(home: Path, *words: str) -> str:
    argv = ["skopeo", *words]
    return subprocess.run(argv, env=os.environ | {"HOME": str(home)}, check=True, capture_output=True, text=True).stdout


def test_an_image_goes_there_and_back_and_is_an_artifact(registry: Registry, home: Path, tmp_path: Path) -> None:
    where = filled(tmp_path)
    digest = push(where, "a", f"docker://{registry.place}/a:v1")
    sent = registry.sent()
    # Again, under another tag: nothing but the manifest goes there.
    assert push(where, "a", f"oci://{registry.place}/a:v2") == digest
    assert registry.sent() == sent
    raw = json.loads(skopeo(home, "inspect", "--raw", "--tls-verify=false", f"docker://{registry.place}/a:v1"))
    assert raw["artifactType"] == "application/vnd.pvc.image.v1"
    kinds = [each["mediaType"].removeprefix("application/vnd.pvc.image.") for each in raw["layers"]]
    assert kinds == ["disk.v1.raw", "kernel.v1", "initrd.v1"]
    assert raw["annotations"]["org.opencontainers.image.title"] == "a"
    told = skopeo(home, "list-tags", "--tls-verify=false", f"docker://{registry.place}/a")
    assert json.loads(told)["Tags"] == ["v1", "v2"]
    made = pull(where, f"docker://{registry.place}/a@{digest}", "b")
    assert made.image.blobs == where.find("user:a").blobs
    # Another time: the repository has all its files.
    fetched = registry.fetched()
    assert pull(where, f"docker://{registry.place}/a:v2").uri == "site:a@1"
    assert registry.fetched() == fetched + 1, "the config alone"
    assert [each.problem for each in verify_store(where.store("site"), quiet)] == [None, None]
    assert files(home) == {".docker/config.json"}
    assert not list((where.store("site").path / ".tmp").iterdir())


def test_layers_that_images_share_are_sent_and_fetched_once(registry: Registry, home: Path, tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site")
    import_raw(where, tmp_path, "base")
    save(where, "base", "top", b"2")
    push(where, "base", f"docker://{registry.place}/shared:base")
    before = registry.sent()
    push(where, "top", f"docker://{registry.place}/shared:top")
    assert registry.sent() == before + 2, "the upper layer and the config"
    pull(where, f"docker://{registry.place}/shared:base")
    before = registry.fetched()
    made = pull(where, f"docker://{registry.place}/shared:top")
    assert registry.fetched() == before + 2
    assert made.image.layers == where.find("user:top").layers
    where.verify(made)


def test_a_container_disk_by_a_registry(registry: Registry, home: Path, tmp_path: Path) -> None:
    import gzip

    where = filled(tmp_path)
    layer = gzip.compress(layouts.tar_of({"disk/vm.img": raw_disk(1 << 20)}))
    layouts.container(tmp_path / "layout", layer, kind="tar+gzip")
    for form, tag in (("oci", "one"), ("v2s2", "two")):
        skopeo(home, "copy", "--dest-tls-verify=false", f"--format={form}", f"oci:{tmp_path / 'layout'}:latest",
               f"docker://{registry.place}/containerdisk:{tag}")  # fmt: skip
        made = pull(where, f"docker://{registry.place}/containerdisk:{tag}", f"vm-{tag}")
        assert (made.image.format, made.image.size) == ("raw", 1 << 20)
    assert not list((where.store("site").path / ".tmp").iterdir())


def test_a_registry_that_refuses_or_lies(registry: Registry, home: Path, tmp_path: Path) -> None:
    where = filled(tmp_path)
    place = f"docker://{registry.place}/lies:v1"
    push(where, "a", place)
    with pytest.raises(HostError, match="manifest unknown"):
        pull(where, f"docker://{registry.place}/lies:v9")
    disk = where.find("a").disk.sha256
    path = registry.data / f"docker/registry/v2/blobs/sha256/{disk[:2]}/{disk}/data"
    path.write_bytes(raw_disk(4096, b"other"))
    with pytest.raises((HostError, UsageError), match=r"[Dd]igest did not match|is damaged"):
        pull(where, place)
    (home / ".docker" / "config.json").write_text("{}")
    with pytest.raises(HostError, match="authentication required") as caught:
        pull(where, place)
    assert caught.value.find_hint() == f"log in first: skopeo login {registry.place}"
    with pytest.raises(HostError, match="authentication required"):
        push(where, "a", place)
    port = free_port()
    with pytest.raises(HostError, match="connection refused"):
        pull(where, f"docker://127.0.0.1:{port}/nobody")
    assert files(tmp_path / "site") == {".config"}


def test_a_transfer_that_is_killed_leaves_nothing(registry: Registry, home: Path, tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site")
    (tmp_path / "big").write_bytes(raw_disk(1 << 20) + os.urandom(96 << 20))
    where.import_file(Incoming(tmp_path / "big", "big"), quiet)
    place = f"docker://{registry.place}/big:v1"

    def interrupted(action: Any) -> None:
        """Run it in a process that is killed as soon as bytes move."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                action(lambda _what, done, _all: os.write(writing, b".") if done else 0)
            os._exit(0)
        os.close(writing)
        os.read(reading, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)

    reference = parse_reference(place)
    assert reference is not None
    interrupted(lambda tell: where.export_oci(where.locate("big"), reference, tell))
    with pytest.raises(HostError, match="manifest unknown"):
        pull(where, place)
    push(where, "big", place)
    incoming = Incoming(Path("there"), "big")
    interrupted(lambda tell: where.import_oci(reference, incoming, tell, repository="site"))
    site = where.store("site")
    assert not site.list_revisions()
    # What the killed one has left goes with the next writer; skopeo went with it.
    site.collect()
    assert files(site.path) == {".config"}
    assert pull(where, place).uri == "site:big@1"


def test_the_registry_asks_for_credentials(registry: Registry) -> None:
    with pytest.raises(urllib.request.HTTPError, match="401"):
        urllib.request.urlopen(f"http://{registry.place}/v2/", timeout=60)


# --- over TLS, by a name that is not this machine's (there certificates do not count), through a proxy that knows it


class Tunnel(socketserver.BaseRequestHandler):
    """CONNECT of an HTTP proxy: whatever name it is asked for, the port is one of this machine's."""

    def handle(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.request.recv(4096) or b"\r\n\r\n"
        match = re.match(rb"CONNECT registry\.test:(\d+) ", head)
        if match is None:
            return
        with socket.create_connection(("127.0.0.1", int(match[1]))) as there:
            self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            ends = {self.request: there, there: self.request}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    with suppress(OSError):
                        if part := end.recv(65536):
                            ends[end].sendall(part)
                            continue
                    return


class Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True


def make_certificate(base: Path) -> None:
    """ca.crt, and server.crt for registry.test, signed by it."""
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    more = ["-CA", base / "ca.crt", "-CAkey", base / "ca.key", "-addext", "subjectAltName=DNS:registry.test"]
    for name, words in (("ca", []), ("server", [*more, "-addext", "basicConstraints=critical,CA:FALSE"])):
        argv = [*new, "-subj", f"/CN={name} of a test", "-keyout", base / f"{name}.key", "-out", base / f"{name}.crt"]
        subprocess.run([*argv, *words], check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    base = tmp_path_factory.mktemp("secured")
    make_certificate(base)
    with served(base, f", tls: {{certificate: {base}/server.crt, key: {base}/server.key}}") as found:
        yield replace(found, place=found.place.replace("127.0.0.1", "registry.test"))


@pytest.fixture
def away(secured: Registry, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The registry, for a user whose way out is a proxy; nobody is logged in there."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("SSL_CERT_"):
            monkeypatch.delenv(name)
    with Proxy(("127.0.0.1", 0), Tunnel) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield secured
        proxy.shutdown()


def test_a_certificate_that_nobody_vouches_for_is_refused(away: Registry, tmp_path: Path) -> None:
    where = filled(tmp_path)
    place = f"docker://{away.place}/a:v1"
    for action in (lambda: push(where, "a", place), lambda: pull(where, place)):
        with pytest.raises(HostError, match="x509: certificate signed by unknown authority") as caught:
            action()
        assert f"~/.config/containers/certs.d/{away.place}/ca.crt" in (caught.value.find_hint() or "")


@pytest.mark.parametrize("trust", ["certs.d", "SSL_CERT_FILE"])
@pytest.mark.parametrize("login", ["REGISTRY_AUTH_FILE", "helper"])
def test_certificates_and_credentials_are_where_skopeo_has_them(
    away: Registry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: str, login: str
) -> None:
    if trust == "certs.d":
        place = home / ".config" / "containers" / "certs.d" / away.place
        place.mkdir(parents=True)
        (place / "ca.crt").write_bytes((away.base / "ca.crt").read_bytes())
    else:
        monkeypatch.setenv("SSL_CERT_FILE", str(away.base / "ca.crt"))
    where = filled(tmp_path)
    target = f"docker://{away.place}/{login.lower()}:v1"
    with pytest.raises(HostError, match="authentication required"):
        push(where, "a", target)
    auth = tmp_path / "auth.json"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth))
    if login == "helper":
        auth.write_text(json.dumps({"credHelpers": {away.place: "pvctest"}}))
        with pytest.raises(HostError, match="docker-credential-pvctest") as caught:
            push(where, "a", target)
        assert "credHelpers" in (caught.value.find_hint() or "")
        helper = tmp_path / "bin" / "docker-credential-pvctest"
        helper.parent.mkdir()
        helper.write_text(HELPER.format(log=tmp_path / "asked"))
        helper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{helper.parent}")
    else:
        auth.write_text(json.dumps({"auths": {away.place: {"auth": base64.b64encode(b"me:secret").decode()}}}))
    push(where, "a", target)
    made = pull(where, target, "b")
    assert made.image.blobs == where.find("user:a").blobs
    if login == "helper":
        assert set((tmp_path / "asked").read_text().split()) == {"get", away.place}
