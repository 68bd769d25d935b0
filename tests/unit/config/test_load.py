# SPDX-License-Identifier: Apache-2.0
"""From files to a checked configuration, or to all problems at once."""

from __future__ import annotations

import os
import tempfile
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvc.config import load
from pvc.config.load import load_config, load_repositories, load_root_config
from pvc.errors import ConfigError
from pvc.model.network import (
    Access,
    BridgedNetwork,
    DataPath,
    Layer,
    Outbound,
    Outbound6,
    Protocol,
    ReverseNat,
    Tagging,
    Vlan,
)
from pvc.model.site import Repository
from pvc.model.vm import Accel
from tests.unit.config.sites import SITE_SET, ethernet, load_site, problems_of, write_site


def test_the_nodes_copies_of_images(tmp_path: Path) -> None:
    batch = load_site(write_site(tmp_path)).batch
    assert (batch.image_cache_dir, batch.image_cache_size) == (None, 20 << 30)
    text = "settings:\n  etcd-servers: [e1]\n  image-cache-dir: /var/cache/i\n  image-cache-size: 1.5T\n"
    batch = load_site(write_site(tmp_path, batch=text)).batch
    assert (batch.image_cache_dir, batch.image_cache_size) == ("/var/cache/i", 3 << 39)
    assert problems_of(write_site(tmp_path, batch=text.replace("/var", "var").replace("1.5T", "much"))) == [
        "batch.yaml:3: settings.image-cache-dir: 'var/cache/i' is not an absolute path",
        "batch.yaml:4: settings.image-cache-size: 'much' is not a size such as 512M or 4G",
    ]


def test_defaults(tmp_path: Path) -> None:
    config = load_site(write_site(tmp_path))
    assert config.batch.etcd.servers == ("e1",)
    assert (config.batch.etcd.port, config.batch.etcd.protocol, config.batch.etcd.user) == (2379, "http", "root")
    assert config.batch.etcd.password_file == f"{tmp_path}/etcd-password"
    assert (config.batch.accel, config.batch.run_dir, config.batch.batch_args) == (Accel.AUTO, "/var/tmp/pvc", ())
    network = config.networks["nat"]
    assert (network.layer, network.data_path, network.mtu) == (Layer.L3, DataPath.AUTO, 1500)
    assert network.int_network == IPv4Network("10.200.0.0/16")
    assert (network.min_vni, network.max_vni, network.vxlan_port) == (1024, 65535, 4789)
    assert (network.dns_servers, network.reverse_nat, network.allow_outbound) == ((), (), Outbound.ALL)
    assert config.templates["debian"].resource_set == "nat"
    assert config.templates["debian"].machine_type == "q35"
    assert config.templates["debian"].source == f"{tmp_path}/templates.yaml:1"


