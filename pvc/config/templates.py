"""templates.yaml and templates.d: VMs as users describe them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvc.config import setting
from pvc.config.resources import find_default
from pvc.config.setting import Expansion, Kind, Scope, Setting, Table
from pvc.config.yamlmarks import Document
from pvc.model.network import ResourceSet
from pvc.model.site import Template

MAX_USER_DATA = 1 << 20
_NO_SPACE = r"[^\s]+"


def _read_user_data(value: Any, scope: Scope) -> str:
    """The cloud-config itself, or the file that holds it, relative to the file that names it."""
    if isinstance(value, dict):
        import yaml

        return "#cloud-config\n" + yaml.safe_dump(value, sort_keys=False)
    path = Path(scope.document.file).parent / (scope.expansion.expand(value) if scope.expansion else value)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_USER_DATA + 1)
    except (OSError, ValueError) as err:
        raise ValueError(f"cannot read {path}: {getattr(err, 'strerror', None) or err}") from None
    if len(content) > MAX_USER_DATA:
        raise ValueError(f"{path} is larger than {MAX_USER_DATA >> 20} MiB")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None


_NAME = setting.text(name="name", expected="a name")

ENTRY = Table(
    settings=(
        Setting(
            "image",
            setting.expanded(name="[repo:]image[@revision]", expected="an image's name"),
            "The image that the VM's disk starts from. Without one the VM has no disk.",
        ),
        Setting(
            "resource-set",
            _NAME,
            "What the VM gets besides cores and memory: a name from resources.yaml.",
            default_text="the site's default resource set",
        ),
        Setting("inherits", _NAME, "Another template, whose keys count where this one has none. Not its description."),
        Setting("description", setting.text(), "One line for lists."),
        Setting(
            "user-data",
            Kind(
                "path | mapping",
                "a file's path or a mapping (cloud-config)",
                {"type": ["string", "object"]},
                _read_user_data,
            ),
            "What cloud-init does at the first boot: a file, relative to this one, or the cloud-config itself.",
        ),
        Setting(
            "machine-type",
            setting.word("text", _NO_SPACE, "a machine type of QEMU"),
            "The machine that QEMU emulates, with its options.",
            default="q35",
        ),
        Setting(
            "cpu-model",
            setting.word("text", _NO_SPACE, "a CPU model of QEMU"),
            "The guest's CPU. ``auto`` is ``host`` with KVM and ``max`` without.",
            default="auto",
        ),
        Setting(
            "nic-model",
            setting.word("text", r"[A-Za-z0-9._-]+", "a network device of QEMU"),
            "The guest's network devices: ``virtio-net``, ``e1000e``, …",
            default="virtio-net",
        ),
        Setting(
            "disk-model",
            setting.choice("virtio", "virtio-scsi", "ide"),
            "How the disk is attached.",
            default="virtio",
        ),
        Setting(
            "disk-cache",
            setting.choice("unsafe", "writeback", "none", "writethrough", "directsync"),
            "As *cache=* in qemu(1). ``unsafe`` is the fastest and right for disks that vanish with the job.",
            default="unsafe",
        ),
        Setting(
            "qemu-bin",
            setting.expanded(name="path", expected="a command"),
            "The QEMU to run.",
            default="qemu-system-x86_64",
        ),
        Setting(
            "custom-args",
            setting.list_of(setting.expanded()),
            "Arguments put at the end of QEMU's command line.",
            default=[],
        ),
    ),
    foreign={
        "mount-points": "this version mounts no directories into VMs",
        "persistent-drives": "every disk of this version vanishes with the job",
        "remote-display": "this version has serial consoles only",
        "emulator-cores": "QEMU's own threads share the VM's cores",
        "bind-vcpus": "vCPUs are always pinned when the job's cores are known",
        "full-node": "ask Slurm for it: --exclusive",
        "instance-id": "every VM of every job is a new instance",
        "kernel": "import the kernel with the image: pvc image import --kernel",
    },
)


@dataclass(frozen=True)
class Declared:
    """One entry of a file: the keys that it gives, and where."""

    name: str
    values: Mapping[str, Any]
    scope: Scope

    @property
    def source(self) -> str:
        """file:line."""
        return f"{self.scope.document.file}:{self.scope.document.line(self.scope.path)}"


def read_templates(document: Document, expansion: Expansion) -> dict[str, Declared]:
    """The entries of a document, as they are written; what is wrong is noted in it."""
    return {
        name: Declared(name, ENTRY.read_given(value, scope), scope)
        for name, value, scope in setting.named_entries(document, expansion)
    }


def merge_files(files: list[dict[str, Declared]]) -> dict[str, Declared]:
    """Entries of files of one owner, among which a name can be given once only."""
    found: dict[str, Declared] = {}
    for entries in files:
        for name, entry in entries.items():
            if name in found:
                entry.scope.add(f"is given twice (first in {found[name].source})")
            else:
                found[name] = entry
    return found


def resolve_templates(
    declared: Mapping[str, Declared], resource_sets: Mapping[str, ResourceSet] | None
) -> dict[str, Template]:
    """Templates after inheritance; ``resource_sets`` None: resources.yaml has problems of its own."""
    defaults = ENTRY.defaults(Scope(Document("")))
    found: dict[str, Template] = {}
    for name, entry in declared.items():
        chain = _find_chain(entry, declared)
        if chain is None:
            continue
        values = dict(defaults)
        for ancestor in reversed(chain):
            values |= ancestor.values
        values["description"] = entry.values.get("description") or ""
        resource_set = _find_resource_set(entry, values["resource-set"], resource_sets)
        found[name] = _build(entry, values, resource_set)
    return found


def _build(entry: Declared, values: Mapping[str, Any], resource_set: str) -> Template:
    template = Template(name=entry.name, image=values["image"], resource_set=resource_set, source=entry.source)
    names = {each.name for each in dataclasses.fields(Template)} - {"name", "image", "resource_set", "source"}
    return dataclasses.replace(template, **{name: values[name.replace("_", "-")] for name in names})


def _find_chain(entry: Declared, declared: Mapping[str, Declared]) -> list[Declared] | None:
    """The template and its ancestors; None when one is missing or the chain has no end."""
    chain = [entry]
    while (parent := chain[-1].values.get("inherits")) is not None:
        if parent not in declared:
            # Told once, where it is written.
            if chain[-1] is entry:
                entry.scope.at("inherits").add(f"there is no template {parent!r}")
            return None
        if any(each.name == parent for each in chain):
            if parent == entry.name:
                ring = " -> ".join([each.name for each in chain] + [parent])
                entry.scope.at("inherits").add(f"leads back to itself: {ring}")
            return None
        chain.append(declared[parent])
    return chain


def _find_resource_set(entry: Declared, name: str | None, sets: Mapping[str, ResourceSet] | None) -> str:
    if sets is None:
        return name or ""
    if name is None:
        default = find_default(sets)
        if default is None:
            entry.scope.add("resource-set is missing, and no set of resources.yaml is the default")
        return default.name if default else ""
    if name not in sets and entry.values.get("resource-set") == name:
        known = ", ".join(sets) or "none"
        entry.scope.at("resource-set").add(f"there is no resource set {name!r} in resources.yaml (there: {known})")
    return name
