# SPDX-License-Identifier: Apache-2.0
"""What the documentation says is so: pages, links, commands, configuration. This needs no Sphinx; `make docs` does."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from pvc.cli import mandoc
from pvc.cli.main import command_line
from pvc.config.load import load_config
from pvc.config.yamlmarks import read_document
from pvc.errors import PvcError
from pvc.images.guestrecipe import load_guest_recipe
from pvc.images.recipe import load_lineage
from pvc.slurm.options import KNOWN

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FORGE = [ROOT / name for name in ("README.md", "HACKING.md", "CONTRIBUTING.md", "SECURITY.md", "NEWS.md")]
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*FORGE, *PAGES]
CONFIGURED = ("batch.yaml", "networks.yaml", "resources.yaml", "templates.yaml", "repos.yaml")

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_PROMPT = re.compile(r"^[\w@-]*[$#] (?P<line>.+)$")
_OURS = re.compile(r"^(?:/opt/pvc/bin/|\.venv/bin/)?(?P<name>pvc|pvc-node)$")
_BEFORE = {"do", "then", "else", "if", "while", "until", "!", "time", "sudo"}


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def find_blocks(page: Path, text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"].strip(), found["text"])
        for found in _FENCE.finditer(text)
    ]


@cache
def blocks() -> tuple[Block, ...]:
    return tuple(block for page in TEXTS for block in find_blocks(page, page.read_text(encoding="utf-8")))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


# --- pages


def toctree_entries(page: Path) -> Iterator[tuple[str, bool]]:
    """What a page's toctrees name, from the top of the tree on, and whether it is a pattern."""
    for block in find_blocks(page, page.read_text(encoding="utf-8")):
        if block.language == "{toctree}":
            for line in block.text.splitlines():
                if line and not line.startswith(":"):
                    path = (page.parent / line).resolve().relative_to(ROOT)
                    yield path.as_posix(), ":glob:" in block.text and any(sign in line for sign in "*?[")


def test_every_page_is_in_a_toctree() -> None:
    named = [entry for page in PAGES for entry in toctree_entries(page)]
    documents = [page.relative_to(ROOT).with_suffix("").as_posix() for page in [*PAGES, *FORGE[1:]]]
    documents += [f"man/{page.stem}" for page in (ROOT / "man").glob("*.rst")]
    lost = [
        each
        for each in documents
        if each != "docs/index" and not any(fnmatch(each, name) if glob else each == name for name, glob in named)
    ]
    assert not lost
    assert not [name for name, glob in named if not glob and name not in documents]


# --- links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges and MyST name them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        name, number = words, 0
        while name in found:
            number += 1
            name = f"{words}-{number}"
        found.add(name)
    return found


def find_dead_links(page: Path, text: str) -> list[str]:
    """The links of a page that lead to no file or heading of the tree."""
    dead = []
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", TEXTS, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    assert find_dead_links(page, prose(page)) == []


def test_a_dead_link_is_found() -> None:
    text = "[a](security.md) [b](nowhere.md) [c](security.md#who-trusts-whom) [d](security.md#nobody) [e](https://x.y)"
    assert find_dead_links(DOCS / "index.md", text) == ["nowhere.md", "security.md#nobody"]


# --- commands


def shell_lines(block: Block) -> Iterator[str]:
    """The command lines of a block, with those joined that end in a backslash."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "console":
            found = _PROMPT.match(line.strip())
            if found:
                yield found["line"]
        elif block.language in ("bash", "sh"):
            yield line
        elif block.language == "yaml" and (script := re.match(r"\s*- (pvc .*)", line)):
            yield script[1]


def find_commands(line: str) -> Iterator[list[str]]:
    """The commands of pvc in a line of a shell's, each as its words."""
    # Substitutions and what a trap or ssh is given are lines, too.
    for inner in re.findall(r"\$\(([^()]*)\)|trap '([^']*)'", line):
        yield from find_commands(inner[0] or inner[1])
    line = re.sub(r"\$\([^()]*\)", "X", re.sub(r"trap '[^']*'", "trap X", line))
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:
        return  # a part of a text of several lines
    segment: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set(";|&<>()"):
            yield from _find_in_segment(segment)
            segment = []
        else:
            segment.append(word)


