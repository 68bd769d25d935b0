# SPDX-License-Identifier: Apache-2.0
"""Completions: the answers, and the three shells that ask."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem

from pvc.cli import completing
from pvc.cli.completing import split_line
from pvc.cli.completion import SHELLS
from pvc.cli.main import command_line, public_helps
from pvc.config import load
from pvc.ops.jobdir import JobDir
from tests.slurm.terminal import Terminal
from tests.unit import filenames
from tests.unit.config.sites import write_site
from tests.unit.ops.worlds import NETWORKS, RESOURCES, TEMPLATES, make_record

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with clusters 7 (web:2,db:1) and 12, and a site with templates."""
    site = write_site(
        tmp_path / "site", templates=TEMPLATES, resources=RESOURCES, networks=NETWORKS, repos="repos: []\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(load, "SITE_DIR", site)
    for job_id in (7, 12):
        write_record(job_id)
    return tmp_path


def write_record(job_id: int, **changes: str) -> None:
    jobdir = JobDir.of(job_id)
    jobdir.path.mkdir(parents=True)
    jobdir.write_record(replace(make_record(job_id=job_id), **changes))


def answer(shell: str, line: str) -> str:
    return completing.answer(command_line, public_helps(), shell, line)


def ask(line: str, shell: str = "bash") -> list[str]:
    return [text.split("\t")[1] for text in answer(shell, line).split("\n")[:-1]]


@pytest.mark.parametrize(
    ("line", "words", "incomplete"),
    [
        ("pvc ", [], ""),
        ("pvc st", [], "st"),
        ("time /opt/pvc/bin/pvc status 'vm[0-1]' v", ["status", "vm[0-1]"], "v"),
        ("pvc ssh 'vm", ["ssh"], "vm"),
        ("", [], ""),
    ],
)
def test_lines(line: str, words: list[str], incomplete: str) -> None:
    assert split_line(line) == (words, incomplete)


def test_commands_come_with_what_they_do() -> None:
    assert ask("pvc sta") == ["start", "status"]
    assert "plain\tps\tList your running clusters.\n" in answer("zsh", "pvc ")
    assert "launch" not in ask("pvc ")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("pvc status vm", ["vm0", "vm1", "vm2"]),
        ("pvc status vm0 vm", ["vm1", "vm2"]),
        ("pvc ssh anne@vm", ["vm0", "vm1", "vm2"]),
        ("pvc ssh vm0 ", []),
        ("pvc scp vm1", ["vm1:", "vm1"]),
        ("pvc cp vm1", ["vm1:", "vm1"]),
        ("pvc cp -r my\\ fi", ["my fi"]),
        ("pvc cp a vm", ["vm0:", "vm1:", "vm2:", "vm"]),
        ("pvc status -j ", ["7", "12"]),
        ("pvc stop --job 1", ["12"]),
        ("pvc status -j 9 ", []),
        ("pvc status -J ", ["pvc", "pvc"]),
        ("pvc alloc -N 2 --exclusive p", ["plain"]),
        ("pvc alloc web:2,d", ["2,db"]),
        ("pvc start d", ["db"]),
        ("pvc template show w", ["web"]),
        ("pvc alloc --resource-set ", ["nat", "lan"]),
        ("pvc status --js", ["--json"]),
        ("pvc nonsense ", []),
        ("pvc completion ", list(SHELLS)),
    ],
)
def test_words(line: str, found: list[str]) -> None:
    assert ask(line) == found


def test_a_count_may_follow_a_template() -> None:
    assert answer("zsh", "pvc alloc web:2,w") == "open\tweb:2,web\tweb\n"


@pytest.mark.allow_run("the command itself")
def test_the_users_own_bytes_come_back() -> None:
    """What is typed goes back into the line as it is; what is only shown is cleaned."""
    environ = {**os.environ, "PVC_COMPLETE": "zsh", "COMP_LINE": os.fsdecode(b"pvc scp gr\xf6\xdfe/\xff")}
    done = subprocess.run([Path(sys.executable).parent / "pvc"], env=environ, capture_output=True, check=True)
    assert done.stdout == b"file\tgr\xf6\xdfe/\xff\n"
    item = CompletionItem("vm0", help="an image\x1b]0;title\x07 of a friend's")
    assert completing._format(item, "zsh", "v") == "plain\tvm0\tan image?]0;title? of a friend's\n"
    assert completing._format(CompletionItem("two\nlines"), "zsh", "t") == ""


def test_names_of_jobs() -> None:
    for job_id, name in enumerate(filenames.SEEN, 100):
        write_record(job_id, name=name)
    found = ask("pvc status -J ", "zsh")
    assert set(found) - {"pvc"} == {name for name in filenames.SEEN if not {"\n", "\t", "\r"} & set(name)}


@pytest.mark.allow_run("the shells themselves")
@pytest.mark.parametrize(
    ("argv", "source"),
    [
        (["bash", "--norc", "--noprofile", "-i"], ". <(pvc completion bash)"),
        (["zsh", "-f", "-i"], "autoload -Uz compinit; compinit -D; . <(pvc completion zsh)"),
        (["fish", "--no-config", "-i"], "pvc completion fish | source"),
    ],
    ids=SHELLS,
)
def test_shells(argv: list[str], source: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(20, name="my $(job) 50%")
    (home / "bin").mkdir()
    program = home / "bin" / "pvc"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom pvc.cli.main import main\nmain()\n"
    )
    program.chmod(0o755)
    for name in ("EDITOR", "VISUAL"):  # zsh takes vi's keys from them
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")
    terminal = Terminal(argv)
    try:
        terminal.type(f"{source}; echo do''ne\n")
        terminal.expect("done")
        # Ctrl-A and Ctrl-E: the line as it has become is printed instead of run
        terminal.type("pvc stat\t-j 1\tvm1\t\x01echo '=' \x05\n")
        terminal.expect("= pvc status -j 12 vm1", 60)
        terminal.type("\x15pvc status -J my\t\x01printf '%s|' '=' \x05 end\n")
        terminal.expect("=|pvc|status|-J|my $(job) 50%|end|", 60)
    finally:
        terminal.kill()
