# SPDX-License-Identifier: Apache-2.0
"""OCI layouts for tests, made by hand."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from pvc.images import ocimanifest as oci


def put(layout: Path, content: bytes) -> dict[str, Any]:
    """Add a file; its descriptor lacks a type."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = layout / "blobs" / "sha256" / sha256
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"digest": f"sha256:{sha256}", "size": len(content)}


def write(layout: Path, manifest: dict[str, Any], tag: str = "latest") -> None:
    """A layout with one manifest."""
    put(layout, b"")
    entry = put(layout, json.dumps(manifest).encode()) | {"mediaType": oci.MANIFEST, "annotations": {oci.REF_NAME: tag}}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def read(layout: Path) -> dict[str, Any]:
    """The manifest of a layout with one tag."""
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    data: dict[str, Any] = json.loads((layout / "blobs/sha256" / entry["digest"].removeprefix("sha256:")).read_bytes())
    return data


def tar_of(members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


def container(layout: Path, *layers: bytes, kind: str = "tar") -> None:
    """A container image of these layers."""
    config = put(layout, b'{"architecture":"amd64","os":"linux"}') | {
        "mediaType": "application/vnd.oci.image.config.v1+json"
    }
    found = [put(layout, each) | {"mediaType": f"application/vnd.oci.image.layer.v1.{kind}"} for each in layers]
    write(layout, {"schemaVersion": 2, "config": config, "layers": found})
