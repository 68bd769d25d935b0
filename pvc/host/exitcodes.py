# SPDX-License-Identifier: Apache-2.0
"""What the exit codes of other programs mean, as their documentation has it.

A program that is not here means success by 0 and failure by all else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Outcome(Enum):
    """What became of what a program was asked to do."""

    DONE = "done"
    WARNED = "warned"  # done, with something to tell
    FAILED = "failed"


@dataclass(frozen=True)
class Codes:
    """Of one program: ``meanings`` of codes that are documented, ``warnings`` among them; ``source`` says where."""

    source: str
    meanings: Mapping[int, str] = field(default_factory=dict)
    warnings: frozenset[int] = frozenset()


EXIT_CODES: Mapping[str, Codes] = {
    "gzip": Codes(
        "gzip(1), DIAGNOSTICS",
        {1: "an error", 2: "a warning, such as of bytes behind the compressed ones"},
        frozenset({2}),
    ),
    "xz": Codes("xz(1), EXIT STATUS", {1: "an error", 2: "something worth a warning, and no error"}, frozenset({2})),
    # zstd(1) has no such section; programs/zstdcli.c returns 0 or 1, and its warnings change nothing.
    "zstd": Codes("zstdcli.c", {1: "an error"}),
    # 1 is for what changed while an archive was written or compared; of an extraction it is a program's that tar ran.
    "tar": Codes("tar(1), RETURN VALUE", {1: "some files differ", 2: "a fatal error"}),
    "qemu-img check": Codes(
        "qemu-img(1), check",
        {
            1: "it could not look",
            2: "the image is damaged",
            3: "clusters leak, which does no harm",
            63: "there is nothing to check in this format",
        },
        frozenset({3, 63}),
    ),
    # All others of its commands that pvc has use for.
    "qemu-img": Codes("qemu-img.c", {1: "an error"}),
    "skopeo": Codes("skopeo, cmd/skopeo/main.go", {1: "an error", 2: "there is no such image (1.15 and later)"}),
    # mmdebstrap(1) has no such section: it ends by Perl's die and Pod::Usage.
    "mmdebstrap": Codes("mmdebstrap, Pod::Usage", {1: "an error", 2: "options that it does not know"}),
    "mke2fs": Codes("mke2fs.c", {1: "an error"}),
    # All others are those of the command that ran there.
    "ssh": Codes("ssh(1), EXIT STATUS", {255: "an error of ssh's own"}),
    "cloud-init": Codes(
        "cloud-init's reference, CLI commands",
        {1: "an error that it does not get over", 2: "errors that it got over (23.4 and later)"},
        frozenset({2}),
    ),
}


def judge(program: str, code: int) -> Outcome:
    """What a code of a program means; ``program``: a key of the table, or any other."""
    if code == 0:
        return Outcome.DONE
    found = EXIT_CODES.get(program)
    return Outcome.WARNED if found is not None and code in found.warnings else Outcome.FAILED


def explain(program: str, code: int) -> str:
    """A failure's code in words, for programs that say nothing themselves."""
    if code < 0:
        import signal

        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    found = EXIT_CODES.get(program)
    meaning = found.meanings.get(code) if found is not None else None
    return f"exit code {code}{f', {meaning}' if meaning else ''}"
