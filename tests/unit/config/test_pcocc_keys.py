# SPDX-License-Identifier: Apache-2.0
"""Keys as sites have them from pcocc: values that are left out, keys without effect, long prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvc.model.network import BridgedNetwork, EthernetNetwork
from pvc.model.site import SiteConfig
from tests.unit.config.sites import SITE_SET, ethernet, load_site, problems_of, write_site
from tests.unit.config.test_load import bridged

PARENT = """
parent:
  image: '%{user}-image'
  nic-model: e1000
  qemu-bin: /opt/qemu
  mount-points: {home: /home}
  custom-args: [-cdrom, /iso]
  user-data: {packages: [vim]}
  disk-cache: writeback
  machine-type: pc
  instance-id: i-1
  kernel: boot/vmlinuz
  memory: 2G
  remote-display: spice
"""
UNSET = """
heir:
  inherits: parent
  image:
  nic-model:
  qemu-bin:
  mount-points:
  custom-args:
  user-data:
  disk-cache:
  machine-type:
  instance-id:
  kernel:
  memory:
  remote-display:
  resource-set:
grandchild:
  inherits: heir
  nic-model: e1000e
"""


def warnings_of(found: SiteConfig) -> list[str]:
    return [f"{Path(each.file).name}:{each.line}: {each.key}: {each.text}" for each in found.warnings]


def test_a_key_without_a_value_is_the_default_whatever_is_inherited(tmp_path: Path) -> None:
    templates = load_site(write_site(tmp_path, templates=PARENT + UNSET + "plain: {}\n")).templates
    parent, heir, grandchild, plain = (templates[name] for name in ("parent", "heir", "grandchild", "plain"))
    assert (parent.image, parent.instance_id, parent.kernel) == ("anne-image", "i-1", str(tmp_path / "boot/vmlinuz"))
    values = [{each.key: each.value for each in one.origins} for one in (heir, plain)]
    assert [each | {"inherits": None} for each in values] == [values[1], values[1]]
    assert heir.mount_points == ()
    assert (grandchild.nic_model, grandchild.machine_type, grandchild.memory) == ("e1000e", "q35", None)
    # Where it is from is told as of any other key.
    origin = next(each for each in grandchild.origins if each.key == "machine-type")
    assert (Path(origin.source).name, origin.template) == ("templates.yaml:25", "heir")


def test_a_wrong_value_of_an_ancestor_is_told_beside_a_key_without_one(tmp_path: Path) -> None:
    text = "a: {image: x, memory: much}\nb: {inherits: a, kernel: }\n"
    assert problems_of(write_site(tmp_path, templates=text)) == [
        "templates.yaml:1: a.memory: 'much' is not a size such as 512M or 4G"
    ]


def test_keys_without_values_everywhere(tmp_path: Path) -> None:
    site = write_site(
        tmp_path,
        batch="type:\nsettings:\n  etcd-servers: [e1]\n  etcd-ca-cert:\n  batch-args:\n",
        networks=ethernet(mtu="", reverse_nat="{vm-port: , min-host-port: 3000, max-host-port: 3100}", dns_server=""),
        templates="t: {persistent-drives: [{/d: {cache: , mmp: }}, {/e: }], mount-points: {a: {path: /a, type: }}}\n",
        repos="repos: [{name: site, path: /images}]\ncache:\n",
    )
    found = load_site(site)
    network = found.networks["nat"]
    assert isinstance(network, EthernetNetwork)
    assert (network.mtu, network.dns_servers, network.reverse_nat[0].first_vm_port) == (1500, (), 22)
    assert [each.cache for each in found.templates["t"].persistent_drives] == ["writeback", "writeback"]
    assert found.templates["t"].mount_points[0].type == "9p"
    assert found.warnings == ()


def test_a_required_key_needs_a_value(tmp_path: Path) -> None:
    site = write_site(tmp_path, networks="nat:\n  type: eth\n  settings:\n    dev-prefix:\n", resources=None)
    problems = problems_of(site)
    assert [each for each in problems if each.startswith("networks.yaml")] == [
        "networks.yaml:4: nat.settings.dev-prefix: is missing: 1 to 8 letters and digits"
    ]


def test_empty_values_of_a_cloud_config_stay(tmp_path: Path) -> None:
    found = load_site(write_site(tmp_path, templates="t: {user-data: {swap: , image: x}}\n"))
    assert found.templates["t"].user_data == "#cloud-config\nswap: null\nimage: x\n"


@pytest.mark.parametrize("networks", ["", "[]"])
def test_a_set_without_networks(tmp_path: Path, networks: str) -> None:
    found = load_site(write_site(tmp_path, resources=f"none:\n  networks: {networks}\n  default: yes\n"))
    assert found.resource_sets["none"].networks == ()
    assert found.templates["debian"].resource_set == "none"


def test_what_has_no_effect_is_told_and_no_more(tmp_path: Path) -> None:
    site = write_site(
        tmp_path,
        networks=ethernet(gateway="local-nat"),
        templates="a:\n  emulator-cores: 2\n  bind-vcpus: no\n  full-node: yes\nb:\n  emulator-cores:\n",
        repos="repos: []\ncache: {path: /tmp/c}\n",
    )
    said = warnings_of(load_site(site))
    assert [each.partition(": has no effect: ")[0] for each in said] == [
        "networks.yaml:5: nat.settings.gateway",
        "repos.yaml:2: cache",
        "templates.yaml:2: a.emulator-cores",
        "templates.yaml:3: a.bind-vcpus",
        "templates.yaml:4: a.full-node",
    ]
    assert all(each.partition(": has no effect: ")[2] for each in said)


@pytest.mark.parametrize(("prefix", "short"), [("ethtap", "ethp"), ("ethtap0", "eth0"), ("abcdefghijklmno", "abco")])
def test_a_long_prefix_stands_for_a_short_one(tmp_path: Path, prefix: str, short: str) -> None:
    found = load_site(write_site(tmp_path, networks=bridged(tap_prefix=prefix), resources=SITE_SET))
    network = found.networks["site"]
    assert isinstance(network, BridgedNetwork)
    assert network.tap_prefix == short
    (said,) = warnings_of(found)
    assert said.startswith(f"networks.yaml:5: site.settings.tap-prefix: devices are called {short}.")


def test_prefixes_that_are_short_for_the_same_are_refused(tmp_path: Path) -> None:
    text = bridged(tap_prefix="ethtap1") + bridged(tap_prefix="ethernet1").replace("site:", "other:")
    assert problems_of(write_site(tmp_path, networks=text, resources=SITE_SET)) == [
        "networks.yaml:10: other.settings.tap-prefix: 'eth1' is that of network 'site', too"
    ]
