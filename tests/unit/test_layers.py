# SPDX-License-Identifier: Apache-2.0
"""The shape of the code: layers, purity, one gate for processes, no cycles, sizes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Low to high. A package imports only from lower levels, and from itself.
LAYERS = (
    {"errors"},
    {"parse", "codec", "texts", "beneath"},
    {"removal"},
    {"log", "files"},
    {"run"},
    {"model", "channel"},
    {"config"},
    {"plan"},
    {"host", "state", "slurm"},
    {"images"},
    {"node", "supervisor", "testbed", "ops"},
    {"cli"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
PURE = {"model", "channel", "plan", "parse", "codec", "texts"}
IMPURE_MODULES = {
    "asyncio",
    "fcntl",
    "glob",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "psutil",
    "pyroute2",
    "random",
    "secrets",
    "select",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
}
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60
SPAWNERS = {
    "os": {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp"}
    | {f"{verb}{suffix}" for verb in ("exec", "spawn") for suffix in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell"},
}
# A process that turns into another one starts none; a namespace is entered between fork and exec; and what stays
# behind when a command returns is a fork of it.
MAY_SPAWN = {
    "pvc.host.shareguard": {"execv"},
    "pvc.ops.ssh": {"execvpe"},
    "pvc.ops.start": {"fork"},
    "pvc.ops.submission": {"execvpe"},
    "pvc.supervisor.virtexec": {"execvp"},
    "pvc.testbed.enter": {"fork", "execvpe"},
    "pvc.testbed.etcdauth": {"fork"},
    "pvc.testbed.init": {"fork"},
}


@dataclass(frozen=True)
class Import:
    """``module`` is absolute; ``line`` is where it is imported; ``eager`` is whether importing the importer does it."""

    module: str
    line: int
    eager: bool


@dataclass(frozen=True)
class Module:
    """A module of pvc, read."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def top(self) -> str:
        """The layer's package or module: ``plan`` of ``pvc.plan.node``."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """All imports, those within functions too; those for annotations only not."""
        return tuple(self._imports(self.tree, eager=True))

    def _imports(self, node: ast.AST, *, eager: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, eager) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                for alias in child.names:
                    name = f"{base}.{alias.name}"
                    yield Import(name if name in modules() else base, child.lineno, eager)
            elif isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            else:
                inside = eager and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from self._imports(child, eager=inside)


@cache
def modules() -> dict[str, Module]:
    """Every module below pvc/."""
    found = {}
    for path in sorted((ROOT / "pvc").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found[name] = Module(name, path.relative_to(ROOT), text, ast.parse(text))
    return found


def test_every_package_has_a_level() -> None:
    assert {module.top for module in modules().values()} - {""} == set(RANK)


def test_imports_point_down() -> None:
    wrong = []
    for module in modules().values():
        for each in module.imports:
            parts = each.module.split(".")
            if parts[0] != "pvc" or len(parts) == 1 or not module.top or parts[1] == module.top:
                continue
            if RANK[parts[1]] >= RANK[module.top]:
                wrong.append(f"{module.path}:{each.line}: {module.top} imports {each.module}")
    assert not wrong, "\n".join(wrong)


def test_pure_layers_import_no_effects() -> None:
    wrong = [
        f"{module.path}:{each.line}: imports {each.module}"
        for module in modules().values()
        if module.top in PURE
        for each in module.imports
        if each.module.split(".")[0] in IMPURE_MODULES
    ]
    assert not wrong, "\n".join(wrong)


def test_only_run_starts_processes() -> None:
    wrong = []
    for module in modules().values():
        if module.name == "pvc.run":
            continue
        wrong += [
            f"{module.path}:{each.line}: imports {each.module}"
            for each in module.imports
            if each.module.split(".")[0] in {"subprocess", "multiprocessing", "pty"}
        ]
        for node in ast.walk(module.tree):
            owner = node.value.id if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else ""
            if isinstance(node, ast.Attribute) and node.attr in (
                SPAWNERS.get(owner, set()) - MAY_SPAWN.get(module.name, set())
            ):
                wrong.append(f"{module.path}:{node.lineno}: {owner}.{node.attr}")
    assert not wrong, "\n".join(wrong)


def test_no_shell() -> None:
    wrong = [
        f"{module.path}:{node.value.lineno}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.keyword) and node.arg == "shell" and node.value
    ]
    assert not wrong, "\n".join(wrong)


def test_no_relative_imports() -> None:
    wrong = [
        f"{module.path}:{node.lineno}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not wrong, "\n".join(wrong)


def test_no_cycles() -> None:
    """Among all imports, those in functions included: a delayed import is for speed, not to hide a ring."""
    graph = {
        name: {each.module for each in module.imports if each.module in modules()} - {name}
        for name, module in modules().items()
    }
    state: dict[str, int] = {}
    ring: list[str] = []

    def visit(name: str, trail: list[str]) -> bool:
        state[name] = 1
        for other in sorted(graph[name]):
            if state.get(other) == 1:
                ring.extend([*trail[trail.index(other) :], other] if other in trail else [name, other])
                return True
            if other not in state and visit(other, [*trail, other]):
                return True
        state[name] = 2
        return False

    assert not any(visit(name, [name]) for name in sorted(graph) if name not in state), " -> ".join(ring)


@pytest.mark.parametrize("folder", ["pvc", "tests"])
def test_sizes(folder: str) -> None:
    wrong = []
    parsed = {module.path: module.tree for module in modules().values()} if folder == "pvc" else {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        lines = text.count("\n") - 1  # beside the licence's
        known = parsed.get(path.relative_to(ROOT))
        if lines > MAX_MODULE_LINES:
            wrong.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(known or ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def test_annotations_are_postponed() -> None:
    wrong = [
        str(module.path)
        for module in modules().values()
        if module.tree.body[1:] and "from __future__ import annotations" not in module.text
        if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in module.tree.body)
    ]
    assert not wrong, "\n".join(wrong)
