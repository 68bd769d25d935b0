# SPDX-License-Identifier: Apache-2.0
"""Making an image of another one by what its own guest does: ``pvc image build`` of a recipe with ``from:``.

The guest's disk is a layer on the base, in the repository's unfinished files from the beginning: it gets its name
when the guest has ended well, and whoever dies before leaves what any dead writer leaves.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from pvc.errors import GuestError, HostError, UsageError
from pvc.host import qemuimg
from pvc.host.guestrun import GuestEnd, GuestFds, run_guest
from pvc.host.kvm import decide_accel
from pvc.host.overlay import write_overlay
from pvc.host.seed import write_seed
from pvc.images import aptsources
from pvc.images.guestrecipe import GuestRecipe
from pvc.images.opened import HeldImages, open_file, private_layers
from pvc.images.recipefiles import pack_files
from pvc.images.repository import FoundImage, Repositories
from pvc.images.resolve import resolve_template
from pvc.images.save import Changed, must_flatten, save_changed
from pvc.images.store import Store
from pvc.images.streams import Progress, sync_file
from pvc.images.transfer import check_texts
from pvc.images.workdir import work_directory
from pvc.model.site import Template
from pvc.model.vm import Accel, VmTemplate
from pvc.plan.buildvm import CODENAME, GuestWork, plan_build_args, plan_build_seed
from pvc.plan.disks import plan_overlay
from pvc.plan.hardware import Wanted, plan_hardware
from pvc.plan.lastwords import read_last_words
from pvc.plan.qemu import QemuSpec, VmFds, qemu_argv
from pvc.plan.qemudrives import VmPaths

LOG = logging.getLogger(__name__)

_SHOWN_LINES = 10
# What tells where an image is from, in its hints.
BUILD_KEY, BASE_KEY = "build", "from"

Step = Callable[[str], None]


@dataclass(frozen=True)
class BuildPlace:
    """How guests are run here: what the site says, and who it is for."""

    accel: Accel
    network: bool
    owner: str
    cache: Path | None  # where it is kept whether KVM works


@dataclass(frozen=True)
class GuestBuild:
    """What is to be made: ``name`` in the repository ``target``, on its base or (``flat``) on nothing."""

    recipe: GuestRecipe
    name: str
    target: str | None
    flat: bool = False


@dataclass
class _Story:
    """What the guest has told so far."""

    token: str
    step: Step
    begun: bool = False
    clean: bool = False
    failed: str | None = None
    last: deque[str] | None = None

    def hear(self, line: str) -> None:
        """Take a line of the guest's second serial port."""
        assert self.last is not None
        if not line.startswith(f"{self.token} "):
            if line.strip():
                LOG.debug("guest: %s", line)
                self.last.append(line[:300])
            return
        word, _, rest = line.removeprefix(f"{self.token} ").partition(" ")
        if word == "begin":
            self.begun = True
        elif word == "step":
            self.last.clear()
            self.step(rest[:100])
        elif word == "fail":
            self.failed = rest[:200]
        elif word == "clean":
            self.clean = True


def build_from(
    wanted: GuestBuild,
    repositories: Repositories,
    place: BuildPlace,
    step: Step,
    progress: Progress,
    *,
    fresh: bool = False,
) -> tuple[FoundImage, bool]:
    """Make the image, or find the one that was made of the same; whether it was found.

    :raise UsageError: there is no such base image, or its disk is larger than what is asked for.
    :raise GuestError: the guest does not do what the recipe says, or not in time; the last that it said is told.
    :raise HostError: QEMU or disk space is missing.
    """
    recipe = wanted.recipe
    base = repositories.locate(recipe.base)
    store = repositories.ensure(wanted.target)
    flat = wanted.flat or must_flatten(base.image)
    key = recipe.key(base.image, flat=flat)
    if not fresh and (same := _find_made(repositories, store, wanted.name, key)) is not None:
        return _name_made(same, store, wanted.name, place.owner, repositories, progress), True
    template = _resolve(recipe, base, repositories)
    hints = base.image.hints | recipe.hints | {BASE_KEY: base.uri, BUILD_KEY: key}
    append = f"{base.image.append} {recipe.append}".strip() if base.image.kernel else ""
    if recipe.append and not base.image.kernel:
        raise UsageError(f"image {base.uri} boots by its disk: append has no effect on it")
    described = replace(
        base.image, append=append, hints=hints, description=recipe.description or base.image.description
    )
    try:
        check_texts(described.append, described.description, described.hints)
    except ValueError as err:
        raise UsageError(str(err)) from None
    assert template.disk is not None
    changed = Changed(template.disk.size, described, repositories.store(base.repository))

    def fill(path: Path) -> None:
        _fill(path, recipe, template, place, base, step, progress, flat=flat)

    made = save_changed(changed, store, wanted.name, place.owner, fill, progress, full=flat)
    return FoundImage(store.name, made), False


def _resolve(recipe: GuestRecipe, base: FoundImage, repositories: Repositories) -> VmTemplate:
    wish = Template(name="build", image=base.uri, resource_set="", disk_size=recipe.size_bytes)
    template = resolve_template(wish, repositories)
    if template.boot is not None and recipe.append:
        return replace(template, boot=replace(template.boot, append=f"{template.boot.append} {recipe.append}"))
    return template