def _find_in_segment(words: list[str]) -> Iterator[list[str]]:
    """The command of pvc that a simple command is, and the one that it gives to another machine."""
    while words and (words[0] in _BEFORE or re.fullmatch(r"\w+=.*", words[0])):
        words = words[1:]
    if not words:
        return
    if _OURS.match(words[0]):
        yield words
    if words[0] == "ssh" or words[1:3] == ["testbed", "exec"]:
        start = next((number for number, word in enumerate(words[1:], 1) if _OURS.match(word)), None)
        if start is not None:
            yield words[start:]


def examples() -> Iterator[Block]:
    """The examples of the manual, each line a block: those that begin with a prompt below an indentation."""
    for page in sorted((ROOT / "man").glob("*.rst")):
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if re.match(r" {4}[$#] ", line):
                yield Block(page, number, "console", line)


def documented() -> list[tuple[str, list[str]]]:
    """Every command of pvc that a page or an example of the manual shows, with its place."""
    return [
        (f"{block}: {' '.join(words)}", words)
        for block in [*blocks(), *examples()]
        for line in shell_lines(block)
        for words in find_commands(line)
    ]


def parse(words: list[str]) -> None:
    """Parse a command line as pvc would, down to the last subcommand, and run nothing.

    :raise click.ClickException: it is not understood.
    :raise PvcError: nor by what pvc asks itself.
    """
    found = _OURS.match(words[0])
    assert found
    command: click.Command = command_line if found["name"] == "pvc" else mandoc.find_node_command()
    # With its settings: click keeps the help option that a command was first asked for.
    ctx = click.Context(command, info_name=found["name"], obj=object(), **command.context_settings)
    args = words[1:]
    while isinstance(command, click.Group):
        # The group's own options are few, and no page has them together with a subcommand that would be hidden by them.
        own = [name for name in args[:1] if name.startswith("-")]
        if own:
            assert any(own[0] in param.opts for param in command.get_params(ctx)), f"{own[0]} is no option of pvc's"
            return
        if not args:
            return
        name, sub, args = command.resolve_command(ctx, args)
        assert sub is not None
        command, ctx = sub, click.Context(sub, parent=ctx, info_name=name, **sub.context_settings)
    command.make_context(ctx.info_name, list(args), parent=ctx.parent)
    wrong = [word for word in ctx.meta.get("pvc.slurm_words", ()) if word.startswith("--")]
    assert all(word[2:].partition("=")[0] in KNOWN for word in wrong), f"no options of Slurm's: {wrong}"


