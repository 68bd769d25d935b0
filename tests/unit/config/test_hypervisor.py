# SPDX-License-Identifier: Apache-2.0
"""What libvirt cannot do is a problem of the file that asks for it."""

from __future__ import annotations

import pytest

from pvc.config.inheritance import merge_files, resolve_templates
from pvc.config.templates import read_templates
from pvc.config.yamlmarks import parse_document
from pvc.model.network import ResourceSet
from tests.unit.config.sites import EXPANSION

SETS = {"nat": ResourceSet("nat", ("nat",), True)}


@pytest.mark.parametrize(
    ("line", "place", "text"),
    [
        ("machine-type: microvm", "t.yaml:3: t.machine-type", "libvirt has no microvm"),
        ("machine-type: q35,vmport=off", "t.yaml:3: t.machine-type", "no options of the machine"),
        ("cpu-model: max,phys-bits=40", "t.yaml:3: t.cpu-model", "not phys-bits=40"),
        ("custom-args: [-qmp, stdio]", "t.yaml:3: t.custom-args", "libvirt's own"),
        ("cpu-model: max,+avx2", "", ""),
        ("machine-type: pc", "", ""),
    ],
)
def test_problems_have_a_place(line: str, place: str, text: str) -> None:
    document = parse_document("t.yaml", f"t:\n  hypervisor: libvirt\n  {line}\n".encode())
    resolve_templates(merge_files([read_templates(document, EXPANSION)]), SETS)
    problems = [str(problem) for problem in document.problems]
    if not text:
        assert problems == []
    else:
        (problem,) = problems
        assert problem.startswith(f"{place}: ")
        assert text in problem


def test_an_ancestor_may_say_it() -> None:
    """The problem is told where this template gives one of the two keys."""
    text = "base:\n  machine-type: microvm\nchild:\n  inherits: base\n  hypervisor: libvirt\n"
    document = parse_document("t.yaml", text.encode())
    resolve_templates(merge_files([read_templates(document, EXPANSION)]), SETS)
    assert [str(each) for each in document.problems] == ["t.yaml:5: child.hypervisor: libvirt has no microvm"]