def test_every_key_of_a_network(tmp_path: Path) -> None:
    text = ethernet(
        network_layer="L3",
        data_path="kernel",
        int_network="10.1.0.0/24",
        ext_network="10.2.0.0/24",
        mtu=9000,
        mac_prefix="02:AB:00",
        domain_name="vms.example.org",
        dns_server="9.9.9.9",
        dns_search="[a.org, b.org]",
        ntp_server="10.0.0.1",
        allow_outbound="none",
        vxlan_port=8472,
        vni_range="5-9",
        reverse_nat="[{vm-port: 80, min-host-port: 3000, max-host-port: 3900}, "
        "{vm-port: 7-9, protocol: udp, access: owner, min-host-port: 4000, max-host-port: 4009}]",
        int_network6="fd00:1::/64",
        ipv6_outbound="routed",
        host_if_suffix="-ib0",
        bandwidth=100,
        allow_host="yes",
        manage_ip_forward="no",
        mac_start_offset=16,
    )
    network = load_site(write_site(tmp_path, networks=text)).networks["nat"]
    assert (network.data_path, network.mtu, network.mac_prefix) == (DataPath.KERNEL, 9000, "02:ab:00")
    assert (network.dns_servers, network.dns_search) == (("9.9.9.9",), ("a.org", "b.org"))
    assert (network.ntp_server, network.allow_outbound) == ("10.0.0.1", Outbound.NONE)
    assert (network.vxlan_port, network.min_vni, network.max_vni) == (8472, 5, 9)
    assert (network.int_network6, network.outbound6) == (IPv6Network("fd00:1::/64"), Outbound6.ROUTED)
    assert (network.host_suffix, network.bandwidth_mbit, network.mac_offset) == ("-ib0", 100, 16)
    assert (network.allow_host, network.manage_forwarding) == (True, False)
    assert network.reverse_nat == (
        ReverseNat(80, 80, 3000, 3900),
        ReverseNat(7, 9, 4000, 4009, Protocol.UDP, Access.OWNER),
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"mtu": 1329}, "5: nat.settings.mtu: 1329 is not a number from 1330 to 65535"),
        ({"mtu": "big"}, "5: nat.settings.mtu: 'big' is not a number from 1330 to 65535"),
        ({"allow_outbound": "no"}, "5: nat.settings.allow-outbound: no is not all or none"),
        (
            {"int_network": "10.0.0.0/31"},
            "5: nat.settings.int-network: 10.0.0.0/31 is too small: it needs four addresses",
        ),
        ({"int_network": "10.0.0.1/8"}, "5: nat.settings.int-network: '10.0.0.1/8' is not an IPv4 network"),
        ({"ext_network": "10.200.3.0/24"}, "5: nat.settings.ext-network: 10.200.3.0/24 overlaps int-network"),
        ({"int_network": "224.0.0.0/8"}, "5: nat.settings.int-network: 224.0.0.0/8 cannot be used for hosts"),
        ({"mac_prefix": "53:54:00"}, "5: nat.settings.mac-prefix: '53:54:00' is not a MAC prefix"),
        ({"vni_range": "9-5"}, "5: nat.settings.vni-range: '9-5' is not a range"),
        ({"vni_range": "1-16777216"}, "5: nat.settings.vni-range: '1-16777216' is not a range"),
        ({"dns_server": "[1.1.1.1, ns]"}, "5: nat.settings.dns-server[1]: 'ns' is not an IPv4 address"),
        ({"domain_name": "a..b"}, "5: nat.settings.domain-name: 'a..b' is not a domain name"),
        ({"data_path": "ebpf"}, "5: nat.settings.data-path: 'ebpf' is not auto, kernel or ovs"),
        ({"int_network6": "fd00::/48"}, "5: nat.settings.int-network6: 'fd00::/48' cannot be used for hosts"),
        ({"int_network6": "10.0.0.0/8"}, "5: nat.settings.int-network6: '10.0.0.0/8' is not an IPv6 network"),
        ({"bandwidth": 0}, "5: nat.settings.bandwidth: 0 is not a number from 1 to 400000"),
        (
            {"reverse_nat": "{vm-port: 9-8, min-host-port: 3000, max-host-port: 3900}"},
            "5: nat.settings.reverse-nat.vm-port: '9-8' is not a range of at most 64 ports",
        ),
        (
            {"reverse_nat": "{min-host-port: 3000, max-host-port: 2000}"},
            "5: nat.settings.reverse-nat: min-host-port 3000 is above max-host-port 2000",
        ),
        ({"reverse_nat": "{min-host-port: 3000}"}, "5: nat.settings.reverse-nat.max-host-port: is missing: a number"),
        (
            {"network_layer": "L2", "reverse_nat": "{min-host-port: 3000, max-host-port: 4000}"},
            "6: nat.settings.reverse-nat: an L2 network has no addresses",
        ),
        (
            {"reverse_nat": "{vm-port: 80-99, min-host-port: 6000, max-host-port: 6009}"},
            "5: nat.settings.reverse-nat.max-host-port: 6000-6009 has 10 ports, and every VM needs 20",
        ),
        (
            {
                "reverse_nat": "[{vm-port: 80, min-host-port: 6000, max-host-port: 6009}, "
                "{vm-port: 79-81, min-host-port: 7000, max-host-port: 7009}]"
            },
            "5: nat.settings.reverse-nat[1].vm-port: tcp 79-81 is forwarded already (80)",
        ),
        (
            {"network_layer": "L2", "int_network6": "fd00::/64"},
            "6: nat.settings.int-network6: an L2 network has no addresses",
        ),
        (
            {"int_network6": "fdb1:7c3e:5a90:1::/64"},
            "5: nat.settings.int-network6: fdb1:7c3e:5a90:1::/64 is what pvc uses between nodes",
        ),
        ({"allow_networks": "[10.1.0.1/16]"}, "5: nat.settings.allow-networks[0]: '10.1.0.1/16' is not a network"),
    ],
)
def test_what_a_network_can_have_wrong(tmp_path: Path, settings: dict[str, object], problem: str) -> None:
    found = problems_of(write_site(tmp_path, networks=ethernet(**settings)))
    assert len(found) == 1
    assert found[0].startswith(f"networks.yaml:{problem}")


