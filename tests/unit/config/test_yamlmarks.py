# SPDX-License-Identifier: Apache-2.0
"""YAML with lines, read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pvc.config.yamlmarks import MAX_BYTES, MAX_DEPTH, MAX_NODES, format_path, parse_document, read_document

plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(min_size=1, max_size=10), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(plain)
def test_what_pyyaml_writes_is_read(value: object) -> None:
    text = yaml.safe_dump(value)
    document = parse_document("f", text.encode())
    assert document.problems == []
    assert document.data == value


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_data_or_problems(content: bytes) -> None:
    document = parse_document("f", content)
    assert all(problem.file == "f" and problem.line >= 0 and problem.text for problem in document.problems)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab:-[]{}&*!?|>%@#,'\" \n<", max_size=60))
def test_any_punctuation_gives_data_or_problems(text: str) -> None:
    document = parse_document("f", text.encode())
    assert all(problem.text for problem in document.problems)


def test_lines_of_keys_and_items() -> None:
    document = parse_document("f", b"a: 1\nb:\n  c:\n    - x\n    - y\n")
    assert document.lines[("a",)] == 1
    assert document.lines[("b", "c")] == 3
    assert document.line(("b", "c", 1)) == 5
    assert document.line(("b", "nowhere", "at", "all")) == 2
    assert format_path(("b", "c", 1, "d")) == "b.c[1].d"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("52:54:00", "52:54:00"),
        ("22:30", "22:30"),
        ("2024-13-45", "2024-13-45"),
        ("yes", True),
        ("Off", False),
        ("0x1F", 31),
        ("010", 8),
        ("1_000", 1000),
        ("-5", -5),
        ("2.5", 2.5),
        ("~", None),
        ("'5'", "5"),
        ("5000000000", 5000000000),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    document = parse_document("f", f"k: {text}\n".encode())
    assert document.problems == []
    assert document.data["k"] == value
    assert type(document.data["k"]) is type(value)


def test_keys_are_text() -> None:
    assert parse_document("f", b"1: a\nyes: b\n2024-01-01: c\n").data == {"1": "a", "yes": "b", "2024-01-01": "c"}


@pytest.mark.parametrize(
    ("content", "line", "text"),
    [
        (b"a: 1\nb: 2\na: 3\n", 3, "is given twice (first on line 1)"),
        (b"a: [\n", 2, "is not YAML"),
        (b"ok: 1\nbad: \xff\n", 2, "is not UTF-8"),
        (b"a: 1\nb: \x07\n", 2, "control character"),
        (b"a: 1\n---\nb: 2\n", 2, "another document"),
        (b"a: 1\nb: !!python/name:os.system x\n", 2, "is not understood"),
        (b"a: 1\nb: !mine x\n", 2, "is not understood"),
        (b"? [a]\n: 1\n", 1, "a key must be a word"),
        (b"a: &x [*x]\n", 1, "contains itself"),
        (b"a: *nowhere\n", 1, "undefined alias"),
        (b"<<: 3\n", 1, "takes mappings only"),
    ],
)
def test_problems_have_lines(content: bytes, line: int, text: str) -> None:
    problems = parse_document("f", content).problems
    assert [problem.line for problem in problems] == [line]
    assert text in problems[0].text


def test_merge_keys() -> None:
    text = b"base: &b {x: 1, y: 2}\nother: &o {y: 3, z: 4}\nall:\n  <<: [*b, *o]\n  x: 9\n"
    document = parse_document("f", text)
    assert document.problems == []
    assert document.data["all"] == {"x": 9, "y": 2, "z": 4}


@pytest.mark.parametrize("unit", [b"[", b"- ", b"? ", b"{a: "])
def test_deep_nesting_is_refused(unit: bytes) -> None:
    """PyYAML's C composer would end the process with a stack overflow."""
    problems = parse_document("f", unit * 200_000).problems
    assert len(problems) == 1
    # libyaml has a limit of its own since PyYAML 6.0.4, and meets it first where it scans ahead.
    assert any(words in problems[0].text for words in (f"{MAX_DEPTH} levels", "maximum nesting depth"))


def test_nesting_that_people_write_is_not() -> None:
    assert parse_document("f", b"[" * MAX_DEPTH + b"]" * MAX_DEPTH).problems == []


def test_anchors_that_multiply_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    problems = parse_document("f", "\n".join(lines).encode()).problems
    assert len(problems) == 1
    assert str(MAX_NODES) in problems[0].text


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    document = read_document(tmp_path / "none.yaml")
    assert [str(problem) for problem in document.problems] == [
        f"{tmp_path}/none.yaml: cannot be read: No such file or directory"
    ]


def test_a_directory_and_a_huge_file(tmp_path: Path) -> None:
    assert "Is a directory" in read_document(tmp_path).problems[0].text
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (MAX_BYTES + 1))
    assert "larger than" in read_document(huge).problems[0].text


def test_an_empty_file_and_a_byte_order_mark() -> None:
    assert parse_document("f", b"").data is None
    assert parse_document("f", b"\xef\xbb\xbfa: 1\n").data == {"a": 1}
