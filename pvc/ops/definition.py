# SPDX-License-Identifier: Apache-2.0
"""From a definition ("web:2,db:1") to templates with their images, and to the request that root gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pvc.config.mounts import join_mounts
from pvc.errors import Problem, PvcError, UsageError
from pvc.model.cluster import VmGroup
from pvc.model.drive import Mmp
from pvc.model.failure import Failure
from pvc.model.network import PciNetwork
from pvc.model.request import MAX_CPUS, DefinitionItem, Request, SetRequest, Size, parse_definition
from pvc.model.site import KeyOrigin, SiteConfig, Template
from pvc.model.vm import Accel, Mount, VmTemplate

if TYPE_CHECKING:
    from pvc.images.repository import Repositories


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the templates.

    ``images`` maps a template's name to an image; the key "" means all templates.
    """

    images: dict[str, str] = field(default_factory=dict)
    user_data: str | None = None
    resource_set: str | None = None
    mounts: tuple[Mount, ...] = ()  # besides the templates'; of two for one directory of a guest, these


@dataclass(frozen=True)
class LaunchOrder:
    """A definition resolved at submission: what the launcher in the job needs, and nothing that may change."""

    definition: str
    request: Request
    groups: tuple[VmGroup, ...]
    templates: dict[str, VmTemplate]
    accel: Accel
    libvirt_hook: str | None = None
    # Of the allocation, for one VM of each of the request's sizes; None: a part of what the job was given
    memory_mib: tuple[int | None, ...] = ()


def resolve_request(
    definition: str, config: SiteConfig, cpus: int | None = None, sizes: tuple[Size, ...] = ()
) -> Request:
    """Resource sets and counts of a definition: all that the submitting side of Slurm has to know.

    :raise UsageError: malformed, too large, or with an unknown template.
    """
    items = parse_items(definition)
    templates = {name: find_template(name, config) for name in dict.fromkeys(item.template for item in items)}
    return _check_networks(make_request(items, templates, cpus, sizes), config)


def resolve(
    definition: str,
    config: SiteConfig,
    overrides: Overrides,
    cpus: int | None = None,
    sizes: tuple[Size, ...] = (),
) -> LaunchOrder:
    """Look everything up that the cluster needs, before anything is asked of Slurm.

    :raise UsageError: the definition, an override or a template's name is wrong.
    :raise PvcError: an image is missing or damaged.
    """
    from pvc.images.repository import Repositories

    items = parse_items(definition)
    _check_overrides(items, overrides, config)
    names = list(dict.fromkeys(item.template for item in items))
    repositories = Repositories(list(config.repositories))
    templates = {name: _override(find_template(name, config), overrides) for name in names}
    _check_drives(items, templates)
    request = _check_networks(make_request(items, templates, cpus, sizes), config)
    return LaunchOrder(
        definition=definition,
        request=request,
        groups=make_groups(items),
        templates={name: _resolve_image(template, repositories) for name, template in templates.items()},
        accel=config.batch.accel,
        libvirt_hook=config.batch.libvirt_hook,
    )


def find_template(name: str, config: SiteConfig) -> Template:
    """A declared template, or the one that every image is by itself where a default resource set exists.

    :raise UsageError: no such template and no such image; near names are suggested.
    """
    if name in config.templates:
        return config.templates[name]
    default = next((item.name for item in config.resource_sets.values() if item.default), None)
    images = _list_images(config)
    if name in images and default is not None:
        return image_template(name, default)
    if name in images:
        raise UsageError(
            f"there is an image {name!r}, but no template, and no resource set is the default",
            hint="declare a template of that image in ~/.pvc/templates.yaml, with a resource-set",
        )
    raise UsageError(f"there is no template {name!r}", hint=_suggest(name, [*config.templates, *images]))


def image_template(image: str, resource_set: str) -> Template:
    """The template that an image is by itself, in the default resource set."""
    from pvc.config.inheritance import build_template, default_origins

    origins = default_origins()
    origins |= {
        "image": KeyOrigin("image", image, "image"),
        "resource-set": KeyOrigin("resource-set", resource_set),
    }
    return build_template(image, "image", origins)


def list_templates(config: SiteConfig) -> list[Template]:
    """Every name that a definition may use, sorted: declared templates, and images that are templates by themselves."""
    found = dict(config.templates)
    default = next((item.name for item in config.resource_sets.values() if item.default), None)
    if default is not None:
        for image in _list_images(config):
            found.setdefault(image, image_template(image, default))
    return [found[name] for name in sorted(found)]


def find_image_problems(config: SiteConfig, file: str | None = None) -> list[Problem]:
    """Images that templates name and that cannot be used, told where the name is written; ``file``: only there."""
    from pvc.images.repository import Repositories

    repositories = Repositories(list(config.repositories))
    found: dict[tuple[str, str], Problem] = {}
    for template in config.templates.values():
        for origin in template.origins:
            path, _, line = origin.source.rpartition(":")
            if not path or (file is not None and path != file):
                continue
            for key, image in _named_images(origin):
                try:
                    repositories.verify(repositories.locate(image))
                except PvcError as err:
                    place = f"{origin.template or template.name}.{key}"
                    found[path, place] = Problem(path, int(line), place, str(err))
    return sorted(found.values())


