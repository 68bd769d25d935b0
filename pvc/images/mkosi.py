# SPDX-License-Identifier: Apache-2.0
"""Stages that mkosi(1) makes: its packages, then files and commands as with any other builder.

mkosi would go on to give units their presets, users their numbers and the kernel another place: a recipe means the
same whoever builds it, so the archive is taken before, by a script that mkosi runs once its packages are there.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from pvc import run
from pvc.errors import HostError
from pvc.images import aptsources
from pvc.images.recipe import Recipe, RecipeFile, join_recipes
from pvc.images.recipefiles import pack_files
from pvc.images.stage import BuildHost, StagePlan

# The first one that has a sandbox of its own; before, it was systemd-nspawn, which wants a system bus.
OLDEST = 25
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# What mmdebstrap's minbase is, as apt-patterns(7).
_BASE = ("apt", "?priority(required)")

# As root of a namespace with many users: of one user, as mkosi has it by itself, all files would belong to root.
_AS_USER = ("unshare", "--user", "--map-auto", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child=KILL")

# mkosi runs it a second time for packages that only building needs. Essential packages it unpacks by tar, which leaves
# what dpkg would not unpack (@EXCLUDED@, for find). /efi, /work and what is below /boot/loader are mkosi's.
_FINISH = """#!/bin/sh
set -eu
[ "$1" = final ] || exit 0
cd "$BUILDROOT"
@EXCLUDED@
rm -rf boot/loader etc/apt/sources.list.d/@SUITE@.sources
[ ! -d efi ] || rmdir efi
echo "pvc: adding the recipe's files" >&2
tar -xpf "$SRCDIR/files.tar" --keep-directory-symlink --numeric-owner
echo "pvc: running the recipe's commands" >&2
printf '#!/bin/sh\\nexit 101\\n' > usr/sbin/policy-rc.d
chmod 755 usr/sbin/policy-rc.d
mkosi-chroot env -i LANG=C.UTF-8 HOME=/root DEBIAN_FRONTEND=noninteractive \\
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -eu /work/src/commands >&2
rm usr/sbin/policy-rc.d
mkosi-chroot dpkg-query -Wf '${Package} ${Version}\\n' > var/lib/pvc-packages
# Mount points of the commands' own.
[ ! -d work ] || rmdir work
[ -L etc/resolv.conf ] || [ -s etc/resolv.conf ] || rm -f etc/resolv.conf
tar --sort=name --numeric-owner --one-file-system --xattrs --xattrs-include=security.capability \\
    --pax-option=delete=atime,delete=ctime -cf "$SRCDIR/root.tar" .
