# SPDX-License-Identifier: Apache-2.0
"""Images as OCI artifacts: a config that describes the image, and each of its files as a layer. Pure.

Media types are pvc's own, so no tool takes the artifact for a container. The config has all that a repository
knows of the image; the manifest must list just the files that it names. Other people's images for VMs are
container images with one disk below ``disk/`` (KubeVirt calls them containerDisk): these are only read.

Sources: image-spec 1.1 of the Open Container Initiative (manifest.md, descriptor.md, annotations.md), and Docker's
"Image Manifest Version 2, Schema 2".
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field, replace
from typing import Any

from pvc import codec
from pvc.images import header
from pvc.images.image import Blob, Format, Image

VERSION = 1
ARTIFACT = "application/vnd.pvc.image.v1"
CONFIG = "application/vnd.pvc.image.config.v1+json"
DISKS = {each: f"application/vnd.pvc.image.disk.v1.{each.value}" for each in Format}
KERNEL = "application/vnd.pvc.image.kernel.v1"
INITRD = "application/vnd.pvc.image.initrd.v1"

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
_CONTAINER_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_CONTAINER_LAYERS = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)

# What other tools take too (containers/image, oras); manifests and configs are read into memory.
MAX_DOCUMENT = 4 << 20
_MAX_LAYERS = 128
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
_TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Descriptor:
    """What a manifest or an index says of a file."""

    media_type: str
    blob: Blob
    annotations: dict[str, str] = field(default_factory=dict)
    platform: str = ""

    @property
    def digest(self) -> str:
        """As registries name it."""
        return f"sha256:{self.blob.sha256}"


@dataclass(frozen=True)
class Manifest:
    """One image: an artifact of pvc's, or a container image."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def is_ours(self) -> bool:
        """Whether pvc wrote it."""
        return self.config.media_type == CONFIG

    @property
    def descriptors(self) -> tuple[Descriptor, ...]:
        """All files, each once."""
        return tuple({each.blob: each for each in (self.config, *self.layers)}.values())


@dataclass(frozen=True)
class Index:
    """Several manifests: tags of a directory, or one image for several kinds of machines."""

    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Config:
    """What the config of an artifact holds; revision and owner are those of a repository, so they are left empty."""

    version: int
    image: Image


# --- writing


def plan_artifact(image: Image) -> tuple[bytes, bytes]:
    """Config and manifest of an image: the same bytes for the same image, wherever it is."""
    config = codec.dumps(Config(VERSION, replace(image, revision=1, owner=""))).encode()
    described = {"org.opencontainers.image.created": _format_time(image.created), _TITLE: image.name}
    if image.description:
        described["org.opencontainers.image.description"] = image.description
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": _to_data(Descriptor(CONFIG, Blob(_sha256(config), len(config)))),
        "layers": [_to_data(each) for each in plan_layers(image)],
        "annotations": described,
    }
    return config, json.dumps(manifest, separators=(",", ":")).encode()


def plan_layers(image: Image) -> tuple[Descriptor, ...]:
    """The files of an image: its disk's layers, lowest first, then kernel and initrd."""
    names = [f"layer{i}.{each.format}" for i, each in enumerate(image.below, 1)] + [f"disk.{image.format}"]
    found = [
        Descriptor(DISKS[each.format], each.blob, {_TITLE: name})
        for name, each in zip(names, image.layers, strict=True)
    ]  # fmt: skip
    if image.kernel is not None:
        found.append(Descriptor(KERNEL, image.kernel, {_TITLE: "kernel"}))
    if image.initrd is not None:
        found.append(Descriptor(INITRD, image.initrd, {_TITLE: "initrd"}))
    return tuple(found)


def plan_index(manifests: tuple[Descriptor, ...]) -> bytes:
    """The index.json of a directory."""
    data = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [_to_data(each) for each in manifests]}
    return json.dumps(data, separators=(",", ":")).encode()


def _to_data(descriptor: Descriptor) -> dict[str, Any]:
    data: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.blob.size,
    }
    if descriptor.platform:
        system, _, machine = descriptor.platform.partition("/")
        data["platform"] = {"os": system, "architecture": machine}
    return data | ({"annotations": descriptor.annotations} if descriptor.annotations else {})


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _sha256(content: bytes) -> str:
    from hashlib import sha256

    return sha256(content).hexdigest()


# --- reading


