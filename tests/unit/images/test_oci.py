# SPDX-License-Identifier: Apache-2.0
"""Images by OCI layouts: what travels, and what a hostile layout may not do."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.errors import GuestError, HostError, UsageError
from pvc.images import ocimanifest
from pvc.images.oci import parse_reference
from pvc.images.repository import FoundImage, Repositories
from pvc.images.transfer import Incoming
from pvc.images.verify import verify_store
from tests.unit.images import layouts
from tests.unit.images.disks import Qcow2, import_raw, quiet, raw_disk, repositories
from tests.unit.images.faults import boundaries, die
from tests.unit.images.test_archive import filled
from tests.unit.images.test_chain import save


def push(where: Repositories, name: str, target: str) -> str:
    reference = parse_reference(target)
    assert reference is not None
    return where.export_oci(where.locate(name), reference, quiet)


def pull(where: Repositories, source: str, name: str = "", **more: Any) -> FoundImage:
    reference = parse_reference(source)
    assert reference is not None
    return where.import_oci(reference, Incoming(Path("there"), name, owner="me", **more), quiet, repository="site")


@pytest.mark.allow_run  # qemu-img
def test_a_layout_does_not_choose_what_templates_boot(tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site")
    import_raw(where, tmp_path, "a")
    push(where, "a", f"oci:{tmp_path / 'out'}")
    assert pull(where, f"oci:{tmp_path / 'out'}").uri == "site:a@1"
    with pytest.raises(UsageError, match="site:a is there"):
        pull(where, f"oci:{tmp_path / 'out'}")
    assert where.store("site").list_revisions() == {"a": [1]}
    # The honest twins: a name that was given, or that this is meant.
    assert pull(where, f"oci:{tmp_path / 'out'}", "a").uri == "site:a@2"
    assert pull(where, f"oci:{tmp_path / 'out'}", update=True).uri == "site:a@3"


def files(base: Path) -> set[str]:
    return {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("docker://host/a/b:v1", "docker://host/a/b:v1"),
        ("oci://host:5000/a", "docker://host:5000/a:latest"),
        ("docker://host/a@sha256:" + "0" * 64, "docker://host/a@sha256:" + "0" * 64),
    ],
)
def test_a_registry_is_named(text: str, named: str) -> None:
    reference = parse_reference(text)
    assert reference is not None
    assert (reference.layout, reference.named(), reference.plain) == (None, named, False)


def test_a_layout_is_named() -> None:
    for text, path, tag in (("oci:d", "d", None), ("oci:/a:b/c", "/a:b/c", None), ("oci:../d:v1.0", "../d", "v1.0")):
        reference = parse_reference(text)
        assert reference is not None
        assert (reference.layout, reference.tag) == (Path(path), tag)
    assert parse_reference("disk.qcow2") is None
    assert parse_reference("./oci:x") is None


def test_only_this_machine_is_asked_without_tls() -> None:
    for host, plain in (("127.0.0.1:5000", True), ("localhost", True), ("[::1]:5000", True), ("localhost.evil", False),
                        ("10.0.0.1:5000", False), ("127.0.0.1.evil:5000", False)):  # fmt: skip
        reference = parse_reference(f"docker://{host}/a")
        assert reference is not None
        assert reference.plain is plain


@pytest.mark.parametrize(
    "text",
    ["oci:", "oci::v1", "oci:d:-x", "docker://", "docker://host", "docker://host/A", "docker://me:secret@host/a",
     "docker://host/a:", "docker://host/a b", "docker://-host/$(x)", "oci://host/a@sha256:0"],
)  # fmt: skip
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not an"):
        parse_reference(text)


def test_no_password_is_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference("docker://me:secret@host/a")
    assert "secret" not in str(caught.value)
    assert "skopeo login" in str(caught.value.hint)


def test_an_image_comes_back_as_it_was(tmp_path: Path) -> None:
    where = filled(tmp_path)
    layout = tmp_path / "layout"
    digest = push(where, "a", f"oci:{layout}:v1")
    assert digest == push(where, "a", f"oci:{layout}:v2")
    found = where.find("a")
    one, two = (pull(where, f"oci:{layout}:{tag}", name) for tag, name in (("v1", ""), ("v2", "b")))
    assert (one.uri, two.uri) == ("site:a@1", "site:b@1")
    assert one.image == replace(found, created=one.image.created, owner="me")
    assert [each.problem for each in verify_store(where.store("site"), quiet)] == [None, None]
    with pytest.raises(UsageError, match="say which tag is meant: v1, v2"):
        pull(where, f"oci:{layout}")
    with pytest.raises(UsageError, match=r"no tag 'v3' \(tags: v1, v2\)"):
        pull(where, f"oci:{layout}:v3")
    with pytest.raises(UsageError, match="says all but NAME"):
        pull(where, f"oci:{layout}:v1", description="mine")
    with pytest.raises(UsageError, match="cannot read"):
        pull(where, f"oci:{tmp_path / 'nowhere'}")
    assert set(files(layout)) == {"oci-layout", "index.json"} | {
        f"blobs/sha256/{each}" for each in [*(blob.sha256 for blob in found.blobs), *documents(layout)]
    }


def documents(layout: Path) -> set[str]:
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    manifests = {each["digest"].removeprefix("sha256:") for each in entries}
    configs = {json.loads((layout / "blobs/sha256" / each).read_bytes())["config"]["digest"][7:] for each in manifests}
    return manifests | configs


@pytest.mark.allow_run  # qemu-img looks into the layers
def test_the_layers_of_a_chain_are_layers_and_are_shared(tmp_path: Path) -> None:
    where = repositories(tmp_path, "user", "site")
    import_raw(where, tmp_path, "base")
    where.import_file(Incoming(qcow2(tmp_path), "q"), quiet)
    where.store("site").ensure(private=True)
    save(where, "base", "top", b"2")
    layout = tmp_path / "layout"
    push(where, "base", f"oci:{layout}:base")
    base = where.find("base").disk
    before = (layout / "blobs/sha256" / base.sha256).stat()
    push(where, "top", f"oci:{layout}:top")
    assert (layout / "blobs/sha256" / base.sha256).stat() == before
    manifest = json.loads(ocimanifest.plan_artifact(where.find("top"))[1])
    assert [each["mediaType"].rpartition(".")[2] for each in manifest["layers"]] == ["raw", "qcow2"]
    made = pull(where, f"oci:{layout}:top")
    assert made.image.layers == where.find("user:top").layers
    where.verify(made)


def qcow2(base: Path, **fields: int) -> Path:
    path = base / "q.qcow2"
    path.write_bytes(Qcow2(**fields).encode())
    return path


def change_config(layout: Path, manifest: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> None:
    digest = manifest["config"]["digest"].removeprefix("sha256:")
    config = json.loads((layout / "blobs/sha256" / digest).read_bytes())
    change(config)
    manifest["config"] |= layouts.put(layout, json.dumps(config).encode())


def first_layer(layout: Path, manifest: dict[str, Any], **changes: object) -> None:
    manifest["layers"][0] |= changes


def other_disk(layout: Path, manifest: dict[str, Any], content: bytes, kind: str) -> None:
    descriptor = layouts.put(layout, content)
    manifest["layers"][0] = descriptor | {"mediaType": f"application/vnd.pvc.image.disk.v1.{kind}"}
    blob = {"sha256": descriptor["digest"].removeprefix("sha256:"), "size": descriptor["size"]}
    size = 1 << 30 if kind == "qcow2" else len(content)
    change_config(layout, manifest, lambda c: c["image"].update(disk=blob, format=kind, size=size))


HOSTILE: dict[str, Callable[[Path, dict[str, Any]], object]] = {
    "not a name": lambda d, m: change_config(d, m, lambda c: c["image"].update(name="../../etc")),
    "has version 2": lambda d, m: change_config(d, m, lambda c: c.update(version=2)),
    "unknown": lambda d, m: change_config(d, m, lambda c: c["image"].update(path="/etc/shadow")),
    "printable": lambda d, m: change_config(d, m, lambda c: c["image"].update(description="\x1b[2J")),
    "no kernel": lambda d, m: (change_config(d, m, lambda c: c["image"].update(kernel=None)), m["layers"].pop(1)),
    "lists other files": lambda _, m: m["layers"].pop(),
    "schema version": lambda _, m: m.update(schemaVersion=1),
    "neither an image of pvc's": lambda _, m: m["config"].update(mediaType="application/vnd.unknown\x1b"),
    "is no manifest": lambda _, m: m.update(mediaType="text/html"),
    "not a digest by SHA-256": lambda d, m: first_layer(d, m, digest="sha256:../../../etc/passwd"),
    "lacks mediaType": lambda d, m: first_layer(d, m, size=True),
    "is absurd": lambda d, m: first_layer(d, m, size=1 << 60),
    "no list of at most": lambda _, m: m.update(layers=m["layers"] * 100),
    "bytes \\(at most": lambda _, m: m["config"].update(size=1 << 30),
    "is damaged": lambda _, m: m["config"].update(size=1),
    "not what it should be": lambda d, m: change_config(d, m, lambda c: c["image"].update(size=1 << 30)),
    "it has no qcow2 header": lambda d, m: other_disk(d, m, raw_disk(), "qcow2"),
    "it needs a backing file": lambda d, m: other_disk(
        d, m, Qcow2(backing_offset=200, backing_size=9).encode(), "qcow2"
    ),
    "its data is in another file": lambda d, m: other_disk(d, m, Qcow2(incompatible=4).encode(), "qcow2"),
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_artifact_is_refused_and_leaves_nothing(tmp_path: Path, text: str) -> None:
    where = filled(tmp_path)
    layout = tmp_path / "layout"
    push(where, "a", f"oci:{layout}")
    manifest = layouts.read(layout)
    HOSTILE[text](layout, manifest)
    layouts.write(layout, manifest)
    with pytest.raises(UsageError, match=text):
        pull(where, f"oci:{layout}")
    assert files(tmp_path / "site") == {".config"}


def test_a_damaged_file_is_found_on_the_way_in_and_out(tmp_path: Path) -> None:
    where = filled(tmp_path)
    layout = tmp_path / "layout"
    push(where, "a", f"oci:{layout}")
    found = where.locate("a").image.disk
    path = layout / "blobs/sha256" / found.sha256
    path.write_bytes(raw_disk(4096, b"other"))
    with pytest.raises(UsageError, match=r"its file .* is damaged"):
        pull(where, f"oci:{layout}")
    assert files(tmp_path / "site") == {".config"}
    own = where.store("user").blob_path(found)
    own.chmod(0o644)
    own.write_bytes(raw_disk(4096, b"other"))
    with pytest.raises(GuestError, match="is not what its name says"):
        push(where, "a", f"oci:{tmp_path / 'second'}")
    assert not (tmp_path / "second").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    with pytest.raises(UsageError, match="neither an OCI layout nor empty"):
        push(where, "a", f"oci:{tmp_path / 'full'}")


def test_a_killed_export_leaves_an_index_that_is_whole(tmp_path: Path) -> None:
    where = filled(tmp_path)
    layout = tmp_path / "layout"
    push(where, "a", f"oci:{layout}:first")
    where.import_file(Incoming(tmp_path / "disk", "b", description="other"), quiet)
    before = documents(layout)
    for _ in boundaries(lambda: push(where, "b", f"oci:{layout}:second"), die, lambda: None):
        assert before <= documents(layout)
        pull(where, f"oci:{layout}:first", "a")
    assert pull(where, f"oci:{layout}:second").image.name == "b"
    assert {each for each in files(layout) if "/." in each or each.startswith(".")} <= {".pvc-lock"}


def test_a_container_image_with_a_disk(tmp_path: Path) -> None:
    where = filled(tmp_path)
    layout = tmp_path / "layout"
    long = "disk/" + "x" * 150 + ".img"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        layouts.container(layout, layouts.tar_of({"etc/passwd": b"x" * 700, long: raw_disk(4096)}, form))
        made = pull(where, f"oci:{layout}", "vm", hints={"user": "me"})
        assert (made.image.size, made.image.hints) == (4096, {"user": "me"})
    with pytest.raises(UsageError, match="how shall the image be called"):
        pull(where, f"oci:{layout}")
    layouts.container(layout, layouts.tar_of({"disk/old.img": raw_disk(8192)}), layouts.tar_of(
        {"disk/.wh.old.img": b"", "disk/new.img": raw_disk(4096)}))  # fmt: skip
    assert pull(where, f"oci:{layout}", "vm").image.size == 4096
    where.verify(where.locate("site:vm"))


@pytest.mark.allow_run  # gzip
def test_a_compressed_layer_is_unpacked(tmp_path: Path) -> None:
    where = filled(tmp_path)
    packed = gzip.compress(layouts.tar_of({"./disk/a.img": raw_disk(1 << 20)}))
    layouts.container(tmp_path / "layout", packed, kind="tar+gzip")
    assert pull(where, f"oci:{tmp_path / 'layout'}", "vm").image.size == 1 << 20
    layouts.container(tmp_path / "layout", packed[:-9], kind="tar+gzip")
    with pytest.raises(UsageError, match="cannot unpack it with gzip"):
        pull(where, f"oci:{tmp_path / 'layout'}", "vm")


def linked(kind: bytes) -> bytes:
    info = tarfile.TarInfo("disk/a.img")
    info.type, info.linkname = kind, "/etc/shadow"
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (layouts.tar_of({"etc/passwd": b""}), "this one has nothing"),
        (layouts.tar_of({"disk/a": raw_disk(), "disk/b": raw_disk()}), "this one has a, b"),
        (layouts.tar_of({"disk/../../x": raw_disk()}), "this one has nothing"),
        (linked(tarfile.SYMTYPE), "this one has nothing"),
        (linked(tarfile.LNKTYPE), "this one has nothing"),
        (layouts.tar_of({"disk/a": raw_disk()})[:5000], "cut off"),
        (b"x" * 1024, "is no tar archive"),
        (layouts.tar_of({"disk/a": b"text" * 1000}), "neither a qcow2 header"),
        (layouts.tar_of({"disk/a": Qcow2(backing_offset=200, backing_size=9).encode()}), "it needs a backing file"),
        (layouts.tar_of({"x" * 100_000: b""}), "extended header .* absurd"),
    ],
)
def test_other_container_images_are_refused(tmp_path: Path, layer: bytes, text: str) -> None:
    where = filled(tmp_path)
    layouts.container(tmp_path / "layout", layer)
    with pytest.raises(UsageError, match=text):
        pull(where, f"oci:{tmp_path / 'layout'}", "vm")
    assert files(tmp_path / "site") == {".config"}


def test_one_image_for_several_kinds_of_machines() -> None:
    def entry(system: str | None) -> dict[str, Any]:
        data: dict[str, Any] = {"mediaType": ocimanifest.MANIFEST, "digest": "sha256:" + "0" * 64, "size": 1}
        return data | ({"platform": {"os": "linux", "architecture": system}} if system else {})

    def choose(*kinds: str | None) -> ocimanifest.Descriptor:
        index = ocimanifest.parse_document(
            json.dumps({"schemaVersion": 2, "manifests": [entry(each) for each in kinds]}).encode()
        )
        assert isinstance(index, ocimanifest.Index)
        return ocimanifest.choose_platform(index, "linux/amd64")

    assert choose("arm64", "amd64").platform == "linux/amd64"
    assert not choose(None).platform
    for kinds in ((), ("arm64",), (None, None), ("amd64", "amd64")):
        with pytest.raises(ValueError, match="images for linux/amd64"):
            choose(*kinds)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["schemaVersion", "manifests", "layers", "config", "mediaType", "digest", "size", "platform"]),
        inner, max_size=5,
    ),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
def test_no_manifest_surprises_the_parser(value: Any) -> None:
    content = json.dumps({"schemaVersion": 2} | value if isinstance(value, dict) else value).encode()
    with suppress(ValueError):
        ocimanifest.parse_document(content)


def test_deep_or_long_manifests_are_refused() -> None:
    for content in (b"[" * 100_000, b" " * (5 << 20), b"\xff", b"[]"):
        with pytest.raises(ValueError, match=r"its description|absurd"):
            ocimanifest.parse_document(content)


def test_an_index_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    where = filled(tmp_path)
    push(where, "a", f"oci:{tmp_path / 'layout'}")
    (tmp_path / "layout" / "index.json").unlink()
    (tmp_path / "layout" / "index.json").mkdir()
    with pytest.raises(HostError, match="cannot write"):
        push(where, "a", f"oci:{tmp_path / 'layout'}")