def _named_images(origin: KeyOrigin) -> list[tuple[str, str]]:
    """Images that a key names, with the place within the template."""
    if origin.key == "image":
        return [] if origin.value is None else [("image", origin.value)]
    if origin.key == "disks":
        return [(f"disks[{i}].image", each.image) for i, each in enumerate(origin.value) if each.image is not None]
    return []


def _check_networks(request: Request, config: SiteConfig) -> Request:
    """The request with what its networks need of Slurm.

    What nodes would refuse whatever they are is refused here: addresses that do not suffice, or overlap.

    :raise UsageError: there is such a thing.
    """
    from pvc.plan.addresses import check_rank
    from pvc.plan.node import Site, plan_memberships, plan_passthroughs

    devices = {name: each for name, each in config.networks.items() if isinstance(each, PciNetwork)}
    site = Site(config.ethernets, config.resource_sets, "", "", devices=devices)
    for membership in plan_memberships(request, site):
        check_rank(membership.network, max(ranks.stop for ranks in membership.members) - 1)
    return replace(request, gres=any(each.network.gres for each in plan_passthroughs(request, site)))


def make_groups(items: tuple[DefinitionItem, ...]) -> tuple[VmGroup, ...]:
    """Ranks of each item, in the order written."""
    groups, first = [], 0
    for item in items:
        groups.append(VmGroup(item.template, first, item.count))
        first += item.count
    return tuple(groups)


def make_request(
    items: tuple[DefinitionItem, ...],
    templates: Mapping[str, Template],
    cpus: int | None = None,
    sizes: tuple[Size, ...] = (),
) -> Request:
    """The request of a definition; neighbours with the same resource set become one entry. ``sizes`` say the cores.

    :raise UsageError: more cores than any VM may have.
    """
    if cpus is not None and not 1 <= cpus <= MAX_CPUS:
        raise UsageError(f"{cpus} cores: a VM has 1 to {MAX_CPUS}")
    sets: list[SetRequest] = []
    for item in items:
        name = templates[item.template].resource_set
        if sets and sets[-1].resource_set == name:
            sets[-1] = SetRequest(name, sets[-1].count + item.count)
        else:
            sets.append(SetRequest(name, item.count))
    return Request(tuple(sets), None if sizes else cpus, sizes)


def parse_image_overrides(values: tuple[str, ...], definition: str) -> dict[str, str]:
    """``[TEMPLATE=]IMAGE`` of each --image option.

    :raise UsageError: a template that the definition does not have, or one named twice.
    """
    names = {item.template for item in parse_items(definition)}
    images: dict[str, str] = {}
    for value in values:
        name, equals, image = value.partition("=")
        key, image = (name, image) if equals else ("", value)
        if not image or key in images:
            raise UsageError(f"--image {value}: " + ("names no image" if not image else "given twice"))
        if key and key not in names:
            raise UsageError(f"--image {value}: {definition!r} has no template {key!r}")
        images[key] = image
    return images


def parse_items(definition: str) -> tuple[DefinitionItem, ...]:
    """The items of a definition.

    :raise UsageError: it is malformed or too large.
    """
    try:
        return parse_definition(definition)
    except ValueError as err:
        raise UsageError(str(err)) from err


def _check_overrides(items: tuple[DefinitionItem, ...], overrides: Overrides, config: SiteConfig) -> None:
    names = {item.template for item in items}
    for name in overrides.images:
        if name and name not in names:
            raise UsageError(f"--image for {name!r}, which is not in the definition")
    wanted = overrides.resource_set
    if wanted is not None and wanted not in config.resource_sets:
        raise UsageError(f"there is no resource set {wanted!r}", hint=_suggest(wanted, list(config.resource_sets)))


def _check_drives(items: tuple[DefinitionItem, ...], templates: Mapping[str, Template]) -> None:
    """Tell before there is a job that two of its VMs would write one drive."""
    users: dict[str, int] = {}
    for item in items:
        for drive in templates[item.template].persistent_drives:
            if drive.mmp is not Mmp.YES or "%{vm_rank}" in drive.path:
                continue
            users[drive.path] = users.get(drive.path, 0) + item.count
            if users[drive.path] > 1:
                raise UsageError(
                    f"{users[drive.path]} VMs of this cluster would write to the persistent drive {drive.path}",
                    hint="give each its own: %{vm_rank} in the path; or set mmp: cluster if their guests can share it",
                )


def _override(template: Template, overrides: Overrides) -> Template:
    image = overrides.images.get(template.name, overrides.images.get(""))
    return replace(
        template,
        image=image if image is not None else template.image,
        user_data=overrides.user_data if overrides.user_data is not None else template.user_data,
        resource_set=overrides.resource_set or template.resource_set,
        mount_points=join_mounts(template.mount_points, overrides.mounts),
    )


def _resolve_image(template: Template, repositories: Repositories) -> VmTemplate:
    from pvc.images.resolve import resolve_template

    try:
        return resolve_template(template, repositories)
    except PvcError as err:
        if template.image == template.name:
            raise
        # The error names the image; which template wanted it is known only here
        raise Failure(err.exit_code, f"template {template.name!r} cannot be used").rebuild() from err


def _list_images(config: SiteConfig) -> list[str]:
    from pvc.images.repository import Repositories

    return sorted({found.image.name for found in Repositories(list(config.repositories)).list()})


def _suggest(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    names = sorted(set(known))  # an image and its template have one name
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(item) for item in near) + "?"
    return "known: " + ", ".join(names[:12]) if known else "none is declared; see templates.yaml"