def _find_made(repositories: Repositories, store: Store, name: str, key: str) -> FoundImage | None:
    """An image that was made of the same, in the repository that it goes to: of that name first."""
    found = [each for each in repositories.list_all(store.name) if each.image.hints.get(BUILD_KEY) == key]
    found.sort(key=lambda each: (each.image.name == name, each.image.created), reverse=True)
    for each in found:
        try:
            repositories.verify(each)
        except GuestError as err:
            LOG.warning("%s", err)
            continue
        return each
    return None


def _name_made(
    found: FoundImage, store: Store, name: str, owner: str, repositories: Repositories, progress: Progress
) -> FoundImage:
    """The newest revision of ``name``, if it is the one; else its data gets that name, too."""
    newest = store.list_revisions().get(name, [0])[-1]
    if (found.image.name, found.image.revision) == (name, newest):
        return found
    return repositories.copy(found, f"{store.name}:{name}", owner, progress)


def _fill(
    path: Path,
    recipe: GuestRecipe,
    template: VmTemplate,
    place: BuildPlace,
    base: FoundImage,
    step: Step,
    progress: Progress,
    *,
    flat: bool,
) -> None:
    """Have the guest write its disk into ``path``, or all of it when that shall rest on nothing."""
    assert template.disk is not None
    overlay = path.with_name(path.name.replace("save.", "overlay.", 1)) if flat else path
    if flat:
        write_overlay(overlay, plan_overlay(template.disk.path, template.disk.format, template.disk.size))
    with work_directory("pvc-build-vm-") as work:
        _run(work, overlay, recipe, template, place, base, step)
    if flat:
        with ExitStack() as copies:
            layers = [*private_layers(template.disk, path.parent, copies), (open_file(overlay, copies), "qcow2")]
            path.unlink()  # the empty disk that was written there; the copy is a new file
            qemuimg.flatten(
                layers, path, lambda percent: progress(f"{base.image} with what changed", percent, 100)
            )  # fmt: skip
        overlay.unlink()
    sync_file(path)


def _run(
    work: Path,
    overlay: Path,
    recipe: GuestRecipe,
    template: VmTemplate,
    place: BuildPlace,
    base: FoundImage,
    step: Step,
) -> None:
    """Boot a guest on ``overlay``, which does what the recipe says and powers itself off."""
    accel = decide_accel(place.accel, template.qemu_bin, place.cache)
    token = f"pvc-build-{secrets.token_hex(12)}"
    seed = work / "seed.iso"
    write_seed(seed, plan_build_seed(_plan_work(recipe, network=place.network), token, f"build-{secrets.token_hex(8)}"))
    limit = time.monotonic() + recipe.timeout_s
    how = "" if accel.accel is Accel.KVM else f", without KVM ({accel.reason})"
    step(f"booting {base.uri}{how}")
    story = _Story(token, step, last=deque(maxlen=_SHOWN_LINES))
    held = HeldImages()

    def plan(fds: GuestFds) -> list[str]:
        own = replace(template, custom_args=plan_build_args(fds.port, network=place.network))
        cpus = min(int(recipe.cores), os.cpu_count() or 1)
        return qemu_argv(
            QemuSpec(
                name="build",
                hardware=plan_hardware("build", own, Wanted(cpus, recipe.memory_mib, accel.accel)),
                template=own,
                paths=VmPaths(os.fspath(overlay), os.fspath(seed)),
                fds=VmFds(fds.qmp, fds.console, (), images=held.fds),
            )
        )

    try:
        held.fill(template)
        ended = run_guest(plan, story.hear, lambda: limit, tuple(held.fds.values()))
    finally:
        held.release()
    step("")
    if story.failed or not story.clean or ended.code != 0:
        raise _explain(recipe, base, story, ended)


def _explain(recipe: GuestRecipe, base: FoundImage, story: _Story, ended: GuestEnd) -> GuestError:
    if ended.code is None:
        why = f"it took longer than its time limit, {recipe.timeout}"
    elif ended.code:
        why = f"QEMU ended with {ended.code}: {ended.stderr[-500:]}"
    else:
        why = "the guest ended before its time"
    words = list(story.last or ()) if story.begun else list(read_last_words(ended.console, _SHOWN_LINES))
    said = "".join(f"\n    {line}" for line in words)
    hint = None
    if not story.begun:
        hint = "the guest has not begun with the recipe: it needs cloud-init, and its NoCloud data source"
    return GuestError(f"cannot build from {base.uri}: {story.failed or why}{said}", hint=hint)


def _plan_work(recipe: GuestRecipe, *, network: bool) -> GuestWork:
    sources: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    if recipe.packages:
        if not network:
            raise UsageError("the recipe has packages, but guests that build images have no network here (batch.yaml)")
        sources, settings = _read_apt()
    return GuestWork(
        recipe.packages, pack_files(recipe.files) if recipe.files else b"", recipe.commands, sources, settings
    )


def _read_apt() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mirrors of this machine, which are surely in reach; nothing where it is no Debian."""
    try:
        codename = aptsources.read_codename(Path("/etc/os-release").read_text())
        found = aptsources.read_sources(CODENAME, ("main",), codename)
        return tuple(each.line for each in found), aptsources.read_proxies()
    except (HostError, OSError) as err:
        LOG.debug("the guest has to know mirrors itself: %s", err)
        return (), ()
