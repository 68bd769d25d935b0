# SPDX-License-Identifier: Apache-2.0
"""How Sphinx builds the documentation: `make docs`.

The source directory is the top of the tree, so docs/ and man/ are built as they are, and their links work in a
checkout, too. Nothing is fetched.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import pvc

TOP = Path(__file__).resolve().parents[1]

project = "pvc"
version = release = pvc.__version__
language = "en"
# Options are written with two hyphens, which would become a dash.
smartquotes = False
root_doc = "docs/index"
# README.md is for a forge's first page; docs/index.md says the same here.
include_patterns = ["HACKING.md", "NEWS.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**.md", "man/*.rst"]
# As directories they are not even searched.
exclude_patterns = [
    *(path.name for path in TOP.iterdir() if path.is_dir() and path.name not in ("docs", "man")),
    "man/gen",
    "man/build",
]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
nitpicky = True
# An anchor for each heading as deep as any has one, named as the forges of Git name it.
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Types in signatures are Python's, or have no page: no other inventory is fetched.
nitpick_ignore_regex = [("py:.*", ".*")]

html_theme = "furo"
html_title = f"pvc {release}"
html_extra_path = ["site"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

_MAN_HEAD = re.compile(
    r"\A=+\n(?P<name>[\w.-]+)\n=+\n\n-+\n(?P<purpose>.+)\n-+\n\n:Manual section: (?P<section>\d)\n:Manual group: pvc\n"
)
_MAN_SECTION = re.compile(r"^\((\d)\)")


def retitle_man_page(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Give a manual page a title and its purpose as text: its head is for rst2man."""
    if not docname.startswith("man/"):
        return
    head = _MAN_HEAD.match(source[0])
    if head is None:
        raise ValueError(f"{docname}: its head is not that of a manual page")
    title = f"{head['name']}({head['section']})"
    source[0] = f"{title}\n{'=' * len(title)}\n\n{head['purpose']}\n" + source[0][head.end() :]


def link_man_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Make links of the manual's references to its own pages: a strong name, followed by "(1)"."""
    for strong in list(doctree.findall(nodes.strong)):
        after = strong.next_node(siblings=True)
        section = _MAN_SECTION.match(after.astext()) if isinstance(after, nodes.Text) else None
        target = f"man/{strong.astext()}.{section[1]}" if section else ""
        if target not in app.env.found_docs or target == app.env.docname:
            continue
        link = pending_xref(
            "", refdomain="std", reftype="doc", reftarget=f"/{target}", refdoc=app.env.docname, refexplicit=True
        )
        strong.replace_self(link)
        link += nodes.inline("", "", strong)


class ManTable(SphinxDirective):
    """A table of the pages of one section of the manual, with their purposes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Write a list of links."""
        lines = []
        for path in sorted((TOP / "man").glob(f"pvc*.{self.arguments[0]}.rst")):
            self.env.note_dependency(str(path))
            head = _MAN_HEAD.match(path.read_text(encoding="utf-8"))
            if head is None:
                raise self.error(f"{path.name}: its head is not that of a manual page")
            lines.append(f"* [{head['name']}({head['section']})](/man/{path.stem}): {head['purpose']}")
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", retitle_man_page)
    app.connect("doctree-read", link_man_pages)
    app.add_directive("man-pages", ManTable)
    return {"parallel_read_safe": True}
