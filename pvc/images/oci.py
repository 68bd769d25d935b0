# SPDX-License-Identifier: Apache-2.0
"""OCI registries and layouts as a way for images: see ``ocimanifest`` for what travels.

    oci:DIR[:TAG]                    a layout: a directory that pvc reads and writes itself
    docker://HOST/REPOSITORY[:TAG]   a registry, by skopeo(1); oci:// means the same; @sha256:... instead of a tag

What a registry sends goes to a directory of the repository's session, so it goes with it. Files that the
repository has are not fetched, and those that the registry has are not sent.
"""

from __future__ import annotations

import ipaddress
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from pvc.errors import HostError, UsageError
from pvc.host import skopeo
from pvc.images import ocimanifest, streams
from pvc.images.containerdisk import extract_disk
from pvc.images.image import Blob, Image
from pvc.images.ocilayout import blob_path, find_tag, read_blob, stage_layout, write_layout
from pvc.images.ocimanifest import Manifest, parse_config, parse_document, plan_artifact
from pvc.images.store import Session, Store
from pvc.images.streams import Progress, copy_stream, hash_file, open_source
from pvc.images.transfer import Incoming, check_boot_files, check_described, check_layers, check_new, import_own
from pvc.images.workdir import work_directory

_TAG = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")
_PLACE = re.compile(
    r"^(?P<host>\[[0-9a-fA-F:]+\](:[0-9]+)?|[A-Za-z0-9.-]+(:[0-9]+)?)/(?P<path>[a-z0-9._/-]+)"
    r"(:(?P<tag>[^:@/]+))?(@(?P<digest>sha256:[0-9a-f]{64}))?$"
)
# Manifests of indices of indices are nobody's.
_MAX_STEPS = 2
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Reference:
    """Where an image is or goes: a directory, or a repository of a registry."""

    text: str
    layout: Path | None = None
    repository: str = ""
    tag: str | None = None
    digest: str | None = None

    @property
    def plain(self) -> bool:
        """Whether the registry is on this machine, where no TLS is asked for (as docker does)."""
        host = self.repository.partition("/")[0]
        name = host.rpartition(":")[0] if re.search(r":[0-9]+$", host) else host
        try:
            return ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return name == "localhost"

    def named(self, digest: str | None = None) -> str:
        """As skopeo takes it."""
        chosen = digest or self.digest
        return f"docker://{self.repository}" + (f"@{chosen}" if chosen else f":{self.tag or 'latest'}")


def parse_reference(text: str) -> Reference | None:
    """The place that ``text`` means; None where it is no OCI reference.

    :raise UsageError: it is a malformed one.
    """
    for scheme in ("docker://", "oci://"):
        if text.startswith(scheme):
            return _parse_registry(text, text.removeprefix(scheme))
    if not text.startswith("oci:"):
        return None
    path, colon, tag = text.removeprefix("oci:").rpartition(":")
    if not colon or "/" in tag:
        path, tag = text.removeprefix("oci:"), ""
    if not path or (tag and _TAG.fullmatch(tag) is None):
        raise UsageError(f"{text!r} is not an OCI layout such as oci:DIR or oci:DIR:TAG")
    return Reference(text, Path(path), tag=tag or None)


def _parse_registry(text: str, place: str) -> Reference:
    match = _PLACE.fullmatch(place)
    if match is None or (match["tag"] and _TAG.fullmatch(match["tag"]) is None):
        hint = None
        if "@" in place.partition("/")[0]:
            hint = "credentials come from skopeo login, never from a name"
            text = f"{text.partition('//')[0]}//***@{place.partition('@')[2]}"
        raise UsageError(f"{text!r} is not an image of a registry such as docker://HOST/REPOSITORY:TAG", hint=hint)
    return Reference(text, None, f"{match['host']}/{match['path']}", match["tag"], match["digest"])


# --- export


def export_oci(store: Store, image: Image, reference: Reference, progress: Progress) -> str:
    """Write an image to a layout or a registry; the digest of its manifest.

    :raise UsageError: it may not be written there.
    :raise GuestError: the image is damaged.
    :raise HostError: the disk is full, or the registry refuses.
    """
    if reference.digest:
        raise UsageError(f"{reference.text}: a digest follows from the image: name a tag")
    config, manifest = plan_artifact(image)
    blobs = {blob: store.blob_path(blob) for blob in image.blobs}
    if reference.layout is not None:
        write_layout(reference.layout, reference.tag or "latest", manifest, config, blobs, progress)
    else:
        _push(reference, manifest, config, blobs, str(image), progress)
    return f"sha256:{sha256(manifest).hexdigest()}"


def _push(
    reference: Reference, manifest: bytes, config: bytes, blobs: dict[Blob, Path], label: str, progress: Progress
) -> None:
    total = sum(blob.size for blob in blobs)
    with work_directory("pvc-oci-") as work:
        stage_layout(work / "image", manifest, config, blobs)
        progress(label, 0, total)
        skopeo.copy(
            f"oci:{work / 'image'}:pvc", reference.named(), plain=reference.plain, most=ocimanifest.MAX_DOCUMENT,
            progress=lambda done: progress(label, min(max(done, 1), total - 1), total),
        )  # fmt: skip
    progress(label, total, total)


# --- import


