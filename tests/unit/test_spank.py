# SPDX-License-Identifier: Apache-2.0
"""The SPANK plug-in: its C tests pass under the sanitizers, and the house rules for C hold."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from pvc.node import facts
from tests.unit.builds import make

SPANK = Path(__file__).parents[2] / "spank"
_HEADERS = SPANK.parent / "tools" / "slurm-headers"
SUITES = ("trixie", "sid")
SOURCES = sorted([*SPANK.glob("*.c"), *SPANK.glob("*.h")])
MAX_FILE = 250
MAX_CODE = 1200
EXPORTED = {
    "plugin_name",
    "plugin_type",
    "plugin_version",
    "slurm_spank_init",
    "slurm_spank_init_post_opt",
    "slurm_spank_job_epilog",
    "slurm_spank_job_prolog",
}
# All that a shell, an unbounded copy or an unbounded wait could come in by.
BANNED = re.compile(r"\b(system|popen|execvp|execlp|execvpe|strcpy|strcat|sprintf|vsprintf|gets|alloca|sleep)\s*\(")


def _code_lines(path: Path) -> int:
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    return sum(1 for line in text.splitlines() if line.strip())


def _make(request: pytest.FixtureRequest, *words: str, headers: Path = Path("/usr/include")) -> Path:
    """As ``make`` with these words; the directory of what was built, so the checkout stays as it is."""
    return make(request.config, SPANK, *words, rests_on=(headers / "slurm").glob("*.h"))


def test_shim_hands_on_what_the_node_takes() -> None:
    body = (SPANK / "job.c").read_text().split("keys[] = {", 1)[1].split("};", 1)[0]
    header = (SPANK / "job.h").read_text()
    words = dict(re.findall(r'#define (\w+) "(\w+)"', header))
    sent = [words.get(word, word.strip('"')) for word in re.findall(r'[\w"]+', body)]
    assert sent == list(facts.KEYS)


@pytest.mark.allow_run
def test_c_tests_pass_under_the_sanitizers(request: pytest.FixtureRequest) -> None:
    _make(request, "all", "check")


@pytest.mark.allow_run
@pytest.mark.parametrize("suite", SUITES)
def test_c_tests_pass_with_the_headers_of_other_releases(request: pytest.FixtureRequest, suite: str) -> None:
    """Each has functions and types of its own; what Slurm then does is for a testbed to tell.

    Without sanitizers, which have looked at the same code with the headers that are installed.
    """
    found = subprocess.run([os.fspath(_HEADERS), suite], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        pytest.skip(found.stderr.strip())
    headers = Path(found.stdout.strip())
    _make(request, "check", f"SLURM={headers}", "CHECK_CC=gcc", "SANITIZE=-O0", headers=headers)


def test_one_header_knows_the_releases_of_slurm() -> None:
    asking = {
        path.name for path in SOURCES if re.search(r"^#\s*(if|elif)\b|SLURM_VERSION", path.read_text(), re.MULTILINE)
    }
    assert asking == {"compat.h"}


@pytest.mark.allow_run
def test_only_slurms_names_are_exported(request: pytest.FixtureRequest) -> None:
    build = _make(request, "all")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", os.fspath(build / "pvc.so")], capture_output=True, text=True, check=True
    )
    assert {line.split()[-1] for line in listing.stdout.splitlines()} == EXPORTED


@pytest.mark.allow_run
def test_plugin_is_hardened(request: pytest.FixtureRequest) -> None:
    build = _make(request, "all")
    headers = subprocess.run(
        ["readelf", "-W", "-l", "-d", os.fspath(build / "pvc.so")], capture_output=True, text=True, check=True
    ).stdout
    assert "GNU_RELRO" in headers
    assert re.search(r"FLAGS.*(BIND_)?NOW", headers)
    assert re.search(r"GNU_STACK.* RW ", headers)
    assert "TEXTREL" not in headers


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_file_is_small_and_has_no_banned_call(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    assert max(map(len, text.expandtabs(8).splitlines())) <= 120
    assert BANNED.search(text) is None


def test_plugin_as_a_whole_is_small() -> None:
    """Code, that is without comments, blank lines and declarations."""
    assert sum(_code_lines(path) for path in SOURCES if path.suffix == ".c") < MAX_CODE


def test_every_function_of_a_header_is_named_after_its_file() -> None:
    for path in SPANK.glob("*.h"):
        prototypes = re.findall(r"^(?!typedef)\w[\w *]*?\b\*?(\w+)\(", path.read_text(), flags=re.MULTILINE)
        assert prototypes, path.name
        assert all(name.startswith(f"pvc_{path.stem}_") for name in prototypes), (path.name, prototypes)


def test_sample_and_manual_tell_the_defaults() -> None:
    text = (SPANK / "config.c").read_text()
    defaults = dict(re.findall(r"^#define DEFAULT_(\w+) \"?([^\"\n]+)\"?$", text, flags=re.MULTILINE))
    keys = {"PVC": "pvc", "PVC_NODE": "pvc-node", "SOCKET": "socket", "STATE_DIR": "state_dir", "TIMEOUT_S": "timeout"}
    sample = (SPANK.parent / "conf" / "plugstack.conf").read_text()
    (line,) = [each for each in sample.splitlines() if each and not each.startswith("#")]
    required, plugin, *arguments = line.split()
    assert (required, Path(plugin).name) == ("required", "pvc.so")
    assert arguments == [f"{key}={defaults[name]}" for name, key in keys.items()]
    manual = (SPANK.parent / "man" / "pvc-spank.8.rst").read_text()
    for name, key in keys.items():
        assert re.search(rf"^{key}=\w+\n(?:    .*\n)*?.*Default: `*{re.escape(defaults[name])}\b", manual, re.MULTILINE)
