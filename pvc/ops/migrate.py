# SPDX-License-Identifier: Apache-2.0
"""A directory of pcocc's configuration becomes one of pvc's: read, checked by pvc's own check, written all at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pvc.config import load
from pvc.config.inheritance import merge_files
from pvc.config.migrate import (
    Draft,
    Note,
    migrate_batch,
    migrate_networks,
    migrate_repos,
    migrate_resources,
    migrate_templates,
)
from pvc.config.repos import read_repos
from pvc.config.templates import read_templates
from pvc.config.yamlmarks import Document, format_path, read_document
from pvc.errors import ConfigError, HostError, Problem, UsageError
from pvc.files import write_atomic
from pvc.images.workdir import work_directory

_SITE = ("batch.yaml", "networks.yaml", "resources.yaml", "repos.yaml", "templates.yaml")
_USER = ("repos.yaml", "templates.yaml")
# What pcocc reads or keeps beside them.
_OTHERS = {
    "containers.yaml": "pvc runs VMs; containers are for other tools",
    "helpers": "programs that ran before each cluster: hooks of templates run around each VM",
}
_PASSWORD = "etcd-password"


@dataclass(frozen=True)
class Migration:
    """What becomes of a directory: new files by their names, and what is other in them; ``is_site``: not a user's.

    ``broken`` are old files that cannot be understood; then there is nothing to write.
    """

    source: Path
    is_site: bool
    drafts: Mapping[str, Draft]
    notes: tuple[Note, ...]
    broken: Mapping[str, Document]

    @property
    def files(self) -> dict[str, str]:
        """The new files' content."""
        return {name: draft.emit() for name, draft in self.drafts.items()}


def plan_migration(source: Path) -> Migration:
    """Read a site's directory (/etc/pcocc), or a user's (~/.pcocc), and see what becomes of it. Nothing is written.

    What is wrong with it ``check`` says.

    :raise UsageError: it has no file of pcocc's.
    """
    source = Path(os.path.abspath(source))
    is_site = (source / "batch.yaml").exists()
    names = [name for name in (_SITE if is_site else _USER) if os.path.lexists(source / name)]
    if not is_site:
        extra = sorted(path for path in (source / "templates.d").glob("*.yaml") if not path.name.startswith("."))
        names += [os.fspath(path.relative_to(source)) for path in extra]
    if not names:
        hint = "a site's has batch.yaml, a user's templates.yaml, templates.d or repos.yaml"
        raise UsageError(f"{source} has no configuration of pcocc's", hint=hint)
    documents = {name: read_document(source / name) for name in names}
    drafts = {name: draft for name, draft in _migrate(documents, source).items() if not draft.document.problems}
    broken = {name: document for name, document in documents.items() if document.problems}
    notes = [note for draft in drafts.values() for note in draft.notes]
    return Migration(source, is_site, drafts, (*notes, *_find_others(source, is_site)), broken)


def _migrate(documents: Mapping[str, Document], source: Path) -> dict[str, Draft]:
    found: dict[str, Draft] = {}
    lost: frozenset[str] = frozenset()
    for name, document in documents.items():
        if name == "batch.yaml":
            found[name] = migrate_batch(document)
        elif name == "networks.yaml":
            found[name], lost = migrate_networks(document)
        elif name == "resources.yaml":
            found[name] = migrate_resources(document, lost)
        elif name == "repos.yaml":
            found[name] = migrate_repos(document, is_site="batch.yaml" in documents)
        else:
            found[name] = migrate_templates(document, lambda path: (source / path).is_file())
    return found


def _find_others(source: Path, is_site: bool) -> list[Note]:
    found = [
        Note(Problem(os.fspath(source / name), 0, "", why), lost=True)
        for name, why in _OTHERS.items()
        if os.path.lexists(source / name)
    ]
    if is_site and os.path.lexists(source / "templates.d"):
        why = "templates.d is read in users' directories alone, by pcocc as by pvc"
        found.append(Note(Problem(os.fspath(source / "templates.d"), 0, "", why), lost=True))
    if is_site and os.path.lexists(source / _PASSWORD):
        why = f"is not copied, for it is root's: install -m 0400 {source / _PASSWORD} /etc/pvc/{_PASSWORD}"
        found.append(Note(Problem(os.fspath(source / _PASSWORD), 0, "", why), lost=False))
    return found