def parse_document(content: bytes) -> Manifest | Index:
    """What a registry or a directory says.

    :raise ValueError: it is neither a manifest nor an index, or absurd.
    """
    data = _load(content)
    if data.get("schemaVersion") != 2:
        raise ValueError("its manifest is not of schema version 2")
    if "manifests" in data:
        return Index(tuple(map(_parse_descriptor, _list(data, "manifests"))))
    layers = tuple(map(_parse_descriptor, _list(data, "layers")))
    config = _parse_descriptor(data.get("config"))
    if config.blob.size > MAX_DOCUMENT:
        raise ValueError(f"its config has {config.blob.size} bytes (at most {MAX_DOCUMENT})")
    media_type = data.get("mediaType", MANIFEST)
    if media_type not in (MANIFEST, DOCKER_MANIFEST):
        raise ValueError(f"{_show(media_type)} is no manifest that pvc knows")
    if config.media_type in _CONTAINER_CONFIGS:
        strange = [each.media_type for each in layers if each.media_type not in _CONTAINER_LAYERS]
        if strange:
            raise ValueError(f"it has a layer of type {_show(strange[0])}")
    elif config.media_type != CONFIG:
        raise ValueError(
            f"its config is of type {_show(config.media_type)}: neither an image of pvc's nor a container image"
        )
    return Manifest(media_type, config, layers)


def parse_config(manifest: Manifest, content: bytes) -> Image:
    """The image that an artifact holds.

    :raise ValueError: config and manifest are not of one image, or it is of a later version.
    """
    config = codec.from_data(Config, _load(content))
    if config.version != VERSION:
        raise ValueError(f"it has version {config.version}; this pvc knows {VERSION}")
    wanted = [(each.media_type, each.blob) for each in plan_layers(config.image)]
    if [(each.media_type, each.blob) for each in manifest.layers] != wanted:
        raise ValueError("its manifest lists other files than its config")
    return config.image


def choose_platform(index: Index, platform: str) -> Descriptor:
    """The manifest for one kind of machine, such as "linux/amd64"; where there is one of no kind, that.

    :raise ValueError: there is none, or several.
    """
    found = [each for each in index.manifests if each.platform == platform]
    found = found or [each for each in index.manifests if not each.platform]
    if len(found) != 1:
        kinds = ", ".join(sorted({each.platform or "none" for each in index.manifests})) or "none at all"
        raise ValueError(f"it has {len(found)} images for {platform} (there are: {_show(kinds)})")
    return found[0]


def _load(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_DOCUMENT:
        raise ValueError(f"a description of {len(content)} bytes is absurd (at most {MAX_DOCUMENT})")
    try:
        data = codec.read_json(content)
    except ValueError:
        raise ValueError("its description is not JSON") from None
    if not isinstance(data, dict):
        raise ValueError("its description is no JSON object")
    return data


def _list(data: dict[str, Any], key: str) -> list[Any]:
    found = data.get(key)
    if not isinstance(found, list) or len(found) > _MAX_LAYERS:
        raise ValueError(f"its {key} are no list of at most {_MAX_LAYERS}")
    return found


def _parse_descriptor(data: Any) -> Descriptor:
    if not isinstance(data, dict):
        raise ValueError("a descriptor is no JSON object")
    media_type, digest, size = (data.get(key) for key in ("mediaType", "digest", "size"))
    if not isinstance(media_type, str) or not isinstance(digest, str) or type(size) is not int:
        raise ValueError("a descriptor lacks mediaType, digest or size")
    if _DIGEST.fullmatch(digest) is None:
        raise ValueError(f"{_show(digest)} is not a digest by SHA-256")
    if not 0 <= size <= header.MAX_DISK:
        raise ValueError(f"a file of {size} bytes is absurd (at most {header.MAX_DISK >> 40} TiB)")
    notes = data.get("annotations")
    annotations = {k: v for k, v in notes.items() if isinstance(v, str)} if isinstance(notes, dict) else {}
    where = data.get("platform")
    parts = [where.get(key) for key in ("os", "architecture")] if isinstance(where, dict) else []
    platform = "/".join(part if isinstance(part, str) else "" for part in parts)
    return Descriptor(media_type, Blob(digest.removeprefix("sha256:"), size), annotations, platform)


def _show(text: object) -> str:
    """A stranger's text for a message: short, and harmless to a terminal."""
    return ascii(text)[:100]
