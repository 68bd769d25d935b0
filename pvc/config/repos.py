# SPDX-License-Identifier: Apache-2.0
"""repos.yaml: where images are."""

from __future__ import annotations

from pvc import parse
from pvc.config import setting
from pvc.config.batch import parse_absolute
from pvc.config.setting import Expansion, Scope, Setting, Table
from pvc.config.yamlmarks import Document
from pvc.model.site import Repository

ENTRY = Table(
    settings=(
        Setting(
            "name",
            setting.text(parse.parse_name, name="name", expected="a name"),
            "How the repository is called in ``REPOSITORY:IMAGE``.",
            required=True,
        ),
        Setting(
            "path",
            setting.path(parse_absolute, expected="an absolute path"),
            "Its directory, on a file system that all nodes see. It may begin with ``~/`` and say %{env:NAME}, "
            "%{homedir} and %{user}.",
            required=True,
        ),
    ),
)

FILE = Table(
    settings=(
        Setting(
            "repos",
            setting.list_of(
                setting.mapping(
                    ENTRY, lambda values: Repository(values["name"], values["path"]), "a mapping of name and path"
                )
            ),
            "Repositories; of two images with the same name the one in the earlier repository is used.",
            required=True,
        ),
    ),
    idle={"cache": "images are read where they are, and nodes keep copies by image-cache-dir of batch.yaml"},
)


def read_repos(document: Document, expansion: Expansion) -> tuple[Repository, ...]:
    """The repositories of a document; what is wrong is noted in it."""
    if document.data is None and document.problems:
        return ()
    values = FILE.read({} if document.data is None else document.data, Scope(document, expansion=expansion))
    found: list[Repository] = [each for each in values["repos"] or () if each is not None]
    names: set[str] = set()
    for index, repository in enumerate(found):
        if repository.name in names:
            document.add(("repos", index, "name"), f"{repository.name!r} is given twice")
        names.add(repository.name)
    return tuple(found)
