"""nftables tables of pvc's own; no table of anybody else is touched (nft(8))."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pvc import run
from pvc.host import netns

Tables = Sequence[tuple[str, str]]


def load(namespace: str | None, tables: Tables, text: str) -> None:
    """Put whole tables (family, name) in place of those of these names, in one transaction.

    :raise CommandError: nft refuses the rules.
    """
    script = _delete(tables) + text
    netns.run_inside(namespace, lambda: run.run(["nft", "-f", "-"], stdin=script))


def remove(namespace: str | None, tables: Tables) -> None:
    """Delete tables, if they are there.

    :raise CommandError: nft refuses.
    """
    script = _delete(tables)
    netns.run_inside(namespace, lambda: run.run(["nft", "-f", "-"], stdin=script))


def _delete(tables: Tables) -> str:
    # Deleting what is absent is an error; making what is there is none.
    return "".join(f"table {family} {name} {{}}\ndelete table {family} {name}\n" for family, name in tables)


def read_rules(namespace: str | None) -> dict[tuple[str, str], int]:
    """(family, table) -> number of rules, of all tables of a namespace.

    :raise HostError: nft does not answer.
    """
    said = netns.run_inside(namespace, lambda: run.run(["nft", "-j", "list", "ruleset"]))
    found: dict[tuple[str, str], int] = {}
    for item in json.loads(said or "{}").get("nftables", []):
        if "table" in item:
            found.setdefault((item["table"]["family"], item["table"]["name"]), 0)
        elif "rule" in item:
            place = item["rule"]["family"], item["rule"]["table"]
            found[place] = found.get(place, 0) + 1
    return found
