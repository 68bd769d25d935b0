# SPDX-License-Identifier: Apache-2.0
"""``pvc network`` where no Slurm answers: the site's networks alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvc.cli import main
from pvc.config import load
from tests.unit.config.sites import write_site

pytestmark = pytest.mark.allow_run
NETWORKS = """
nat:
  type: ethernet
  settings:
    dev-prefix: nat
    int-network6: fd00:c8::/64
    bandwidth: 100
    reverse-nat: [{min-host-port: 4000, max-host-port: 4999}, {vm-port: 53, protocol: udp, access: owner,
      min-host-port: 3000, max-host-port: 3999}]
lan: {type: ethernet, settings: {dev-prefix: lan, network-layer: L2, data-path: ovs, vxlan-port: 4790}}
storage: {type: bridged, settings: {host-bridge: br0, tap-prefix: st, vlans: [{vid: 20, type: native}]}}
gpu: {type: genericpci, settings: {host-device-addrs: ["3b:00.0"], host-driver: nouveau}}
"""


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # PVC_CONF_DIR means nothing to root, who runs these tests, too.
    monkeypatch.setattr(load, "SITE_DIR", write_site(tmp_path / "site", networks=NETWORKS))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))


def test_every_kind_of_network_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["network", "list"]) == 0
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert list(rows) == ["NETWORK", "nat", "lan", "storage", "gpu"]
    assert "10.200.0.0/16,fd00:c8::/64" in rows["nat"]
    assert "22 at 4000-4999; 53/udp at 3000-3999 (owner)" in rows["nat"]
    assert "100Mbit/s" in rows["nat"]
    assert rows["lan"].split()[1:4] == ["ethernet", "L2", "ovs"]
    assert "br0 20 native" in rows["storage"]
    assert rows["gpu"].split()[1] == "genericpci"
    assert "running clusters are not shown" in err


def test_json_has_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["network", "list", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert (found["nat"]["type"], found["nat"]["int_network"]) == ("ethernet", "10.200.0.0/16")
    assert found["storage"]["vlans"] == [{"vid": 20, "tagging": "native"}]
    assert found["gpu"]["host_devices"] == ["0000:3b:00.0"]
    assert all(each["clusters"] == [] for each in found.values())


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("nat", ["layer          L3", "mtu            1500 (VMs: 1450)", "limit          100Mbit/s"]),
        ("lan", ["addresses      the VMs' own", "data-path      ovs"]),
        ("storage", ["host-bridge    br0", "vlans          20 native"]),
        ("gpu", ["devices        0000:3b:00.0", "host-driver    nouveau"]),
    ],
)
def test_a_network_is_shown(name: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["network", "show", name]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line not in shown] == []


def test_an_unknown_network_is_told_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["network", "show", "nope"]) == 2
    assert "hint: networks: gpu, lan, nat, storage" in capsys.readouterr().err


def test_a_cluster_that_was_asked_for_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["network", "list", "-j", "12"]) == 4
    assert "job 12 has no running cluster" in capsys.readouterr().err
