# SPDX-License-Identifier: Apache-2.0
"""Templates after inheritance: every key with its value, and where the value comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches

from pvc.config.disks import check_aio
from pvc.config.resources import find_default
from pvc.config.setting import Scope
from pvc.config.templates import ENTRY, Declared
from pvc.config.yamlmarks import Document
from pvc.model.network import ResourceSet
from pvc.model.site import KeyOrigin, Template
from pvc.model.vm import find_libvirt_problems

# A parent's say nothing of its heir.
OWN_KEYS = frozenset({"description", "inherits"})


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
    defaults = default_origins()
    found: dict[str, Template] = {}
    for name, entry in declared.items():
        chain = _find_chain(entry, declared)
        if chain is None:
            continue
        origins = dict(defaults)
        unset: frozenset[str] = frozenset()
        for ancestor in reversed(chain):
            given = dict(ancestor.values) | {key: defaults[key].value for key in ancestor.unset}
            for key, value in given.items():
                if ancestor is entry or key not in OWN_KEYS:
                    parent = "" if ancestor is entry else ancestor.name
                    origins[key] = KeyOrigin(key, value, ancestor.place_of(key), parent)
                    unset = unset | {key} if key in ancestor.unset else unset - {key}
        resource_set = _find_resource_set(entry, origins["resource-set"].value, resource_sets)
        origins["resource-set"] = dataclasses.replace(origins["resource-set"], value=resource_set)
        # A value that has none of its own had a problem, which was told.
        sound = (each.value is not None or each == defaults[key] or key in unset for key, each in origins.items())
        if all(sound):
            found[name] = build_template(name, entry.source, origins)
            _find_conflicts(entry, found[name])
    return found


def default_origins() -> dict[str, KeyOrigin]:
    """What every key is where nothing is said."""
    defaults = ENTRY.defaults(Scope(Document("")))
    return {key: KeyOrigin(key, value) for key, value in defaults.items()}


def build_template(name: str, source: str, origins: Mapping[str, KeyOrigin]) -> Template:
    """The template that these values make."""
    names = {each.name for each in dataclasses.fields(Template)} - {"name", "source", "origins"}
    values = {field: origins[field.replace("_", "-")].value for field in names}
    values["description"] = values["description"] or ""
    return Template(name=name, source=source, origins=tuple(origins.values()), **values)


def _find_conflicts(entry: Declared, template: Template) -> None:
    """Note keys that are right alone and wrong together, at the one that this template gives."""
    machine = template.machine_type.partition(",")[0]
    conflicts: list[tuple[bool, str, tuple[str, ...]]] = [
        (
            machine == "microvm" and template.firmware != "bios",
            f"a microvm has no {template.firmware} firmware",
            ("firmware", "machine-type"),
        ),
        (
            template.firmware == "uefi-secure" and "q35" not in machine,
            f"uefi-secure needs a q35, not {machine!r}",
            ("firmware", "machine-type"),
        ),
        (machine == "microvm" and bool(template.tpm), "a microvm has no TPM", ("tpm", "machine-type")),
        (
            machine == "microvm" and template.disk_model == "ide",
            "a microvm has no ide",
            ("disk-model", "machine-type"),
        ),
        (
            template.disk_size is not None and template.image is None,
            "there is no image whose disk could have a size; disks has others",
            ("disk-size",),
        ),
    ]
    if template.hypervisor == "libvirt":
        found = find_libvirt_problems(
            machine_type=template.machine_type, cpu_model=template.cpu_model, custom_args=template.custom_args
        )
        conflicts += [(True, text, (key, "hypervisor")) for key, text in found]
    try:
        check_aio(template.disk_aio, template.disk_cache)
    except ValueError as err:
        conflicts.append((True, str(err), ("disk-aio", "disk-cache")))
    for wrong, text, keys in conflicts:
        given = [key for key in keys if key in entry.values]
        if wrong and given:
            entry.scope.at(given[0]).add(text)


def _find_chain(entry: Declared, declared: Mapping[str, Declared]) -> list[Declared] | None:
    """The template and its ancestors; None when one is missing or the chain has no end."""
    chain = [entry]
    seen = {entry.name}
    while (parent := chain[-1].values.get("inherits")) is not None:
        if parent not in declared:
            # Told once, where it is written.
            if chain[-1] is entry:
                near = get_close_matches(parent, list(declared), n=1)
                advice = f"; did you mean {near[0]!r}?" if near else ""
                entry.scope.at("inherits").add(f"there is no template {parent!r}{advice}")
            return None
        if parent in seen:
            if parent == entry.name:
                ring = " -> ".join([each.name for each in chain] + [parent])
                entry.scope.at("inherits").add(f"leads back to itself: {ring}")
            return None
        seen.add(parent)
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
