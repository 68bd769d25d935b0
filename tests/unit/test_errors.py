# SPDX-License-Identifier: Apache-2.0
"""Errors say what failed and why, once."""

from __future__ import annotations

import itertools

import pytest

from pvc import errors
from pvc.errors import (
    CommandError,
    ConfigError,
    EndedError,
    GuestError,
    GuestTimeoutError,
    HostError,
    JobError,
    JobTimeoutError,
    Problem,
    PvcError,
    StateError,
    SuspendedError,
    UsageError,
)


def raised(*chain: BaseException) -> BaseException:
    """The first error, caused by the second, caused by the third, …"""
    for outer, inner in itertools.pairwise(chain):
        outer.__cause__ = inner
    return chain[0]


def test_text_is_the_chain_of_causes() -> None:
    error = raised(
        GuestError("cannot start vm3"), HostError("cannot make its overlay"), OSError(28, "No space left", "/x")
    )
    assert str(error) == "cannot start vm3: cannot make its overlay: No space left (/x)"


def test_a_cause_that_says_the_same_is_not_repeated() -> None:
    assert str(raised(HostError("cannot read f: denied"), ValueError("denied"))) == "cannot read f: denied"


def test_causes_without_text_show_their_type() -> None:
    assert str(raised(HostError("a"), TimeoutError())) == "a: TimeoutError"


def test_the_nearest_hint_is_found() -> None:
    assert HostError("a").find_hint() is None
    assert PvcError("a", hint="do this").find_hint() == "do this"
    outer = raised(HostError("a"), ValueError("b"), StateError("c", hint="start etcd"))
    assert isinstance(outer, PvcError)
    assert outer.find_hint() == "start etcd"


@pytest.mark.parametrize(
    ("kind", "code"),
    [(PvcError, 1), (UsageError, 2), (JobError, 4), (StateError, 5), (HostError, 6), (GuestError, 7)],
)
def test_exit_codes(kind: type[PvcError], code: int) -> None:
    assert kind("x").exit_code == code


def test_every_class_has_an_exit_code_of_its_own_branch() -> None:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, PvcError)]
    direct = [kind.exit_code for kind in kinds if kind.__base__ is PvcError]
    assert len(set(direct)) == len(direct)


def test_config_error_lists_problems_in_order() -> None:
    error = ConfigError([Problem("b", 3, "k", "bad"), Problem("a", 0, "", "gone"), Problem("b", 1, "", "odd")])
    assert str(error) == "a: gone\nb:1: odd\nb:3: k: bad"
    assert error.exit_code == 3


def test_command_error_can_be_run_again_by_hand() -> None:
    error = CommandError(["ip", "link", "add", "a b"], 2, "first\nRTNETLINK answers: File exists\n")
    assert str(error) == "ip link add 'a b' ended with 2: RTNETLINK answers: File exists"
    assert str(CommandError(["x"], 1, "")) == "x ended with 1: no message"
    assert error.exit_code == 6


def test_of_thousands_of_problems_the_first_are_told() -> None:
    error = ConfigError([Problem("a", line, "", "odd") for line in range(1, 29_001)])
    lines = str(error).splitlines()
    assert (len(lines), lines[-1]) == (41, "and 28960 more problems")
    assert len(error.problems) == 29_000


def test_times_that_ran_out_are_pythons_too() -> None:
    late = GuestTimeoutError("late", hint="wait", gathered={"vm0": "boots"})
    assert isinstance(late, TimeoutError)
    assert (str(late), late.find_hint(), late.gathered, late.exit_code) == ("late", "wait", {"vm0": "boots"}, 7)
    job = JobTimeoutError("late", hint="wait")
    assert isinstance(job, TimeoutError)
    assert (str(job), job.find_hint(), job.exit_code) == ("late", "wait", 4)
    assert EndedError("x").exit_code == SuspendedError("x").exit_code == 4
