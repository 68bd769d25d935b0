"""The samples in conf/ are valid, and say what the documentation says."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from pvc.config.load import load_config, load_root_config
from pvc.config.share import find_share
from pvc.config.yamlmarks import read_document

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


def test_what_is_not_python_gets_installed() -> None:
    """Every file of conf/ and templates/ matches a pattern of [options.data_files]."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    installed = set()
    for patterns in setup["options.data_files"].values():
        for pattern in patterns.split():
            installed |= set(ROOT.glob(pattern))
    present = {path for folder in ("conf", "templates") for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert present - installed == set()


def test_debian_packages_are_listed_once() -> None:
    lines = (ROOT / "conf/debian-packages.txt").read_text().splitlines()
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    assert len(names) == len(set(names))
