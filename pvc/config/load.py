# SPDX-License-Identifier: Apache-2.0
"""From the files of a site and a user to one checked value, or to the list of all that is wrong."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from pvc.config.batch import read_batch
from pvc.config.inheritance import merge_files, resolve_templates
from pvc.config.networks import read_networks
from pvc.config.repos import read_repos
from pvc.config.resources import read_resources
from pvc.config.setting import Expansion
from pvc.config.templates import Declared, read_templates
from pvc.config.yamlmarks import Document, read_document
from pvc.errors import ConfigError, Problem
from pvc.model.network import Network, ResourceSet
from pvc.model.site import BatchSettings, Repository, SiteConfig

SITE_DIR = Path("/etc/pvc")


def _is_there(path: Path, *, follow: bool = True) -> bool:
    """Whether there is such a file, or nobody can tell: whoever reads it then is told why."""
    try:
        path.stat(follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


@dataclass
class _Reading:
    """One load: the documents read so far."""

    documents: list[Document] = field(default_factory=list)

    def read(self, path: Path, *, optional: bool = True) -> Document:
        """Read a file; one that may be absent counts as empty then."""
        document = Document(str(path)) if optional and not _is_there(path, follow=False) else read_document(path)
        self.documents.append(document)
        return document

    def finish(self, hint: str | None = None) -> None:
        problems = [problem for document in self.documents for problem in document.problems]
        if problems:
            raise ConfigError(problems, hint=hint)


def find_site_dir() -> Path:
    """/etc/pvc, or what PVC_CONF_DIR says. Root does not listen to it: its configuration is not the caller's choice."""
    override = os.environ.get("PVC_CONF_DIR")
    return Path(override) if override and os.geteuid() != 0 else SITE_DIR


def find_user_dir() -> Path:
    """The caller's own directory, ~/.pvc."""
    return Path(find_expansion().homedir) / ".pvc"


def find_expansion() -> Expansion:
    """What %{...} stands for, for the caller."""
    import pwd

    try:
        entry = pwd.getpwuid(os.getuid())
        user, home = entry.pw_name, entry.pw_dir
    except KeyError:
        user, home = str(os.getuid()), "/"
    return Expansion(user, os.environ.get("HOME") or home, os.environ)


def load_config(
    site_dir: Path, user_dir: Path | None, *, expansion: Expansion | None = None, extra: Path | None = None
) -> SiteConfig:
    """The site's configuration with a user's templates and repositories; ``extra`` is one more file of templates.

    :raise ConfigError: with all problems of all files.
    """
    reading = _Reading()
    expansion = expansion or find_expansion()
    batch, networks, sets = _read_site(reading, site_dir)
    repositories = _read_repositories(reading, site_dir, user_dir, expansion)
    files = [read_templates(reading.read(site_dir / "templates.yaml"), expansion)]
    declared: dict[str, Declared] = merge_files(files)
    if user_dir is not None:
        # A user's template hides the site's of the same name.
        declared |= merge_files([read_templates(each, expansion) for each in _user_templates(reading, user_dir)])
    if extra is not None:
        declared |= read_templates(reading.read(extra, optional=False), expansion)
    templates = resolve_templates(declared, sets)
    reading.finish()
    assert batch is not None
    warnings = tuple(sorted(each for document in reading.documents for each in document.warnings))
    return SiteConfig(batch, networks, sets or {}, templates, repositories, warnings)


def load_user_config() -> SiteConfig:
    """``load_config`` for the user who runs the command.

    :raise ConfigError: with all problems of all files.
    """
    return load_config(find_site_dir(), find_user_dir())


def load_root_config(site_dir: Path) -> SiteConfig:
    """What the root side may know: the site's batch, networks and resources. No user's file is read.

    :raise ConfigError: with all problems of these files; one is that anybody may write to one of them.
    """
    reading = _Reading()
    batch, networks, sets = _read_site(reading, site_dir)
    for document in reading.documents:
        _refuse_writable(document)
    reading.finish()
    assert batch is not None
    return SiteConfig(batch, networks, sets or {}, {}, ())


def load_repositories(site_dir: Path, user_dir: Path | None) -> tuple[Repository, ...]:
    """The image repositories alone: images can be handled on a machine that has no site configuration.

    :raise ConfigError: with all problems of the two files.
    """
    reading = _Reading()
    repositories = _read_repositories(reading, site_dir, user_dir, find_expansion())
    reading.finish()
    return repositories


def load_batch(site_dir: Path) -> BatchSettings | None:
    """batch.yaml alone; None where there is none, on a machine without a site configuration.

    :raise ConfigError: with all its problems.
    """
    if not _is_there(site_dir / "batch.yaml"):
        return None
    reading = _Reading()
    settings = read_batch(reading.read(site_dir / "batch.yaml"), site_dir)
    reading.finish()
    return settings


def list_files(site_dir: Path, user_dir: Path | None) -> list[Path]:
    """The files that ``load_config`` reads, in its order, as far as they are there."""
    reading = _Reading()
    site = [site_dir / f"{name}.yaml" for name in ("batch", "networks", "resources", "repos", "templates")]
    user = []
    if user_dir is not None:
        user = [user_dir / "repos.yaml", *(Path(each.file) for each in _user_templates(reading, user_dir))]
    return [path for path in [*site, *user] if _is_there(path)]


def _read_site(
    reading: _Reading, site_dir: Path
) -> tuple[BatchSettings | None, dict[str, Network], dict[str, ResourceSet] | None]:
    if not os.path.isdir(site_dir):
        hint = "copy the samples of pvc's conf/ there and adapt them"
        raise ConfigError([Problem(str(site_dir), 0, "", "there is no such directory")], hint=hint)
    batch = read_batch(reading.read(site_dir / "batch.yaml", optional=False), site_dir)
    network_file = reading.read(site_dir / "networks.yaml")
    networks = read_networks(network_file)
    set_file = reading.read(site_dir / "resources.yaml")
    sets = read_resources(set_file, None if network_file.problems else networks)
    return batch, networks, None if set_file.problems else sets


def _read_repositories(
    reading: _Reading, site_dir: Path, user_dir: Path | None, expansion: Expansion
) -> tuple[Repository, ...]:
    site = read_repos(reading.read(site_dir / "repos.yaml"), expansion) if _is_there(site_dir / "repos.yaml") else ()
    if user_dir is None:
        return site
    path = user_dir / "repos.yaml"
    own: tuple[Repository, ...] = (Repository("user", str(user_dir / "images")),)
    if _is_there(path):
        own = read_repos(reading.read(path), expansion)
    return (*own, *site)


def _user_templates(reading: _Reading, user_dir: Path) -> list[Document]:
    directory = user_dir / "templates.d"
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".yaml") and not name.startswith("."))
        more = [directory / name for name in names]
    except (FileNotFoundError, NotADirectoryError):
        more = []
    except OSError:
        more = [directory]  # to read it tells why
    return [reading.read(path) for path in (user_dir / "templates.yaml", *more)]


def _refuse_writable(document: Document) -> None:
    try:
        mode = os.stat(document.file).st_mode
    except OSError:
        return
    if mode & stat.S_IWOTH:
        document.add((), "anybody may write to it, so the root side does not trust it (chmod o-w)")
