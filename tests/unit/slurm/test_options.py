# SPDX-License-Identifier: Apache-2.0
"""Whose option a word is, and where the definition begins."""

from __future__ import annotations

import pytest

from pvc.errors import UsageError
from pvc.slurm.options import KNOWN, Takes, drop_options, find_slurm_option, parse_help, split_words

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


@pytest.mark.parametrize(
    ("line", "slurm", "definition"),
    [
        ("--export NONE web", "--export NONE", "web"),
        ("--kill-on-invalid-dep yes web", "--kill-on-invalid-dep yes", "web"),
        ("--wrap x web", "--wrap x", "web"),
        ("--part debug web", "--partition debug", "web"),
        ("--part=debug web", "--partition=debug", "web"),
        ("--exclud web", "--exclude web", None),
        ("--exclus web", "--exclusive", "web"),
        ("--nice web", "--nice", "web"),
        ("--kill-com web", "--kill-command", "web"),
        ("--immed=5 web", "--immediate=5", "web"),
        ("--ntasks-per-n 2 web", "--ntasks-per-node 2", "web"),
        ("--site-option a web", "--site-option a", "web"),
        ("--site-o a web", "--site-option a", "web"),
        ("--site-flag web", "--site-flag", "web"),
        ("--unheard-of x=y web", "--unheard-of x=y", "web"),
        ("--unheard-of web", "--unheard-of", "web"),
    ],
)
def test_options_of_every_kind(line: str, slurm: str, definition: str | None) -> None:
    installed = {"site-option": Takes.VALUE, "site-flag": Takes.NOTHING}
    words = split_words(line.split(), OWN, lambda: installed)
    assert (words.slurm, words.definition) == (tuple(slurm.split()), definition)


def test_pvcs_own_options_may_be_cut_short_as_well() -> None:
    assert split_words(["--imag", "x", "web"], OWN).own == ("--image", "x")


@pytest.mark.parametrize("word", ["--node", "--mem-per", "--n", "--ex"])
def test_what_is_cut_too_short_is_told(word: str) -> None:
    with pytest.raises(UsageError, match=f"{word} may be --"):
        split_words([word, "3", "web"], OWN)


def test_the_installed_program_is_asked_for_what_is_not_known_and_only_once() -> None:
    asked: list[int] = []

    def ask() -> dict[str, Takes]:
        asked.append(1)
        return {}

    split_words(["--partition", "x", "--exclusive", "-w", "n1", "web"], OWN, ask)
    assert asked == []
    split_words(["--unheard-of", "--part", "x", "web"], OWN, ask)
    assert asked == [1]


# Lines of salloc 22.05, one of each form.
HELP = """Usage: salloc [OPTIONS(0)...] [ : [OPTIONS(N)]] [command(0) [args(0)...]]
  -A, --account=name          charge job to specified account
      --bb=<spec>             burst buffer specifications
      --bell                  ring the terminal bell when the job is allocated
      --cpu-freq=min[-max[:gov]] requested cpu frequency (and governor)
      --nice[=value]          decrease scheduling priority by value
      --switches=max-switches{@max-time-to-wait}
                              Optimum switches and max time to wait for optimum
  -B  --extra-node-info=S[:C[:T]]  combine request of sockets per node,
      --hint=                 Bind tasks according to application hints
                              (see "--hint=help" for options)
      --pvc=DEFINITION        [pvc] prepare the job's nodes for virtual
"""


def test_help_of_the_installed_program() -> None:
    value, optional, nothing = Takes.VALUE, Takes.OPTIONAL, Takes.NOTHING
    assert parse_help(HELP) == {
        "account": value,
        "bb": value,
        "bell": nothing,
        "cpu-freq": value,
        "nice": optional,
        "switches": value,
        "extra-node-info": value,
        "hint": value,
        "pvc": value,
    }
    assert all(KNOWN[name] is takes for name, takes in parse_help(HELP).items() if name != "pvc")


def test_dropping_options() -> None:
    words = ("--mem", "4G", "-n4", "--time=1", "-n", "7", "--mem-per-cpu=1G", "-p", "x")
    kept, gone = drop_options(words, ("--mem", "-n", "--mem-per-cpu"))
    assert kept == ("--time=1", "-p", "x")
    assert gone == ("--mem", "4G", "-n4", "-n", "7", "--mem-per-cpu=1G")
