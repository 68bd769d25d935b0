# SPDX-License-Identifier: Apache-2.0
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


def list_tables() -> list[tuple[str, str]]:
    """(family, name) of all tables of the caller's namespace.

    :raise HostError: nft does not answer.
    """
    said = run.run(["nft", "-j", "list", "tables"])
    items = json.loads(said or "{}").get("nftables", [])
    return [(item["table"]["family"], item["table"]["name"]) for item in items if "table" in item]


def read_closed_chains(hook: str) -> list[str]:
    """The node's chains at a hook that drop what none of their rules accepts, as "family table chain".

    :raise HostError: nft does not answer.
    """
    said = run.run(["nft", "-j", "list", "chains"])
    chains = [item["chain"] for item in json.loads(said or "{}").get("nftables", []) if "chain" in item]
    return [
        f"{each['family']} {each['table']} {each['name']}"
        for each in chains
        if each.get("hook") == hook and each.get("policy") == "drop"
    ]


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