def test_a_prefix_too_long_for_ports_of_the_switch(tmp_path: Path) -> None:
    text = ethernet(data_path="ovs").replace("dev-prefix: nat", "dev-prefix: faster")
    (found,) = problems_of(write_site(tmp_path, networks=text))
    assert found.startswith("networks.yaml:4: nat.settings.dev-prefix: 'faster' is too long")


def test_both_data_paths_cannot_have_one_udp_port(tmp_path: Path) -> None:
    text = ethernet() + ethernet(data_path="ovs").replace("nat:", "fast:", 1)
    (found,) = problems_of(write_site(tmp_path, networks=text))
    assert found.startswith("networks.yaml:7: fast.settings.vxlan-port: UDP port 4789 is that of network 'nat'")


def test_all_problems_of_all_files_at_once(tmp_path: Path) -> None:
    site = write_site(
        tmp_path,
        batch="type: local\nsettings:\n  etcd-serverss: [a]\n",
        networks="a:\n  type: infiniband\n  settings: {}\nb: 3\n",
        resources="x: {networks: [], default: yes}\ny: {networks: [], default: yes}\n",
        templates="t: {image: [1]}\nu: {inherits: nobody}\nv: {resource-set: none-such}\n",
        repos="repos: [{name: a/b, path: rel}]\n",
    )
    assert problems_of(site) == [
        "batch.yaml:1: type: 'local' is not slurm",
        "batch.yaml:2: settings.etcd-servers: is missing: a list with at least 1 host",
        "batch.yaml:3: settings.etcd-serverss: unknown key; did you mean 'etcd-servers'?",
        "networks.yaml:2: a.type: 'infiniband' is not ethernet, eth, bridged, bridged-ethernet or genericpci",
        "networks.yaml:4: b: 3 is not a mapping of keys to values",
        "repos.yaml:1: repos[0].name: 'a/b' is not a name (letters, digits, '_', '.', '-'; at most 63)",
        "repos.yaml:1: repos[0].path: 'rel' is not an absolute path",
        "resources.yaml:2: y.default: 'x' is the default already",
        "templates.yaml:1: t.image: a list is not an image's name",
        "templates.yaml:2: u.inherits: there is no template 'nobody'",
    ]


def test_references_between_files(tmp_path: Path) -> None:
    site = write_site(
        tmp_path,
        resources="x: {networks: [nat, wan]}\n",
        templates="t: {resource-set: y}\nu: {}\nv: {inherits: t}\n",
    )
    assert problems_of(site) == [
        "resources.yaml:1: x.networks[1]: there is no network 'wan' in networks.yaml (there: nat)"
    ]
    write_site(
        tmp_path, resources="x: {networks: [nat]}\n", templates="t: {resource-set: y}\nu: {}\nv: {inherits: t}\n"
    )
    assert problems_of(site) == [
        "templates.yaml:1: t.resource-set: there is no resource set 'y' in resources.yaml (there: x)",
        "templates.yaml:2: u: resource-set is missing, and no set of resources.yaml is the default",
    ]


