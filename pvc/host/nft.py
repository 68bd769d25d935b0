"""nftables tables of pvc's own; no table of anybody else is touched (nft(8))."""

from __future__ import annotations

from pvc import run
from pvc.host import netns


def load(namespace: str | None, family: str, table: str, text: str) -> None:
    """Put a whole table in place of the one of that name, in one transaction.

    :raise CommandError: nft refuses the rules.
    """
    script = f"table {family} {table} {{}}\ndelete table {family} {table}\n{text}"
    netns.run_inside(namespace, lambda: run.run(["nft", "-f", "-"], stdin=script))


def remove(namespace: str | None, family: str, table: str) -> None:
    """Delete a table, if it is there.

    :raise CommandError: nft refuses.
    """
    script = f"table {family} {table} {{}}\ndelete table {family} {table}\n"
    netns.run_inside(namespace, lambda: run.run(["nft", "-f", "-"], stdin=script))
