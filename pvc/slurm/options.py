"""Telling pvc's own options, Slurm's options and the definition apart on one command line.

Slurm's options are passed on as they were written. To find where the definition begins, it must be known
which of them are followed by a value; the tables are those of ``salloc --help`` and ``sbatch --help`` of
Slurm 22.05 to 24.05. A long option that is not in them (a plug-in's) takes its value as ``--option=value``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pvc.errors import UsageError
from pvc.model.request import parse_definition

_SHORT_VALUES = "AabBCdDeFgGiJLmMnNopqSTtwx"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LONG_VALUES = _words("""
    account acctg-freq array bb bbf begin chdir cluster-constraint clusters comment constraint container
    container-id core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution error exclude export-file extra extra-node-info gid gpu-bind gpu-freq gpus gpus-per-node
    gpus-per-socket gpus-per-task gres gres-flags hint input job-name licenses mail-type mail-user mcs-label mem
    mem-bind mem-per-cpu mem-per-gpu mincpus network nodefile nodelist nodes ntasks ntasks-per-core
    ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output partition power prefer priority profile qos
    reservation signal sockets-per-node switches thread-spec threads-per-core time time-min tmp tres-bind
    tres-per-task uid wait-all-nodes wckey
""")
_LONG_FLAGS = _words("""
    bell contiguous exclusive export get-user-env hold ignore-pbs immediate kill-command nice no-bell no-kill
    no-requeue no-shell overcommit oversubscribe parsable propagate quiet reboot requeue resv-ports spread-job
    stepmgr test-only usage use-min-nodes verbose version wait
""")


@dataclass(frozen=True)
class Words:
    """A command line, sorted: pvc's options, Slurm's options, the definition (None: none) and the rest."""

    own: tuple[str, ...]
    slurm: tuple[str, ...]
    definition: str | None
    rest: tuple[str, ...]


def split_words(words: Sequence[str], own: Mapping[str, bool]) -> Words:
    """Sort the words of a command line; ``own`` maps pvc's options ("-c", "--image") to "is followed by a value".

    The definition is the first word that is neither an option nor the value of one, or the first after
    ``--``. What follows it is left alone.

    :raise UsageError: that word is no definition.
    """
    mine: list[str] = []
    slurm: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if word == "--":
            return _finish(mine, slurm, words[index:])
        if not word.startswith("-") or word == "-":
            if _is_guessed_value(word, words[index - 2] if index > 1 else "", slurm):
                slurm.append(word)
                continue
            return _finish(mine, slurm, words[index - 1 :])
        target, takes_next = _classify(word, own, mine, slurm)
        target.append(word)
        if takes_next and index < len(words):
            target.append(words[index])
            index += 1
    return Words(tuple(mine), tuple(slurm), None, ())


def _classify(word: str, own: Mapping[str, bool], mine: list[str], slurm: list[str]) -> tuple[list[str], bool]:
    """Whose option ``word`` is, and whether the next word is its value."""
    if word.startswith("--"):
        name, equals, _ = word.partition("=")
        if name in own:
            return mine, own[name] and not equals
        return slurm, not equals and name[2:] in _LONG_VALUES
    if word[:2] in own:
        return mine, own[word[:2]] and len(word) == 2
    for position, letter in enumerate(word[1:], start=1):
        if letter in _SHORT_VALUES:
            return slurm, position == len(word) - 1
    return slurm, False


def _is_guessed_value(word: str, before: str, slurm: list[str]) -> bool:
    """Whether ``word`` belongs to the unknown option ``before``: only when it cannot be a definition."""
    unknown = before.startswith("--") and "=" not in before and before[2:] not in _LONG_FLAGS
    if not unknown or not slurm or slurm[-1] != before:
        return False
    try:
        parse_definition(word)
    except ValueError:
        return True
    return False


def _finish(mine: list[str], slurm: list[str], left: Sequence[str]) -> Words:
    if not left:
        return Words(tuple(mine), tuple(slurm), None, ())
    try:
        parse_definition(left[0])
    except ValueError as err:
        hint = f"write Slurm's options as --option=value when {left[0]!r} is the value of one" if slurm else None
        raise UsageError(str(err), hint=hint) from err
    return Words(tuple(mine), tuple(slurm), left[0], tuple(left[1:]))


def find_slurm_option(slurm: Sequence[str], long: str, short: str = "") -> bool:
    """Whether Slurm's words have this option ("--ntasks", "-n"), in whatever form."""
    return any(
        word == long or word.startswith(f"{long}=") or (short and not word.startswith("--") and word.startswith(short))
        for word in slurm
    )
