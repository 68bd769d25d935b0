# SPDX-License-Identifier: Apache-2.0
"""Networks of PCI devices in networks.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc.model.network import PciNetwork
from tests.unit.config.sites import SITE_SET, load_site, problems_of, write_site


def pci(**settings: object) -> str:
    """networks.yaml with the network ``site`` of PCI devices; settings begin at line 4."""
    given = {"host_device_addrs": "['0000:3b:00.0', 5E:00.1]", "host_driver": "nouveau", **settings}
    lines = ["site:", "  type: genericpci", "  settings:"]
    lines += [f"    {key.replace('_', '-')}: {value}" for key, value in given.items() if value is not None]
    return "\n".join(lines) + "\n"


def test_networks_of_pci_devices(tmp_path: Path) -> None:
    network = load_site(write_site(tmp_path, networks=pci(), resources=SITE_SET)).networks["site"]
    assert network == PciNetwork("site", ("0000:3b:00.0", "0000:5e:00.1"), "nouveau")
    for gres in ("gpu", "gpu:a100"):
        network = load_site(write_site(tmp_path, networks=pci(gres=gres), resources=SITE_SET)).networks["site"]
        assert network == PciNetwork("site", ("0000:3b:00.0", "0000:5e:00.1"), "nouveau", gres)


def test_a_device_that_slurm_gives_is_in_no_other_network(tmp_path: Path) -> None:
    def networks(*gres: str | None) -> str:
        texts = [pci(gres=each).replace("site:", f"net{at}:", 1) for at, each in enumerate(gres)]
        return pci().replace("3b", "41").replace("5E", "42") + "".join(texts)

    load_site(write_site(tmp_path, networks=networks("gpu:a100", "gpu:h100", "gpu"), resources=SITE_SET))
    found = problems_of(write_site(tmp_path, networks=networks("gpu", None), resources=SITE_SET))
    assert [text.partition(": ")[2] for text in found] == [
        f"net1.settings.host-device-addrs[{at}]: {each} is in network 'net0', too, with another gres or none"
        for at, each in enumerate(("0000:3b:00.0", "0000:5e:00.1"))
    ]
    assert len(problems_of(write_site(tmp_path, networks=networks("gpu", "nic"), resources=SITE_SET))) == 2


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"host_device_addrs": "[]"}, "4: site.settings.host-device-addrs: "),
        ({"host_device_addrs": "[3b:00]"}, "4: site.settings.host-device-addrs[0]: '3b:00' is not a PCI address"),
        (
            {"host_device_addrs": "['3b:00.0', '0000:3B:00.0']"},
            "4: site.settings.host-device-addrs[1]: 0000:3b:00.0 is there already",
        ),
        ({"host_driver": "../x"}, "5: site.settings.host-driver: '../x' is not the name of a kernel's driver"),
        ({"host_driver": None}, "3: site.settings.host-driver: is missing: the name of a kernel's driver"),
        ({"mtu": 1500}, "6: site.settings.mtu: "),
        ({"gres": "gpu:1:2"}, "6: site.settings.gres: 'gpu:1:2' is not a GRES as gpu or gpu:a100"),
    ],
)
def test_problems_of_networks_of_pci_devices(tmp_path: Path, settings: dict[str, object], problem: str) -> None:
    (found,) = problems_of(write_site(tmp_path, networks=pci(**settings), resources=SITE_SET))
    assert found.startswith(f"networks.yaml:{problem}"), found
