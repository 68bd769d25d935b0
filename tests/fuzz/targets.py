# SPDX-License-Identifier: Apache-2.0
"""What takes bytes of strangers in Python, each as a target: whose bytes they are, and what it may raise."""

from __future__ import annotations

import asyncio
import atexit
import io
import json
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from pvc import codec, parse, texts
from pvc.channel import frames, mux, trees
from pvc.channel.frames import ProtocolError
from pvc.config import load, yamlmarks
from pvc.errors import GuestError, HostError, PvcError, UsageError
from pvc.images import archive, containerdisk, foreign, guestrecipe, header, ocimanifest, recipe
from pvc.images.image import Format, Image, parse_uri
from pvc.model import forward, request
from pvc.model.vm import Mount
from pvc.node import daemon, probing, requests
from pvc.node.context import Context, NodeName
from pvc.ops import definition, execute
from pvc.ops import load as guestload
from pvc.plan import cloudinit
from pvc.supervisor import attach, control
from pvc.supervisor.agentrelay import Relay, Route
from tests.fuzz.engine import Target

_LIMIT_S = 5.0
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# --- pvc-node: any user of the node ---------------------------------------------------------------------------------


@cache
def _daemon() -> daemon.Daemon:
    """One without any job: what it says of requests is all that a stranger can reach."""
    base = _base()
    return daemon.Daemon(Context(base, base, base), NodeName("n1"))


def node_socket(data: bytes) -> None:
    """A connection to pvc-node, from its first byte to the answer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        with suppress(BlockingIOError):
            theirs.send(data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            text = daemon._read_request(ours, _LIMIT_S)
        except HostError:
            return
        if text.startswith("PVC1 "):
            with suppress(ValueError):
                requests.parse(text)
        elif text:
            _daemon()._answer_user(ours, 4242, text)
            answer = json.loads(theirs.recv(1 << 16))
            assert answer["ok"] is False
            assert answer["error"]


def node_request(data: bytes) -> None:
    """What the prolog sends, and the one text of a user in it."""
    text = data.decode(errors="surrogateescape")
    with suppress(ValueError):
        found = request.decode_request(text)
        assert request.decode_request(found.encode()) == found
    with suppress(ValueError):
        requests.parse(text)
    with suppress(ValueError, PvcError):
        definition.parse_items(text)


def node_probe(data: bytes) -> None:
    message = codec.read_json(data)
    if isinstance(message, dict):
        probing.parse_request(message)


# --- a cluster's owner, a guest -------------------------------------------------------------------------------------


class _Sink:
    """The other end of a connection that takes everything."""

    def __init__(self) -> None:
        self.transport = self
        self.written = bytearray()

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        return

    def get_extra_info(self, _name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        assert high > 0

    def abort(self) -> None:
        return


def _no_agent(_rank: int) -> Any:
    raise GuestError("there is none")


def control_port(data: bytes) -> None:
    """A connection to a supervisor that runs no VM."""

    async def stop(_grace_s: float) -> None:
        return

    async def ask(message: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "heard": sorted(message)}

    async def converse() -> None:
        reader = asyncio.StreamReader(limit=control.MAX_REQUEST)
        reader.feed_data(data)
        reader.feed_eof()
        port = control.Control(lambda: (), stop, ask, cast(Any, None))
        await port._answer(reader, cast(asyncio.StreamWriter, _Sink()))

    asyncio.run(converse())


def client_frames(data: bytes) -> None:
    """What a client sends to a supervisor's relay after its request."""

    async def run() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        await Relay(reader, cast(asyncio.StreamWriter, _Sink()), _no_agent).run()

    asyncio.run(run())