def test_a_vm_cannot_have_two_networks_with_the_same_addresses(tmp_path: Path) -> None:
    networks = ethernet() + ethernet(int_network="10.200.9.0/24").replace("nat:", "two:", 1)
    site = write_site(tmp_path, networks=networks, resources="x: {networks: [nat, two, nat], default: yes}\n")
    assert problems_of(site)[0] == (
        "resources.yaml:1: x.networks[1]: int-network 10.200.9.0/24 of 'two' overlaps that of 'nat' (10.200.0.0/16), "
        "so a VM cannot have both"
    )


def test_inheritance(tmp_path: Path) -> None:
    text = """
base: {image: one, description: base, custom-args: [-a], machine-type: pc}
middle: {inherits: base, image: two}
leaf: {inherits: middle, custom-args: [-b]}
"""
    templates = load_site(write_site(tmp_path, templates=text)).templates
    leaf = templates["leaf"]
    assert (leaf.image, leaf.machine_type, leaf.custom_args, leaf.description) == ("two", "pc", ("-b",), "")
    assert templates["base"].description == "base"


def test_inheritance_rings(tmp_path: Path) -> None:
    text = "a: {inherits: b}\nb: {inherits: c}\nc: {inherits: b}\nd: {inherits: d}\n"
    assert problems_of(write_site(tmp_path, templates=text)) == [
        "templates.yaml:2: b.inherits: leads back to itself: b -> c -> b",
        "templates.yaml:3: c.inherits: leads back to itself: c -> b -> c",
        "templates.yaml:4: d.inherits: leads back to itself: d -> d",
    ]


def test_expansion(tmp_path: Path) -> None:
    site = write_site(
        tmp_path,
        templates="t: {image: '%{user}-%{env:TEAM}', custom-args: ['%{homedir}/x']}\n",
        repos="repos: [{name: team, path: '/images/%{env:TEAM}'}]\n",
    )
    config = load_site(site)
    assert config.templates["t"].image == "anne-red"
    assert config.templates["t"].custom_args == ("/home/anne/x",)
    write_site(tmp_path, templates="t: {custom-args: ['%{clusteruser}', '%{clusterdir}/%{vm_rank}']}\n")
    assert load_site(tmp_path).templates["t"].custom_args == ("anne", "/home/anne/.pvc/jobs/%{job_id}/%{vm_rank}")
    write_site(tmp_path, templates="t: {image: 'x%{vm_rank}'}\n")
    assert problems_of(tmp_path) == [
        "templates.yaml:1: t.image: %{vm_rank} is not known before a VM starts, and this is looked up before"
    ]
    assert config.repositories == (Repository("team", "/images/red"),)
    write_site(tmp_path, templates="t: {image: '%{env:NONE}'}\nu: {image: '%{host}'}\n")
    assert problems_of(site) == [
        "templates.yaml:1: t.image: the environment has no variable NONE (%{env:NONE})",
        "templates.yaml:2: u.image: %{host} is none of %{env:NAME}, %{homedir} and %{user}",
    ]


def test_users_files(tmp_path: Path) -> None:
    site, user = write_site(tmp_path / "etc"), tmp_path / "home"
    (user / "templates.d").mkdir(parents=True)
    (user / "templates.yaml").write_text("debian: {image: mine}\nweb: {inherits: debian}\n")
    (user / "templates.d" / "db.yaml").write_text("db: {inherits: debian}\n")
    (user / "templates.d" / ".hidden.yaml").write_text("[")
    (user / "templates.d" / "notes.txt").write_text("[")
    config = load_site(site, user)
    assert {name: template.image for name, template in config.templates.items()} == dict.fromkeys(
        ("debian", "web", "db"), "mine"
    )
    assert config.repositories == (Repository("user", f"{user}/images"), Repository("site", "/images"))
    (user / "repos.yaml").write_text("repos: [{name: a, path: /a}, {name: b, path: /b}]\n")
    assert [each.name for each in load_site(site, user).repositories] == ["a", "b", "site"]
    (user / "templates.d" / "again.yaml").write_text("\nweb: {}\n")
    assert problems_of(site, user) == [f"again.yaml:2: web: is given twice (first in {user}/templates.yaml:2)"]


