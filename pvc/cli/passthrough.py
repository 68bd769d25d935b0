# SPDX-License-Identifier: Apache-2.0
"""Commands whose unknown options belong to another program."""

from __future__ import annotations

import click

from pvc.slurm.installed import read_installed
from pvc.slurm.options import split_words

_KEY = "pvc.slurm_words"


class SlurmCommand(click.Command):
    """A command with options of its own, any option of Slurm's, a definition, and words that are left alone."""

    program = "salloc"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put Slurm's words aside and parse the rest as usual."""
        own = {
            name: not (param.is_flag or param.count)
            for param in self.get_params(ctx)
            if isinstance(param, click.Option)
            for name in (*param.opts, *param.secondary_opts)
        }
        words = split_words(args, own, lambda: read_installed(self.program))
        ctx.meta[_KEY] = words.slurm
        tail = [] if words.definition is None else [words.definition, *words.rest]
        return super().parse_args(ctx, [*words.own, "--", *tail])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Say in the usage line where Slurm's options go."""
        first, *rest = super().collect_usage_pieces(ctx)
        return [first, "[SLURM OPTIONS]", *rest]


class BatchCommand(SlurmCommand):
    """The same with options of sbatch."""

    program = "sbatch"


def slurm_words(ctx: click.Context) -> tuple[str, ...]:
    """The words that ``SlurmCommand`` put aside."""
    words: tuple[str, ...] = ctx.meta.get(_KEY, ())
    return words
