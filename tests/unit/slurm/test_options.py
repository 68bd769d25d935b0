"""Whose option a word is, and where the definition begins."""

from __future__ import annotations

import pytest

from pvc.errors import UsageError
from pvc.slurm.options import find_slurm_option, split_words

OWN = {"-c": True, "--cpus": True, "-Q": False, "--image": True, "--wait": False}


@pytest.mark.parametrize(
    ("line", "own", "slurm", "definition", "rest"),
    [
        ("debian:4", "", "", "debian:4", ""),
        ("-c 2 debian", "-c 2", "", "debian", ""),
        ("-c2 -p fast debian:4 a -c 9", "-c2", "-p fast", "debian:4", "a -c 9"),
        ("-pfast --qos=high debian", "", "-pfast --qos=high", "debian", ""),
        ("--partition fast --exclusive debian", "", "--partition fast --exclusive", "debian", ""),
        ("--exclusive debian:2", "", "--exclusive", "debian:2", ""),
        ("-Q --image web=x -vv -t 10 web", "-Q --image web=x", "-vv -t 10", "web", ""),
        ("-vt 10 web", "", "-vt 10", "web", ""),
        ("--plug-in=a=b web", "", "--plug-in=a=b", "web", ""),
        ("--plug-in a=b web", "", "--plug-in a=b", "web", ""),
        ("--wait -- -c", "--wait", "", None, ""),
        ("-p fast -- web:2 -c 1", "", "-p fast", "web:2", "-c 1"),
        ("-p fast", "", "-p fast", None, ""),
        ("", "", "", None, ""),
    ],
)
def test_sorting(line: str, own: str, slurm: str, definition: str | None, rest: str) -> None:
    if line == "--wait -- -c":
        with pytest.raises(UsageError):
            split_words(line.split(), OWN)
        return
    words = split_words(line.split(), OWN)
    assert words.own == tuple(own.split())
    assert words.slurm == tuple(slurm.split())
    assert words.definition == definition
    assert words.rest == tuple(rest.split())


@pytest.mark.parametrize("text", ["debian:0", "debian:1000000", "debian:x", "a,,b", "../x", "debian:-1"])
def test_a_bad_definition_is_told(text: str) -> None:
    with pytest.raises(UsageError):
        split_words(["--exclusive", text], OWN)


def test_values_of_known_options_are_never_definitions() -> None:
    assert split_words(["--nodelist", "n1", "web"], OWN).definition == "web"
    assert split_words(["-w", "n1", "web"], OWN).definition == "web"


def test_finding_an_option() -> None:
    words = ["-n4", "--mem=2G", "-p", "x"]
    assert find_slurm_option(words, "--ntasks", "-n")
    assert find_slurm_option(words, "--mem")
    assert not find_slurm_option(words, "--mem-per-cpu")
    assert not find_slurm_option(words, "--nodes", "-N")
    assert not find_slurm_option(["--nodelist=x"], "--ntasks", "-n")
