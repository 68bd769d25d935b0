# SPDX-License-Identifier: Apache-2.0
"""Stages that mmdebstrap(1) makes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pvc.images import aptsources
from pvc.images.recipe import Recipe, RecipeFile, join_recipes
from pvc.images.recipefiles import pack_files
from pvc.images.stage import BuildHost, StagePlan


def plan_stage(
    stages: Sequence[Recipe], sources: Sequence[aptsources.Source], work: Path, host: BuildHost
) -> StagePlan:
    """Plan the last of ``stages``, on work/below.tar with the others."""
    recipe, whole = stages[-1], join_recipes(stages)
    argv = ["mmdebstrap", "--format=tar"]
    argv += ['--aptopt=Apt::Install-Recommends "false"', *(f"--aptopt={line}" for line in host.proxies)]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in whole.exclude]
    argv += [f"--dpkgopt=path-include={pattern}" for pattern in whole.include]
    if len(stages) == 1:
        argv += ["--variant=minbase", *([f"--include={','.join(recipe.packages)}"] if recipe.packages else [])]
    else:
        # As mmdebstrap(1) adds packages to a tarball, in its section of examples.
        xattrs = "--xattrs --xattrs-include=security.capability" if host.root else ""
        unpack = f'tar -C "$1" -xpf {work}/below.tar --numeric-owner {xattrs} --exclude="./dev/*"'
        argv += ["--variant=custom", f"--setup-hook={unpack}"]
        if recipe.packages:
            install = (
                "DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 -o APT::Sandbox::User=root install"
            )
            argv += [f'--customize-hook=chroot "$1" env {install} {" ".join(recipe.packages)} >&2']
    argv += [f"--customize-hook=tar-in {work / 'files.tar'} /"]
    argv += ['--customize-hook=chroot "$1" sh -eu /var/tmp/pvc-build && rm "$1"/var/tmp/pvc-build']
    argv += ['--customize-hook=chroot "$1" dpkg-query -Wf \'${Package} ${Version}\\n\' > "$1"/var/lib/pvc-packages']
    argv += [recipe.suite, os.fspath(work / "root.tar"), *(source.line for source in sources)]
    return StagePlan("mmdebstrap", tuple(argv), {"files.tar": _pack_files(recipe)}, "root.tar", _find_step)


def _pack_files(recipe: Recipe) -> bytes:
    """The recipe's files, and its commands as a script."""
    script = RecipeFile("/var/tmp/pvc-build", "\n".join(recipe.commands) + "\n", "0755")
    return pack_files((*recipe.files, script))


def _find_step(line: str) -> str | None:
    """What mmdebstrap begins with, as far as people want to know."""
    match = re.match(r"^I: (downloading|extracting|installing essential|installing remaining)", line)
    if match:
        return f"{match[1]} packages"
    if line.startswith("I: running --customize-hook in shell") and "apt-get" in line:
        return "installing more packages"
    if line.startswith("I: running --customize-hook directly: tar-in"):
        return "adding the recipe's files"
    if line.startswith("I: running --customize-hook in shell") and "pvc-build" in line:
        return "running the recipe's commands"
    return None