"""


def find_mkosi() -> str:
    """The path of a mkosi that is new enough; the one in PATH counts, as people have it in their homes.

    :raise HostError: there is none, or it is too old.
    """
    program = shutil.which("mkosi")
    hint = "Debian 13 has mkosi 25, and so has github.com/systemd/mkosi (its bin/ in PATH); or: --builder mmdebstrap"
    if program is None:
        raise HostError("cannot build an image by mkosi: there is none in PATH", hint=hint)
    text = run.run([program, "--version"]).strip()
    match = re.match(r"mkosi (\d+)", text)
    if match is None or int(match[1]) < OLDEST:
        raise HostError(f"cannot build an image by {program}: it is {text}, older than {OLDEST}", hint=hint)
    return program


def check() -> None:
    """Look for what mkosi needs here.

    :raise HostError: it is not there.
    """
    find_mkosi()
    if not Path(_KEYRING).is_file():
        raise HostError(f"cannot build an image by mkosi without {_KEYRING}", hint="apt install debian-archive-keyring")


def plan_stage(
    stages: Sequence[Recipe], sources: Sequence[aptsources.Source], work: Path, host: BuildHost, program: str
) -> StagePlan:
    """Plan the last of ``stages``, on work/below.tar with the others; ``program`` is mkosi."""
    recipe, whole = stages[-1], join_recipes(stages)
    own = work / "mkosi"
    packages = (*(_BASE if len(stages) == 1 else ()), *recipe.packages)
    argv = [*(() if host.root else (*_AS_USER, "--")), program, "--directory=", "--distribution=debian"]
    argv += [f"--release={recipe.suite}", "--format=none", "--bootable=no", "--with-recommends=no"]
    argv += [f"--sandbox-tree={own}/tree", f"--build-sources={own}/src", f"--prepare-script={own}/finish"]
    # Without one to run, mkosi has nothing to do for the format "none".
    argv += [f"--build-script={own}/nothing", f"--output-directory={own}/out", f"--workspace-directory={own}/work"]
    argv += [f"--package-cache-dir={own}/packages", *(f"--package={name}" for name in packages)]
    argv += [f"--base-tree={work}/below.tar"] if len(stages) > 1 else []
    dpkg = "".join(f"path-exclude={each}\n" for each in whole.exclude)
    dpkg += "".join(f"path-include={each}\n" for each in whole.include)
    finish = _FINISH.replace("@EXCLUDED@", _plan_removal(whole)).replace("@SUITE@", recipe.suite)
    files = {
        "tree/etc/apt/sources.list.d/mkosi.sources": "\n".join(map(_write_source, sources)),
        "tree/etc/apt/apt.conf.d/proxies": "".join(f"{line}\n" for line in host.proxies),
        "tree/etc/dpkg/dpkg.cfg.d/recipe": dpkg,
        "src/commands": "\n".join(recipe.commands) + "\n",
        "finish": finish,
        "nothing": "#!/bin/sh\n",
        "out/.keep": "",
        "work/.keep": "",
        "packages/.keep": "",
    }
    guest = _plan_guest_files(sources, dpkg) if len(stages) == 1 else ()
    packed = {f"mkosi/{name}": text.encode() for name, text in files.items()}
    packed["mkosi/src/files.tar"] = pack_files((*guest, *recipe.files))
    return StagePlan("mkosi", (*argv, "build"), packed, "mkosi/src/root.tar", _find_step)


def _plan_guest_files(sources: Sequence[aptsources.Source], dpkg: str) -> tuple[RecipeFile, ...]:
    """What the guest's own apt and dpkg go by later."""
    return (
        RecipeFile("/etc/apt/sources.list", "".join(f"{source.line}\n" for source in sources)),
        RecipeFile("/etc/apt/apt.conf.d/99pvc", 'Apt::Install-Recommends "false";\n'),
        RecipeFile("/etc/dpkg/dpkg.cfg.d/99pvc", dpkg),
    )


def _write_source(source: aptsources.Source) -> str:
    """As in sources.list(5), in its form of several lines."""
    return (
        f"Types: deb\nURIs: {source.uri}\nSuites: {source.release}\n"
        f"Components: {' '.join(source.components)}\nSigned-By: {_KEYRING}\n"
    )


def _plan_removal(recipe: Recipe) -> str:
    """Commands that remove what dpkg does not unpack; its patterns, as find's, let * match a slash."""
    if not recipe.exclude:
        return ":"
    excluded, included = (
        " -o ".join(f"-path {shlex.quote('.' + pattern)}" for pattern in patterns)
        for patterns in (recipe.exclude, recipe.include)
    )
    which = f"\\( {excluded} \\)" + (f" ! \\( {included} \\)" if included else "")
    return f"find . -xdev ! -type d {which} -delete\nfind . -xdev -depth -type d -empty {which} -delete"


def _find_step(line: str) -> str | None:
    """What mkosi or our script begins with, as far as people want to know."""
    if line.startswith("pvc: "):
        return line.removeprefix("pvc: ")
    match = re.match(r"^\W*(Installing (?:Debian|extra packages)|Syncing package manager metadata)", line)
    if match:
        return "reading package lists" if match[1].startswith("Sync") else "installing packages"
    return None
