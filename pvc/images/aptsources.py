# SPDX-License-Identifier: Apache-2.0
"""The mirrors that this machine's apt uses, turned to the release that an image is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pvc import run
from pvc.errors import HostError, PvcError

_FORMAT = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)|$(SIGNED_BY)"
_APT_HELPER = "/usr/lib/apt/apt-helper"


@dataclass(frozen=True)
class Source:
    """A place of packages: one release (or its updates) on one mirror."""

    uri: str
    release: str
    components: tuple[str, ...]

    @property
    def line(self) -> str:
        """As in sources.list(5)."""
        return f"deb {self.uri} {self.release} {' '.join(self.components)}"


def read_sources(suite: str, components: Sequence[str], codename: str) -> tuple[Source, ...]:
    """Where this machine gets Debian from, with its own release ``codename`` replaced by ``suite``.

    Only Debian's own archives count: what else a machine has in its sources is not for its guests.

    :raise HostError: apt is not there, or knows no Debian mirror.
    """
    text = run.run(["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"])
    return plan_sources(text, suite, components, codename)


def plan_sources(text: str, suite: str, components: Sequence[str], codename: str) -> tuple[Source, ...]:
    """The same, from what apt-get indextargets printed in _FORMAT.

    :raise HostError: no line is a Debian archive.
    """
    found: dict[tuple[str, str], None] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 6 or fields[0] != "Debian":
            continue
        uri, release = fields[1].rstrip("/"), fields[2]
        match = re.match(rf"^(?:{re.escape(codename)}|stable|oldstable)(-updates|-security|/updates)?$", release)
        if match:
            found[uri, suite + (match[1] or "")] = None
    if not any(release == suite for _, release in found):
        raise HostError(
            f"apt on this machine knows no mirror of Debian {codename}, from which one of {suite} could be told",
            hint="look at /etc/apt/sources.list and sources.list.d, then run apt-get update",
        )
    return tuple(Source(uri, release, tuple(components)) for uri, release in found)


def read_codename(os_release: str) -> str:
    """This machine's Debian release, from the text of os-release(5); empty when there is none."""
    match = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', os_release, re.MULTILINE)
    return match[1] if match else ""


def read_proxies() -> tuple[str, ...]:
    """Settings of apt for proxies and certificates, in apt.conf(5)'s form: a mirror may be reachable only so.

    :raise HostError: apt is not there.
    """
    text = run.run(["apt-config", "dump"])
    wanted = re.compile(r"^Acquire::(http|https)::(Proxy|Proxy-Auto-Detect|CAInfo|CaInfo|CAPath)\b", re.IGNORECASE)
    return tuple(line for line in text.splitlines() if wanted.match(line) and not line.endswith('"";'))


def read_state(sources: Sequence[Source], arch: str, directory: Path) -> str | None:
    """A checksum of the package lists that ``sources`` offer now; None when one of them cannot be asked.

    :raise OSError: ``directory`` cannot be written.
    """
    lines: list[str] = []
    for index, source in enumerate(sources):
        target = directory / f"InRelease.{index}"
        uri = f"{source.uri}/dists/{source.release}/InRelease"
        try:
            run.run([_APT_HELPER, "download-file", uri, target], timeout_s=120.0)
        except PvcError:
            return None
        lines += find_list_sums(target.read_text(errors="replace"), source.components, arch)
    return sha256("\n".join(lines).encode()).hexdigest()


def find_list_sums(text: str, components: Sequence[str], arch: str) -> list[str]:
    """The lines of a Release file that give the SHA-256 of the package lists.

    The file itself changes every day without any package having changed (Date, Valid-Until).
    """
    _, _, sums = text.partition("\nSHA256:")
    names = {f"{component}/binary-{arch}/Packages" for component in components}
    return [" ".join(line.split()) for line in sums.splitlines() if line.split()[2:] and line.split()[2] in names]
