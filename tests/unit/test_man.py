# SPDX-License-Identifier: Apache-2.0
"""The manual: generated parts are current, every command has a page, and rst2man takes all of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import docutils.core
import docutils.utils
import pytest

from pvc.cli import mandoc

ROOT = Path(__file__).resolve().parents[2]
MAN = ROOT / "man"
PAGES = sorted(MAN.glob("*.rst"))


def test_generated_parts_are_current() -> None:
    wanted = mandoc.generate()
    present = {path.name: path.read_text(encoding="utf-8") for path in (MAN / "gen").glob("*.rst")}
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    assert not stale, f"run `make man`: {stale}"


def test_every_command_and_file_has_a_page() -> None:
    wanted = {"pvc.1.rst", "pvc-node.8.rst"}
    wanted |= {f"pvc-{name}.1.rst" for name, _ in mandoc.public_commands()}
    wanted |= {f"pvc-{name}.yaml.5.rst" for name in mandoc.FILES}
    assert wanted - {path.name for path in PAGES} == set()


def test_every_option_is_explained() -> None:
    bare = [
        f"pvc {name}: {param.name}"
        for name, command in [*mandoc.public_commands(), ("node", mandoc.find_node_command())]
        for each in [command, *getattr(command, "commands", {}).values()]
        for param in each.params
        if param.param_type_name == "option"
        and not getattr(param, "hidden", False)
        and not getattr(param, "help", None)
    ]
    assert not bare


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_rst2man_takes_it(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MAN)
    settings = {"halt_level": docutils.utils.Reporter.WARNING_LEVEL, "report_level": 2, "input_encoding": "utf-8"}
    text = docutils.core.publish_string(
        page.read_text(encoding="utf-8"),
        source_path=os.fspath(page),
        writer="manpage",
        settings_overrides={**settings, "output_encoding": "unicode"},
    )
    assert ".SH NAME" in text or ".SH Name" in text


def test_references_lead_somewhere() -> None:
    own = {path.name[: -len(".rst")] for path in PAGES}
    wrong = []
    for page in [*PAGES, *(MAN / "gen").glob("*.rst")]:
        for name, section in re.findall(r"\*\*(pvc[a-z.-]*)\*\*\\ \((\d)\)", page.read_text(encoding="utf-8")):
            if f"{name}.{section}" not in own:
                wrong.append(f"{page.name}: {name}({section})")
    assert not wrong