@pytest.fixture
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that pages name are not there; and nobody asks an installed Slurm what its options are."""

    def take(self: click.Path, value: Any, *_: Any) -> Any:
        return self.coerce_path_result(value)

    monkeypatch.setattr(click.Path, "convert", take)
    monkeypatch.setattr("pvc.cli.passthrough.read_installed", lambda _: {})


@pytest.mark.usefixtures("_no_files")
def test_commands_are_understood() -> None:
    """All commands of all pages, in one test: they are hundreds, and share what click makes of the tree."""
    found = documented()
    assert len(found) > 100
    wrong = []
    for place, words in found:
        try:
            parse(words)
        except (click.exceptions.NoArgsIsHelpError, click.exceptions.Exit):
            continue
        except click.ClickException as err:
            wrong.append(f"{place}: {err.format_message()}")
        except (PvcError, AssertionError) as err:
            wrong.append(f"{place}: {err}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.usefixtures("_no_files")
@pytest.mark.parametrize(
    "line",
    [
        "pvc aloc debian:2",
        "pvc alloc --memory-size 2G debian:2",
        "pvc alloc --tyme=1:00 debian:2",
        "pvc alloc -c two debian:2",
        "pvc image import",
        "pvc image imprt disk.qcow2",
        "pvc save vm0 a b",
        "pvc wait --timeout soon",
        "pvc-node serf",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    (words,) = find_commands(line)
    with pytest.raises((click.ClickException, PvcError, AssertionError)):
        parse(words)


@pytest.mark.parametrize(
    ("line", "commands"),
    [
        ("pvc stop vm1; pvc start vm1   # again", [["pvc", "stop", "vm1"], ["pvc", "start", "vm1"]]),
        ('ssh -F "$(pvc ssh-config)" vm0', [["pvc", "ssh-config"]]),
        ("X=1 pvc logs 'vm[0-1]' > console.log", [["pvc", "logs", "vm[0-1]"]]),
        ("trap 'pvc status' ERR", [["pvc", "status"]]),
        ("for n in 1; do ssh n$n pvc ps; done", [["pvc", "ps"]]),
        ("pvc testbed exec -- pvc ps", [["pvc", "testbed", "exec", "--", "pvc", "ps"], ["pvc", "ps"]]),
        ("ln -s /opt/pvc/bin/pvc /usr/local/bin/", []),
    ],
)
def test_commands_are_taken_apart(line: str, commands: list[list[str]]) -> None:
    assert list(find_commands(line)) == commands


@pytest.mark.allow_run  # bash, which runs nothing of the pages
@pytest.mark.parametrize("page", sorted({block.page for block in blocks() if block.language == "bash"}), ids=_name)
def test_scripts_are_bash(page: Path) -> None:
    text = "".join(block.text for block in blocks() if block.page == page and block.language == "bash")
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_files_of_conf_that_pages_name_are_there() -> None:
    named = {
        (page.relative_to(ROOT).as_posix(), name)
        for page in TEXTS
        for name in re.findall(r"(?<![\w/.])conf/[\w./*-]*\w", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert not [each for each in named if not list(ROOT.glob(each[1]))]


@pytest.mark.allow_run  # awk
def test_the_parts_of_the_package_list_are_found() -> None:
    """The administrator's page asks conf/debian-packages.txt for the packages below some headings."""
    text = (DOCS / "tutorials/administrator.md").read_text(encoding="utf-8")
    (function,) = re.findall(r"^list\(\) .*$", text, re.MULTILINE)
    parts = set(re.findall(r'\$\(list ("[^"]+")', text))
    assert len(parts) == 5
    for part in parts:
        done = subprocess.run(["bash", "-c", f"{function}\nlist {part}"], cwd=ROOT, capture_output=True, text=True)
        assert re.fullmatch(r"([a-z0-9.+-]+\n)+", done.stdout), part


# --- configuration


def load_block(block: Block, site: Path) -> None:
    """Load a block of YAML as the file that its first line names.

    :raise PvcError: pvc refuses it.
    """
    first, _, _ = block.text.partition("\n")
    named = re.fullmatch(r"# (?:recipe: )?([\w.-]+\.ya?ml)", first)
    assert named, f"{block}: its first line has to say which file it is"
    if first.startswith("# recipe: "):
        path = site / named[1]
        path.write_text(block.text)
        if load_guest_recipe(path) is None:
            load_lineage(path)
    elif named[1] in CONFIGURED:
        path = site / named[1]
        # These are mappings of names, so a block is more of them.
        before = path.read_text() if named[1] in ("networks.yaml", "resources.yaml", "templates.yaml") else ""
        path.write_text(before + block.text)
    else:
        path = site / "other"
        path.write_text(block.text)
        assert read_document(path).problems == []


@pytest.mark.parametrize("page", sorted({block.page for block in blocks() if block.language == "yaml"}), ids=_name)
def test_yaml_loads(page: Path, tmp_path: Path) -> None:
    """A page's blocks are the site's sample files with what the blocks add."""
    for name in CONFIGURED:
        shutil.copy(ROOT / "conf" / name, tmp_path / name)
    for block in blocks():
        if block.page == page and block.language == "yaml":
            load_block(block, tmp_path)
    load_config(tmp_path, None)


@pytest.mark.parametrize(
    "text",
    ["# templates.yaml\nx:\n  imaeg: debian\n", "# networks.yaml\nx:\n  type: ethernet\n  settings: {}\n"],
)
def test_a_wrong_block_is_found(text: str, tmp_path: Path) -> None:
    for name in CONFIGURED:
        shutil.copy(ROOT / "conf" / name, tmp_path / name)
    load_block(Block(DOCS / "index.md", 1, "yaml", text), tmp_path)
    with pytest.raises(PvcError):
        load_config(tmp_path, None)


def test_blocks_say_what_they_are() -> None:
    """A block without a language is checked by nobody."""
    assert not [str(block) for block in blocks() if not block.language]