def test_a_home_of_somebody_else() -> None:
    """What cannot even be looked for is told like what cannot be read, all of it at once."""
    as_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        site = write_site(Path(top) / "site")
        user = Path(top) / "home" / ".pvc"
        (user / "templates.d").mkdir(parents=True)
        Path(top).chmod(0o755)
        user.chmod(0)
        if as_root:
            os.seteuid(65534)
        try:
            with pytest.raises(ConfigError) as found:
                load_config(site, user)
            with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
                load_repositories(site, user)
        finally:
            if as_root:
                os.seteuid(0)
            user.chmod(0o700)
    wanted = "cannot be read: Permission denied"
    said = [(Path(each.file).name, each.text) for each in found.value.problems]
    assert said == [("repos.yaml", wanted), ("templates.d", wanted), ("templates.yaml", wanted)]


def test_the_root_side_reads_no_file_of_users(tmp_path: Path) -> None:
    site = write_site(tmp_path, templates="[broken", repos="[broken")
    config = load_root_config(site)
    assert (config.templates, config.repositories) == ({}, ())
    assert list(config.networks) == ["nat"]


def test_the_root_side_distrusts_files_that_anybody_may_write(tmp_path: Path) -> None:
    site = write_site(tmp_path)
    (site / "networks.yaml").chmod(0o666)
    with pytest.raises(ConfigError, match="anybody may write"):
        load_root_config(site)
    load_config(site, None)


def test_missing_files(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "none") == ["none:0: : there is no such directory"]
    site = write_site(tmp_path, batch=None)
    assert problems_of(site) == ["batch.yaml:0: : cannot be read: No such file or directory"]
    bare = write_site(tmp_path / "bare", networks=None, resources=None, templates=None, repos=None)
    config = load_site(bare)
    assert (config.networks, config.resource_sets, config.templates, config.repositories) == ({}, {}, {}, ())


def test_a_link_to_nowhere_is_a_problem(tmp_path: Path) -> None:
    site = write_site(tmp_path, networks=None)
    (site / "networks.yaml").symlink_to(tmp_path / "gone")
    assert "networks.yaml:0: : cannot be read: No such file or directory" in problems_of(site)


def test_repositories_need_no_site(tmp_path: Path) -> None:
    assert load_repositories(tmp_path / "none", tmp_path) == (Repository("user", f"{tmp_path}/images"),)


def test_only_users_may_choose_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PVC_CONF_DIR", "/elsewhere")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert load.find_site_dir() == Path("/elsewhere")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert load.find_site_dir() == Path("/etc/pvc")


LINES = """
nat:
a:
- a
{
# x
  type: eth
  type: 3
  settings:
    dev-prefix: x
    mtu: 9
    reverse-nat:
      min-host-port: 5000
  networks: [nat]
  default: yes
  inherits: a
  image: x
  user-data: {}
repos:
  - name: x
    path: /
settings:
  etcd-servers: [a]
  etcd-client-port: 0
"""
lines = st.sampled_from(LINES.split("\n"))
texts = st.lists(lines, max_size=8).map("\n".join)


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(["batch", "networks", "resources", "templates", "repos"], texts)))
def test_any_files_give_a_configuration_or_problems(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]
) -> None:
    site = write_site(tmp_path_factory.mktemp("site"), **files)
    try:
        config = load_site(site)
    except ConfigError as err:
        problems = err.problems
    else:
        assert all(each in config.networks for found in config.resource_sets.values() for each in found.networks)
        assert all(each.resource_set in config.resource_sets for each in config.templates.values())
        return
    assert problems
    assert all(problem.text and Path(problem.file).parent == site for problem in problems)


def bridged(**settings: object) -> str:
    """networks.yaml with the bridged network ``site`` and these settings; settings begin at line 4."""
    lines = ["site:", "  type: bridged", "  settings:", "    host-bridge: br0"]
    lines += [f"    {key.replace('_', '-')}: {value}" for key, value in {"tap_prefix": "st", **settings}.items()]
    return "\n".join(lines) + "\n"