def import_oci(store: Store, reference: Reference, incoming: Incoming, progress: Progress) -> Image:
    """Make an image of a layout or a registry the next revision of its name, or of the one that is asked for.

    ``incoming.source`` is what messages call it. Its other values are for a container image with a disk in it;
    an artifact of pvc's says all itself.

    :raise UsageError: it is no image that pvc takes, or damaged.
    :raise HostError: the registry does not answer, or the repository cannot be written; that is as before then.
    """
    try:
        with store.session() as session:
            manifest, path_of = _open(store, session, reference, progress)
            if not manifest.is_ours:
                _check_container(incoming, reference)
                disk = extract_disk(store, session, manifest, path_of, incoming.source, progress)
                return import_own(store, session, incoming, disk, progress)
            if incoming.needs_more:
                raise UsageError(f"{reference.text} is an image of pvc's: it says all but NAME and -R itself")
            image = parse_config(manifest, read_blob(path_of(manifest.config.blob), manifest.config.blob))
            check_described(image)
            if not incoming.name and not incoming.update:
                check_new(store, [image], reference.text)
            for blob in image.blobs:
                if not session.has(blob) and not session.claim(blob):
                    _bring(store, session, image, blob, path_of(blob), progress, own=reference.layout is None)
            check_layers(session, image, incoming.source)
            check_boot_files(session, image, incoming.source)
            named = replace(
                image, name=incoming.name or image.name, revision=1, created=time.time(), owner=incoming.owner
            )
            return session.commit(named)
    except ValueError as err:
        raise UsageError(f"cannot import {reference.text}: {err}") from None


def _check_container(incoming: Incoming, reference: Reference) -> None:
    if not incoming.name:
        raise UsageError(f"{reference.text} is a container image with a disk: how shall the image be called (NAME)?")


def _bring(
    store: Store, session: Session, image: Image, blob: Blob, path: Path, progress: Progress, *, own: bool
) -> None:
    """Add one file to the session, when it is what its name says; ``own``: nobody else can change it."""
    sparse = image.is_raw(blob)
    if own and not sparse:
        found = hash_file(path, f"check of {blob.sha256[:12]}", progress)
        if found == blob:
            streams.sync_file(path)
            session.add(blob, path)
    else:
        with open_source(path) as stream, store.temporary() as (target, temporary):
            streams.check_space(store, [stream])
            found = copy_stream(stream, path, target, sparse, _labelled(progress, blob))
            if found == blob:
                session.add(blob, temporary)
    if found != blob:
        raise ValueError(f"its file {blob.sha256} is damaged")
    if own:
        path.unlink(missing_ok=True)


def _labelled(progress: Progress, blob: Blob) -> Progress:
    return lambda _, done, total: progress(blob.sha256[:12], done, total)


def _open(
    store: Store, session: Session, reference: Reference, progress: Progress
) -> tuple[Manifest, Callable[[Blob], Path]]:
    """The manifest that is meant, and where its files are; those that the repository has already are claimed."""
    if reference.layout is None:
        return _fetch(store, session, reference, progress)
    layout = reference.layout
    descriptor = find_tag(layout, reference.tag)
    for _ in range(_MAX_STEPS):
        document = parse_document(read_blob(blob_path(layout, descriptor.blob), descriptor.blob))
        if isinstance(document, Manifest):
            return document, lambda blob: blob_path(layout, blob)
        descriptor = ocimanifest.choose_platform(document, _find_platform())
    raise ValueError("it is an index of indices")


def _find_platform() -> str:
    machine = platform.machine()
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


def _fetch(
    store: Store, session: Session, reference: Reference, progress: Progress
) -> tuple[Manifest, Callable[[Blob], Path]]:
    """Ask for the manifest, look at it, then have what is missing sent."""
    wanted = reference.digest
    for _ in range(_MAX_STEPS):
        content = skopeo.read_manifest(reference.named(wanted), plain=reference.plain).encode()
        found = f"sha256:{sha256(content).hexdigest()}"
        if wanted and found != wanted:
            raise ValueError(f"the registry sends {found} for {wanted}")
        document, wanted = parse_document(content), found
        if isinstance(document, Manifest):
            break
        wanted = ocimanifest.choose_platform(document, _find_platform()).digest
    else:
        raise ValueError("it is an index of indices")
    missing = [each.blob for each in document.descriptors if not (document.is_ours and session.claim(each.blob))]
    _check_space(store, sum(blob.size for blob in missing))
    return document, _pull(store, session, reference, document, wanted, missing, progress)


def _check_space(store: Store, needed: int) -> None:
    facts = os.statvfs(store.path)
    free = facts.f_bavail * facts.f_frsize
    if needed > free:
        raise HostError(
            f"{store.path} has {free >> 20} MiB free; the image needs {needed >> 20} MiB",
            hint=f"free space below {store.path}, or delete images: pvc image delete",
        )


def _pull(
    store: Store,
    session: Session,
    reference: Reference,
    manifest: Manifest,
    digest: str,
    missing: list[Blob],
    progress: Progress,
) -> Callable[[Blob], Path]:
    """Where the files are, now that they are here."""
    work, total = session.work_directory("oci"), max(sum(blob.size for blob in missing), 1)
    docker = manifest.media_type == ocimanifest.DOCKER_MANIFEST

    def path_of(blob: Blob) -> Path:
        return work / blob.sha256 if docker else blob_path(work, blob)

    if not docker:
        # skopeo takes what is there already for fetched.
        (work / "blobs" / "sha256").mkdir(parents=True)
        for each in manifest.descriptors:
            if session.has(each.blob):
                path_of(each.blob).symlink_to(store.blob_path(each.blob).absolute())
    label = reference.repository.rpartition("/")[2]
    progress(label, 0, total)
    with store.explained("write to"):
        skopeo.copy(
            reference.named(digest), f"dir:{work}" if docker else f"oci:{work}:pvc", plain=reference.plain,
            most=max([ocimanifest.MAX_DOCUMENT, *(blob.size for blob in missing)]), inside=work,
            progress=lambda done: progress(label, min(max(done, 1), total - 1), total),
        )  # fmt: skip
    progress(label, total, total)
    return path_of
