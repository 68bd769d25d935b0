# SPDX-License-Identifier: Apache-2.0
"""``pvc completion``."""

from __future__ import annotations

import click

from pvc.cli import output

SHELLS = ("bash", "zsh", "fish")


@click.command(epilog="Example: pvc completion bash > ~/.local/share/bash-completion/completions/pvc")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what lets SHELL complete the words of pvc.

    It knows commands and options, your clusters and their VMs, templates, images, repositories and resource sets.
    """
    from pvc.config.share import find_share
    from pvc.errors import HostError

    try:
        text = (find_share() / "conf" / "completion" / f"pvc.{shell}").read_text(encoding="utf-8")
    except OSError as err:
        raise HostError("the completions are missing from this installation of pvc") from err
    output.pass_on(text.encode())
