"""A small valid site, written to a directory and changed at will."""

from __future__ import annotations

from pathlib import Path

from pvc.config.setting import Expansion

FILES = {
    "batch.yaml": "settings:\n  etcd-servers: [e1]\n",
    "networks.yaml": "nat:\n  type: eth\n  settings:\n    dev-prefix: nat\n",
    "resources.yaml": "nat:\n  networks: [nat]\n  default: yes\n",
    "templates.yaml": "debian:\n  image: debian\n",
    "repos.yaml": "repos:\n  - {name: site, path: /images}\n",
}
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
