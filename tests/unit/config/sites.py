# SPDX-License-Identifier: Apache-2.0
"""A small valid site, written to a directory and changed at will."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc.config.load import load_config
from pvc.config.setting import Expansion
from pvc.errors import ConfigError
from pvc.model.site import SiteConfig

FILES = {
    "batch.yaml": "settings:\n  etcd-servers: [e1]\n",
    "networks.yaml": "nat:\n  type: eth\n  settings:\n    dev-prefix: nat\n",
    "resources.yaml": "nat:\n  networks: [nat]\n  default: yes\n",
    "templates.yaml": "debian:\n  image: debian\n",
    "repos.yaml": "repos:\n  - {name: site, path: /images}\n",
}
SITE_SET = "site:\n  networks: [site]\n  default: yes\n"
EXPANSION = Expansion("anne", "/home/anne", {"TEAM": "red"})


def write_site(directory: Path, **changes: str | None) -> Path:
    """Write the files; ``networks=text`` replaces networks.yaml, ``networks=None`` leaves it out."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        content = changes.get(name.removesuffix(".yaml"), text)
        if content is not None:
            (directory / name).write_text(content)
    return directory


def ethernet(**settings: object) -> str:
    """networks.yaml with the network ``nat`` and these settings ("dns_server" is dns-server)."""
    lines = ["nat:", "  type: ethernet", "  settings:", "    dev-prefix: nat"]
    lines += [f"    {key.replace('_', '-')}: {value}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def load_site(site: Path, user: Path | None = None) -> SiteConfig:
    return load_config(site, user, expansion=EXPANSION)


def problems_of(site: Path, user: Path | None = None) -> list[str]:
    """Problems as "file:line: key: text", files without their directory."""
    with pytest.raises(ConfigError) as caught:
        load_site(site, user)
    return [f"{Path(each.file).name}:{each.line}: {each.key}: {each.text}" for each in caught.value.problems]
