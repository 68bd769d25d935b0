# SPDX-License-Identifier: Apache-2.0
"""Which devices network managers leave alone, by their own files."""

from __future__ import annotations

import pytest

from pvc.plan.unmanaged import (
    left_by_networkmanager,
    parse_network_file,
    parse_unmanaged,
    patterns,
    samples,
    taken_by_networkd,
)

PRINTED = """# NetworkManager configuration: /etc/NetworkManager/NetworkManager.conf (etc: pvc.conf)

[main]
# rc-manager=
plugins=keyfile

[keyfile]
unmanaged-devices=interface-name:nat*;interface-name:pvc-*,mac:02:00:00:00:00:01,except:interface-name:nat9
"""


@pytest.mark.parametrize(
    ("name", "left"), [("nat1", True), ("nat.a.0", True), ("pvc-ovs", True), ("eth0", False), ("nat9", False)]
)
def test_networkmanager(name: str, left: bool) -> None:
    assert left_by_networkmanager(name, parse_unmanaged(PRINTED)) is left


def test_a_name_is_no_pattern_where_it_says_so() -> None:
    assert left_by_networkmanager("nat1", ["interface-name:=nat1"])
    assert not left_by_networkmanager("nat1", ["interface-name:=nat*"])
    assert left_by_networkmanager("nat1", ["*"])
    assert parse_unmanaged("[main]\nunmanaged-devices=*\n") == ()


@pytest.mark.parametrize(
    ("match", "taken"),
    [
        ("Name=eth0 en*", False),
        ("Name=*", True),
        ("Name=!eth0 lo", True),
        ("Name=!nat* lo", False),
        ("Type=ether", True),
        ("Type=wlan", False),
        ("Type=ether\nMACAddress=02:00:00:00:00:01", False),
        ("Driver=virtio_net", False),
        ("Kind=veth", True),
        ("Virtualization=vm\nName=n*", True),
        ("# nothing\nHost=n1", False),
    ],
)
def test_networkd(match: str, taken: bool) -> None:
    file = parse_network_file("50.network", f"[Match]\n{match}\n\n[Network]\nDHCP=yes\n")
    assert (taken_by_networkd("nat1", [file]) == "50.network") is taken


def test_the_first_file_that_fits_counts() -> None:
    everything = parse_network_file("50-all.network", "[Match]\nName=*\n[Network]\nDHCP=yes\n")
    ours = parse_network_file("05-pvc.network", "[Match]\nName=pvc-ovs nat*\n\n[Link]\nUnmanaged=yes\n")
    assert taken_by_networkd("nat1", [ours, everything]) is None
    assert taken_by_networkd("nat1", [everything, ours]) == "50-all.network"
    assert taken_by_networkd("lab1", [ours, everything]) == "50-all.network"


def test_names_of_clusters_devices() -> None:
    assert patterns(["nat", "lab", "nat"]) == ("pvc-ovs", "lab*", "nat*")
    assert samples(["nat"]) == ("nat1", "nat.1.0")
