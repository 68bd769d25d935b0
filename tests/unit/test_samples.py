# SPDX-License-Identifier: Apache-2.0
"""The samples in conf/ are valid, and say what the documentation says."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from pvc.config.load import load_config, load_root_config
from pvc.config.share import find_share
from pvc.config.yamlmarks import read_document
from pvc.plan.names import SWITCH
from pvc.plan.unmanaged import (
    NETWORKD,
    NETWORKMANAGER,
    leave_alone,
    left_by_networkmanager,
    parse_network_file,
    parse_unmanaged,
    patterns,
    samples,
    taken_by_networkd,
)

ROOT = Path(__file__).resolve().parents[2]
SITES = ["conf", "conf/testbed"]


@pytest.mark.parametrize("site", SITES)
def test_a_site_loads(site: str) -> None:
    config = load_config(ROOT / site, None)
    assert config.networks["nat"].reverse_nat
    assert [each.name for each in config.resource_sets.values() if each.default] == ["nat"]
    assert config.templates["debian"].image == "debian"
    assert [each.name for each in config.repositories] == ["site"]


@pytest.mark.parametrize("site", SITES)
def test_the_root_side_reads_no_more_than_it_needs(site: str) -> None:
    whole, root = load_config(ROOT / site, None), load_root_config(ROOT / site)
    assert (root.batch, root.networks, root.resource_sets) == (whole.batch, whole.networks, whole.resource_sets)
    assert root.templates == {}
    assert root.repositories == ()


def test_every_yaml_file_of_the_tree_is_yaml() -> None:
    for path in [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "templates").rglob("*.yaml")]:
        assert read_document(path).problems == []


def test_the_checkout_is_found() -> None:
    assert find_share() == ROOT


def test_network_managers_leave_the_samples_networks_alone() -> None:
    """Files for them know the prefixes of conf/networks.yaml, and are as doctor would write them."""
    prefixes = [each.dev_prefix for each in load_config(ROOT / "conf", None).ethernets.values()]
    keyfile = (ROOT / "conf/NetworkManager/pvc.conf").read_text()
    file = parse_network_file("05-pvc.network", (ROOT / "conf/networkd/05-pvc.network").read_text())
    everything = parse_network_file("50-all.network", "[Match]\nType=ether\n[Network]\nDHCP=yes\n")
    for name in (SWITCH, *samples(prefixes)):
        assert left_by_networkmanager(name, parse_unmanaged(keyfile)), name
        assert taken_by_networkd(name, [file, everything]) is None, name
    assert taken_by_networkd("eth0", [file, everything]) == "50-all.network"
    assert not left_by_networkmanager("eth0", parse_unmanaged(keyfile))
    wanted = patterns(prefixes)
    for manager, text in ((NETWORKMANAGER, keyfile), (NETWORKD, (ROOT / "conf/networkd/05-pvc.network").read_text())):
        written = leave_alone(manager, wanted).partition("printf '")[2].partition("'")[0].replace("\\n", "\n")
        kept = [line for line in text.splitlines() if not line.startswith("#")]
        assert [line.split("=")[0] for line in kept] == [line.split("=")[0] for line in written.splitlines()]
        assert all(each in text and each in written for each in wanted)


def test_what_is_not_python_gets_installed() -> None:
    """Every file of conf/ and templates/ matches a pattern of [options.data_files]."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    installed = set()
    for listed in setup["options.data_files"].values():
        for pattern in listed.split():
            installed |= set(ROOT.glob(pattern))
    present = {path for folder in ("conf", "templates") for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert present - installed == set()


def test_debian_packages_are_listed_once() -> None:
    lines = (ROOT / "conf/debian-packages.txt").read_text().splitlines()
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    assert len(names) == len(set(names))