def test_bridged_networks(tmp_path: Path) -> None:
    text = bridged(mtu=9000, vlans="[{vid: 20, type: native}, {vid: 21}]")
    network = load_site(write_site(tmp_path, networks=text, resources=SITE_SET)).networks["site"]
    assert network == BridgedNetwork("site", "br0", "st", 9000, (Vlan(20, Tagging.NATIVE), Vlan(21, Tagging.TAGGED)))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"tap_prefix": "storage-of-the-site"}, "5: site.settings.tap-prefix: 'storage-of-the-site' is not 1 to 15"),
        ({"host_if": "x"}, "6: site.settings.host-if: "),
        ({"mtu": 10}, "6: site.settings.mtu: 10 is not a number from 68 to 65535"),
        ({"vlans": "[{vid: 4095}]"}, "6: site.settings.vlans[0].vid: 4095 is not a number from 1 to 4094"),
        ({"vlans": "[{vid: 5, type: trunk}]"}, "6: site.settings.vlans[0].type: 'trunk' is not tagged, native or"),
        ({"vlans": "[{type: native}]"}, "6: site.settings.vlans[0].vid: is missing: a number from 1 to 4094"),
        ({"vlans": "[{vid: 5}, {vid: 5}]"}, "6: site.settings.vlans[1]: VLAN 5 is there already"),
        ({"vlans": "[{vid: 5}, {vid: 6, type: untagged}]"}, "6: site.settings.vlans[1]: with an untagged VLAN"),
        ({"vlans": "[{vid: 5, type: native}, {vid: 6, type: native}]"}, "6: site.settings.vlans[1]: VLAN 5 is native"),
        ({"mtu": "1500\n    mtu: 1500"}, "7: site.settings.mtu: is given twice (first on line 6)"),
    ],
)
def test_problems_of_bridged_networks(tmp_path: Path, settings: dict[str, object], problem: str) -> None:
    (found,) = problems_of(write_site(tmp_path, networks=bridged(**settings), resources=SITE_SET))
    assert found.startswith(f"networks.yaml:{problem}"), found


def test_devices_of_bridged_networks_are_told_apart_by_their_prefix(tmp_path: Path) -> None:
    text = bridged() + bridged(tap_prefix="nat").replace("site:", "other:") + ethernet()
    found = problems_of(write_site(tmp_path, networks=text + bridged().replace("site:", "third:"), resources=SITE_SET))
    assert found == [
        "networks.yaml:14: nat.settings.dev-prefix: 'nat' is that of network 'other', too",
        "networks.yaml:19: third.settings.tap-prefix: 'st' is that of network 'site', too",
    ]


def renamed(name: str, text: str) -> str:
    return text.replace("nat:\n", f"{name}:\n", 1)


def test_ranges_of_networks_that_do_not_fit_each_other(tmp_path: Path) -> None:
    text = (
        ethernet(int_network="10.1.0.0/16", ext_network="10.2.0.0/16")
        + renamed("b", ethernet(int_network="10.3.0.0/16", ext_network="10.2.0.0/24"))
        + renamed("c", ethernet(int_network="10.2.128.0/24", ext_network="10.4.0.0/16"))
        + renamed("d", ethernet(int_network="10.1.0.0/16", ext_network="10.2.0.0/16"))
    )
    found = problems_of(write_site(tmp_path, networks=text))
    assert [each.partition(": ")[2] for each in found] == [
        "b.settings.ext-network: 10.2.0.0/24 overlaps that of 'nat' (10.2.0.0/16) without being the same",
        "c.settings.int-network: 10.2.128.0/24 overlaps ext-network 10.2.0.0/16 of 'nat'",
        "d.settings.ext-network: 10.2.0.0/16 overlaps int-network 10.2.128.0/24 of 'c'",
        "d.settings.ext-network: 10.2.0.0/16 overlaps that of 'b' (10.2.0.0/24) without being the same",
    ]
