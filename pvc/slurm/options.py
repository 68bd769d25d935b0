# SPDX-License-Identifier: Apache-2.0
"""Telling pvc's own options, Slurm's options and the definition apart on one command line.

Slurm's options are passed on as they were written, but for names that were cut short. To find where the definition
begins, it must be known which of them are followed by a value. The table is of salloc and sbatch 22.05 to 24.11; for a
long option that is not in it (a plug-in's, a later version's), the installed program is asked for its help.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from pvc.errors import UsageError
from pvc.model.request import parse_definition

_SHORT_VALUES = "AabBCdDeFgGiJLmMnNopqSTtwx"


class Takes(Enum):
    """What follows a long option; of one that may have a value, only ``--option=value`` does (getopt_long(3))."""

    VALUE = "value"
    OPTIONAL = "optional"
    NOTHING = "nothing"


Table = Mapping[str, Takes]

_TEXTS = {
    Takes.VALUE: """
        account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
        container-id core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
        distribution error exclude export export-file extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node
        gpus-per-socket gpus-per-task gres gres-flags hint input job-name kill-on-invalid-dep licenses mail-type
        mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks
        ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output partition power prefer
        priority profile qos reservation segment signal sockets-per-node switches thread-spec threads-per-core time
        time-min tmp tres-bind tres-per-task uid wait-all-nodes wckey wrap
    """,
    Takes.OPTIONAL: """
        exclusive get-user-env immediate kill-command nice no-kill oom-kill-step propagate x11
    """,
    Takes.NOTHING: """
        bell contiguous help hold ignore-pbs no-bell no-requeue no-shell overcommit oversubscribe parsable quiet reboot
        requeue resv-ports share spread-job stepmgr test-only usage use-min-nodes verbose version wait
    """,
}
KNOWN: Table = {name: takes for takes, text in _TEXTS.items() for name in text.split()}
# An option's letter is followed by a comma, or by nothing at all (-B of 22.05).
_HELP_LINE = re.compile(r"\s+(?:-\w,?\s+)?--([a-z][\w-]*)(\[=|=)?", re.ASCII)


def parse_help(text: str) -> Table:
    """The long options that ``salloc --help`` lists, those of plug-ins included."""
    found = {}
    for match in map(_HELP_LINE.match, text.splitlines()):
        if match is not None:
            found[match[1]] = {"[=": Takes.OPTIONAL, "=": Takes.VALUE}.get(match[2] or "", Takes.NOTHING)
    return found


@dataclass(frozen=True)
class Words:
    """A command line, sorted: pvc's options, Slurm's options, the definition (None: none) and the rest."""

    own: tuple[str, ...]
    slurm: tuple[str, ...]
    definition: str | None
    rest: tuple[str, ...]


def split_words(words: Sequence[str], own: Mapping[str, bool], read_installed: Callable[[], Table] = dict) -> Words:
    """Sort the words of a command line; ``own`` maps pvc's options ("-c", "--image") to "is followed by a value".

    The definition is the first word that is neither an option nor the value of one, or the first after
    ``--``. What follows it is left alone. ``read_installed`` is called at most once, for what is not known here.

    :raise UsageError: that word is no definition, or an option was cut too short.
    """
    return _Sorter(own, read_installed).sort(words)


def split_command(words: Sequence[str], read_installed: Callable[[], Table] = dict) -> Words:
    """The same for a command line of Slurm's own programs: ``rest`` is the command or script with its words.

    :raise UsageError: an option was cut too short.
    """
    return _CommandSorter({}, read_installed).sort(words)


class _Sorter:
    def __init__(self, own: Mapping[str, bool], read_installed: Callable[[], Table]) -> None:
        self._own = own
        self._read_installed = read_installed
        self._installed: Table | None = None
        self._mine: list[str] = []
        self._slurm: list[str] = []

    def sort(self, words: Sequence[str]) -> Words:
        index = 0
        unknown = False
        while index < len(words):
            word = words[index]
            index += 1
            if word == "--":
                return self._finish(words[index:])
            if not word.startswith("-") or word == "-":
                if unknown and not _is_definition(word):
                    self._slurm.append(word)
                    unknown = False
                    continue
                return self._finish(words[index - 1 :])
            takes_next, unknown = self._take(word)
            if takes_next and index < len(words):
                (self._mine if takes_next == "own" else self._slurm).append(words[index])
                index += 1
        return Words(tuple(self._mine), tuple(self._slurm), None, ())

    def _take(self, word: str) -> tuple[str, bool]:
        """Put an option where it belongs: whose value the next word is ("own", "slurm", "": nobody's), and whether
        nobody knows the option.
        """
        if not word.startswith("--"):
            return self._take_short(word), False
        name, equals, value = word[2:].partition("=")
        found = self._find(name)
        full = f"--{found or name}{equals}{value}"
        if f"--{found}" in self._own:
            self._mine.append(full)
            return "own" if self._own[f"--{found}"] and not equals else "", False
        self._slurm.append(full)
        if found is None:
            return "", not equals
        takes = KNOWN.get(found) or self._ask()[found]
        return "slurm" if takes is Takes.VALUE and not equals else "", False

    def _take_short(self, word: str) -> str:
        if word[:2] in self._own:
            self._mine.append(word)
            return "own" if self._own[word[:2]] and len(word) == 2 else ""
        self._slurm.append(word)
        for position, letter in enumerate(word[1:], start=1):
            if letter in _SHORT_VALUES:
                return "slurm" if position == len(word) - 1 else ""
        return ""

    def _find(self, name: str) -> str | None:
        """The option that a name means, which may be cut short; None: nobody's."""
        if f"--{name}" in self._own or name in KNOWN:
            return name
        installed = self._ask()
        if name in installed:
            return name
        mine = {option[2:] for option in self._own if option.startswith("--")}
        near = sorted(each for each in {*mine, *KNOWN, *installed} if each.startswith(name))
        if len(near) > 1:
            raise UsageError(f"--{name} may be {', '.join(f'--{each}' for each in near)}", hint="write it in full")
        return near[0] if near and name else None

    def _ask(self) -> Table:
        if self._installed is None:
            self._installed = self._read_installed()
        return self._installed

    def _finish(self, left: Sequence[str]) -> Words:
        if not left:
            return Words(tuple(self._mine), tuple(self._slurm), None, ())
        try:
            parse_definition(left[0])
        except ValueError as err:
            advice = f"write Slurm's options as --option=value when {left[0]!r} is the value of one"
            raise UsageError(str(err), hint=advice if self._slurm else None) from err
        return Words(tuple(self._mine), tuple(self._slurm), left[0], tuple(left[1:]))


class _CommandSorter(_Sorter):
    def _finish(self, left: Sequence[str]) -> Words:
        return Words((), tuple(self._slurm), None, tuple(left))


def _is_definition(word: str) -> bool:
    try:
        parse_definition(word)
    except ValueError:
        return False
    return True


def find_slurm_option(slurm: Sequence[str], long: str, short: str = "") -> bool:
    """Whether Slurm's words have this option ("--ntasks", "-n"), in whatever form."""
    return any(
        word == long or word.startswith(f"{long}=") or (short and not word.startswith("--") and word.startswith(short))
        for word in slurm
    )


def find_values(slurm: Sequence[str], long: str, short: str = "") -> list[str]:
    """The values that Slurm's words, as ``split_words`` sorts them, give an option; "" where there is none."""
    takes_next = KNOWN.get(long[2:]) is Takes.VALUE
    found = []
    for index, word in enumerate(slurm):
        after = slurm[index + 1] if takes_next and index + 1 < len(slurm) else ""
        if word == long or (short and word == short):
            found.append(after)
        elif word.startswith(f"{long}="):
            found.append(word.partition("=")[2])
        elif short and word.startswith(short) and not word.startswith("--"):
            found.append(word[2:].removeprefix("="))
    return found


def drop_options(slurm: Sequence[str], names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Slurm's words as ``split_words`` sorts them without these options ("--mem", "-n") and their values; and these."""
    kept: list[str] = []
    gone: list[str] = []
    value_of: list[str] | None = None
    for word in slurm:
        if value_of is not None and not word.startswith("-"):
            value_of.append(word)
            value_of = None
            continue
        key = word.partition("=")[0] if word.startswith("--") else word[:2]
        target = gone if key in names else kept
        target.append(word)
        value_of = target
    return tuple(kept), tuple(gone)
