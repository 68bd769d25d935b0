# SPDX-License-Identifier: Apache-2.0
"""Inheritance against a plain model: the nearest ancestor that says something counts, and rings are refused."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pvc.config.inheritance import merge_files, resolve_templates
from pvc.config.templates import read_templates
from pvc.config.yamlmarks import parse_document
from pvc.model.network import ResourceSet
from tests.unit.config.sites import EXPANSION

NAMES = ("a", "b", "c", "d", "e")
SETS = {"nat": ResourceSet("nat", ("nat",), True)}
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "inherits": st.sampled_from((*NAMES, "nobody")),
        "machine-type": st.sampled_from(("q35", "pc")),
        "image": st.sampled_from(("x", "y")),
        "description": st.sampled_from(("one", "two")),
    },
)


def write(entries: dict[str, dict[str, str]]) -> bytes:
    lines: list[str] = []
    for name, entry in entries.items():
        lines += [f"{name}:"] + ([f"  {key}: {value}" for key, value in entry.items()] or ["  {}"])
    return ("\n".join(lines) + "\n").encode()


def line_of(entries: dict[str, dict[str, str]], name: str, key: str) -> int:
    text = write(entries).decode().splitlines()
    start = text.index(f"{name}:")
    return next(i for i in range(start, len(text)) if text[i].startswith(f"  {key}:")) + 1


def walk(entries: dict[str, dict[str, str]], name: str) -> tuple[list[str], str]:
    """The line of ancestors, and how it ends: "", "missing" or "ring"."""
    chain = [name]
    while (parent := entries[chain[-1]].get("inherits")) is not None:
        if parent not in entries:
            return chain, "missing"
        if parent in chain:
            return chain, "ring"
        chain.append(parent)
    return chain, ""


@given(st.dictionaries(st.sampled_from(NAMES), ENTRIES, min_size=1))
def test_inheritance_is_what_the_model_says(entries: dict[str, dict[str, str]]) -> None:
    document = parse_document("t.yaml", write(entries))
    found = resolve_templates(merge_files([read_templates(document, EXPANSION)]), SETS)
    ends = {name: walk(entries, name) for name in entries}
    assert found.keys() == {name for name, (_, end) in ends.items() if not end}
    expected_problems = set()
    for name, (chain, end) in ends.items():
        last = entries[chain[-1]].get("inherits")
        if (end == "missing" and chain == [name]) or (end == "ring" and last == name):
            expected_problems.add((line_of(entries, name, "inherits"), f"{name}.inherits"))
    assert {(each.line, each.key) for each in document.problems} == expected_problems
    assert bool(document.problems) == any(end for _, end in ends.values())
    for name, template in found.items():
        check_template(entries, ends[name][0], template)


def check_template(entries: dict[str, dict[str, str]], chain: list[str], template: Any) -> None:
    origins = {each.key: each for each in template.origins}
    for key, default in {"machine-type": "q35", "image": None}.items():
        giver = next((each for each in chain if key in entries[each]), None)
        value = default if giver is None else entries[giver][key]
        assert getattr(template, key.replace("-", "_")) == origins[key].value == value
        source = "" if giver is None else f"t.yaml:{line_of(entries, giver, key)}"
        inherited = giver if giver != template.name else None
        assert (origins[key].source, origins[key].template) == (source, inherited or "")
    assert template.description == entries[template.name].get("description", "")