def guest_frames(data: bytes) -> None:
    """What an agent sends: in whatever pieces it comes, it means the same."""
    for packet in _decode(data, len(data) + 1):
        if packet.kind is frames.Kind.HELLO:
            with suppress(ProtocolError):
                frames.parse_hello(packet.payload)
    assert _decode(data, len(data) + 1) == _decode(data, max(1, len(data) // 7))


def _decode(data: bytes, size: int) -> list[frames.Frame]:
    decoder, found = frames.Decoder(in_step=True), list[frames.Frame]()
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        while True:
            try:
                more = decoder.feed(piece)
            except ProtocolError:
                more = None
            piece = b""
            if more == []:
                break
            found += more or []
    return found


def guest_streams(data: bytes) -> None:
    """What a client makes of the frames that come for it, with streams of three kinds open."""
    streams = mux.Mux()
    for words in ([("op", "exec")], [("op", "listen")], [("op", "connect"), ("net", "udp")]):
        streams.send(streams.open(words), b"hello" * 100)
    for event in streams.receive(data):
        if isinstance(event, mux.Arrived):
            streams.taken(event.stream, len(event.data))
        elif isinstance(event, mux.Closed):
            _results(event.words)
    assert sum(map(len, streams.take_output())) < 1 << 20


def _results(words: dict[str, str]) -> None:
    guestload.parse_metrics(words)
    code, number = execute.parse_end(words)
    assert (code or 0) < 256
    assert (number or 0) < 128


def guest_accepts(data: bytes) -> None:
    """A connection of a guest's for somebody who listens: its words are handed on with a number of ours."""
    relay = Relay(cast(Any, None), cast(asyncio.StreamWriter, _Sink()), _no_agent)
    route = Route(relay, cast(Any, None), (1 << 31) - 1)
    route.accept(1 << 31 | 1, frames.parse_words(data[: frames.MAX_PAYLOAD]))


def guest_trees(data: bytes) -> None:
    """A tree of files, as a guest tells it."""
    whole, pieces = _read_tree(data, len(data) + 1), _read_tree(data, max(1, len(data) // 5))
    assert whole == pieces


def _read_tree(data: bytes, size: int) -> list[object]:
    reader, found = trees.TreeReader(), list[object]()
    with suppress(ProtocolError):
        for at in range(0, len(data), size):
            for each in reader.feed(data[at : at + size]):
                # Content comes in pieces of any size.
                if isinstance(each, trees.Content) and found and isinstance(found[-1], bytes):
                    found[-1] += each.data
                else:
                    found.append(each.data if isinstance(each, trees.Content) else each)
                if isinstance(each, trees.Entry) and each.name:
                    assert not {"", ".", ".."} & set(each.name.split("/"))
    return found


def node_answers(data: bytes) -> None:
    attach._parse_grant(attach.parse_answer(data))


# --- images and what describes them ---------------------------------------------------------------------------------


def image_header(data: bytes) -> None:
    for expected in (None, *Format):
        with suppress(header.HeaderError):
            found = header.parse_header(data, max(len(data), 1 << 20), expected)
            assert 0 < found.size <= header.MAX_DISK
    with suppress(header.HeaderError):
        header.parse_header(data, 1 << 20, backing=header.Backing("base", Format.QCOW2))


def foreign_header(data: bytes) -> None:
    foreign.parse_foreign(data, data[-512:])


def oci_documents(data: bytes) -> None:
    """A manifest or an index, and a config, of a registry or a directory."""
    found = ocimanifest.parse_document(data)
    if isinstance(found, ocimanifest.Index):
        ocimanifest.choose_platform(found, "linux/amd64")
    else:
        ocimanifest.parse_config(found, data)


def image_description(data: bytes) -> None:
    """An image as a repository, an archive or a registry describes it."""
    found = codec.loads(Image, data)
    archive._check_manifest(archive.Manifest(archive.VERSION, (found,)), None)
    config, manifest = ocimanifest.plan_artifact(found)
    again = ocimanifest.parse_document(manifest)
    assert isinstance(again, ocimanifest.Manifest)
    assert ocimanifest.parse_config(again, config).disk == found.disk


def archives(data: bytes) -> None:
    pipe = io.BytesIO(data)
    manifest = archive._read_manifest(pipe)
    archive._check_manifest(manifest, None)
    for _ in manifest.blobs:
        archive._read_member(pipe)


def layers(data: bytes) -> None:
    """A layer of a container image."""
    pipe = io.BytesIO(data)
    for member in containerdisk._walk(pipe):
        containerdisk._skip(pipe, member.size)


# --- text files -----------------------------------------------------------------------------------------------------


@cache
def _base() -> Path:
    base = tempfile.mkdtemp(prefix="pvc-fuzz-")
    atexit.register(shutil.rmtree, base)
    return Path(base)


@contextmanager
def _written(name: str, data: bytes) -> Iterator[Path]:
    path = _base() / name
    path.write_bytes(data)
    try:
        yield path
    finally:
        path.unlink()


def recipes(data: bytes) -> None:
    with _written("recipe.yaml", data) as path:
        with suppress(PvcError):
            found = guestrecipe.load_guest_recipe(path)
            if found is not None:
                codec.dumps(found)
        recipe.load_recipe(path).digest()


def configuration(data: bytes) -> None:
    """Each file of a site and of a user, all with the same content."""
    for name in ("batch", "networks", "resources", "templates", "repositories"):
        with _written(f"{name}.yaml", data) as path, suppress(PvcError):
            if name in ("templates", "repositories"):
                load.load_config(path.parent, path.parent)
            else:
                load.load_root_config(path.parent)


def yaml_text(data: bytes) -> None:
    found = yamlmarks.parse_document("x.yaml", data)
    for problem in found.problems:
        str(problem)
    if not found.problems:
        yaml.safe_dump(found.data)


def cloud_config(data: bytes) -> None:
    """Words of a user in a seed: each stays in its place, whatever it is."""
    word = data.decode(errors="replace")
    mount = Mount(tag=word, source="/", target=word, read_only=False, type="9p")
    spec = cloudinit.SeedSpec(word, word, (), (word,), word, word, None, (mount,), agent=True)
    found = cloudinit.plan_seed(spec)
    assert json.loads(found["meta-data"]) == {"instance-id": word, "local-hostname": word, "public-keys": [word]}
    vendor = found["vendor-data"].removeprefix("#cloud-config\n")
    assert yaml.load(vendor, _LOADER) == json.loads(vendor)
    assert json.loads(vendor)["bootcmd"][0][-3:] == [word, word, "rw"]


def words(data: bytes) -> None:
    """Short texts of users and of other programs."""
    text = data.decode(errors="surrogateescape")
    parsers: tuple[Callable[[str], object], ...] = (
        *(parse.parse_size, parse.parse_duration, parse.parse_name, parse.parse_mac, parse.parse_network),
        *(parse.parse_cpu_list, parse.parse_cpus_per_node, parse.parse_bool, texts.clean_text),
        *(forward.parse_forward, parse_uri),
    )
    for each in parsers:
        with suppress(ValueError):
            each(text)
    assert texts.clean_text(text).isprintable()


TARGETS = {
    target.name: target
    for target in (
        Target("node-socket", node_socket, (OSError, UnicodeDecodeError)),
        Target("node-request", node_request),
        Target("node-probe", node_probe, (ValueError, UsageError)),
        Target("node-answers", node_answers, (PvcError,)),
        Target("control-port", control_port, (OSError, EOFError, TimeoutError, ProtocolError)),
        Target("client-frames", client_frames, (ProtocolError,)),
        Target("guest-frames", guest_frames),
        Target("guest-streams", guest_streams, (ProtocolError,)),
        Target("guest-accepts", guest_accepts, (ProtocolError,)),
        Target("guest-trees", guest_trees),
        Target("image-header", image_header),
        Target("foreign-header", foreign_header, (header.HeaderError,)),
        Target("oci-documents", oci_documents, (ValueError,)),
        Target("image-description", image_description, (ValueError,)),
        Target("archives", archives, (ValueError,)),
        Target("layers", layers, (ValueError,)),
        Target("recipes", recipes, (PvcError,)),
        Target("configuration", configuration),
        Target("yaml", yaml_text),
        Target("cloud-config", cloud_config),
        Target("words", words),
    )
}