def check(migration: Migration, site_dir: Path) -> None:
    """Have the new files pass what ``pvc config check`` looks at; those of a user beside the site's, where that is one.

    :raise ConfigError: with all problems, at their places in the old files.
    :raise HostError: there is no room for a copy.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="pvc-migrate-") as work:
            directory = Path(work)
            _write_all(migration.files, directory)
            for name in migration.broken:
                # As it is: what it lacks is then no fault of files that name it.
                (directory / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(migration.source / name, directory / name)
            _check(migration, directory, site_dir)
    except OSError as err:
        raise HostError("cannot write the new files to look at them") from err


def _check(migration: Migration, directory: Path, site_dir: Path) -> None:
    problems = {problem for document in migration.broken.values() for problem in document.problems}
    try:
        if migration.is_site:
            load.load_config(directory, None)
        elif (site_dir / "batch.yaml").is_file():
            load.load_config(site_dir, directory)
        else:
            _check_alone(directory)
    except ConfigError as err:
        problems |= {_place(problem, migration, directory) for problem in err.problems}
    if problems:
        hint = "nothing was written: mend them in the old files, and give the command again"
        raise ConfigError(sorted(problems), hint=hint)


def _check_alone(directory: Path) -> None:
    """A user's files where there is no site yet: what they inherit and name cannot be known."""
    expansion = load.find_expansion()
    paths = load.list_files(directory, directory)
    documents = [read_document(path) for path in dict.fromkeys(paths)]
    read = [each for each in documents if Path(each.file).name != "repos.yaml"]
    merge_files([read_templates(each, expansion) for each in read])
    for each in documents:
        if each not in read:
            read_repos(each, expansion)
    problems = [problem for each in documents for problem in each.problems]
    if problems:
        raise ConfigError(problems)


def _place(problem: Problem, migration: Migration, directory: Path) -> Problem:
    """A problem of a new file at its place in the old one."""
    name = os.path.relpath(problem.file, directory) if problem.file else ""
    draft = migration.drafts.get(name)
    if name in migration.broken:
        return replace(problem, file=migration.broken[name].file)
    if draft is None:
        if problem.file == os.fspath(directory) or name in _SITE:
            return replace(problem, file=os.fspath(migration.source / name), line=0)
        return problem
    lines = {format_path(path): line for path, line in draft.document.lines.items()}
    key = problem.key
    while key and key not in lines:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    text = problem.text.replace(os.fspath(directory), os.fspath(migration.source))
    return replace(problem, file=draft.document.file, line=lines.get(key, 0) if key or problem.line else 0, text=text)


def write(migration: Migration, target: Path) -> tuple[Path, ...]:
    """Write the new files to ``target``, a directory that is made if it is not there; no file is replaced.

    :raise UsageError: one of the files is there already, or the directory cannot be made.
    :raise HostError: the disk is full.
    """
    paths = tuple(target / name for name in migration.files)
    there = [path for path in paths if os.path.lexists(path)]
    if there:
        raise UsageError(f"{there[0]} exists", hint="choose another directory with -o, or remove it")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target} exists, and is no directory", hint="choose another one with -o")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"there is no directory {target.absolute().parent} for {target.name}")
    parent = target if target.is_dir() else target.absolute().parent
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {parent}: it is not yours to write to")
    try:
        with work_directory(".pvc-migrate-", parent) as work:
            _write_all(migration.files, work)
            if target.is_dir():
                _place_all(migration.files, work, target)
            else:
                work.chmod(0o755)
                # Another directory that has come meanwhile must be empty for this.
                os.rename(work, target)
    except FileExistsError as err:
        raise UsageError(f"{target} has come meanwhile", hint="look at it, and give the command again") from err
    except OSError as err:
        raise HostError(f"cannot write to {target}") from err
    return paths


def _write_all(files: Mapping[str, str], directory: Path) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, text, sync=True)


def _place_all(files: Mapping[str, str], work: Path, target: Path) -> None:
    """Give all their names, or none."""
    made: list[Path] = []
    try:
        for name in files:
            path = target / name
            path.parent.mkdir(exist_ok=True)
            os.link(work / name, path)
            made.append(path)
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
