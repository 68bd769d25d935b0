# SPDX-License-Identifier: Apache-2.0
"""From a definition to a request, with everything that can be wrong in it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pvc.errors import PvcError, UsageError
from pvc.model.cluster import VmGroup
from pvc.model.drive import Mmp, PersistentDrive
from pvc.model.network import EthernetNetwork, PciNetwork, ResourceSet
from pvc.model.request import decode_request, parse_definition
from pvc.ops.definition import (
    Overrides,
    find_template,
    make_groups,
    parse_image_overrides,
    resolve,
    resolve_request,
)
from tests.unit.ops.worlds import make_config


def test_request_names_resource_sets_only(tmp_path: Path) -> None:
    request = resolve_request("web:2,plain,db:3,web", make_config(tmp_path), 4)
    assert request.encode() == "1;cpus=4;nat:3,lan:3,nat:1"
    assert decode_request(request.encode()) == request


def test_groups_follow_the_definition() -> None:
    groups = make_groups(parse_definition("web:2,db,web:3"))
    assert groups == (VmGroup("web", 0, 2), VmGroup("db", 2, 1), VmGroup("web", 3, 3))


def test_unknown_template_suggests_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no template 'wep'") as caught:
        find_template("wep", make_config(tmp_path))
    assert caught.value.hint == "did you mean 'web'?"


def test_unknown_template_without_a_near_one_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_template("zzz", make_config(tmp_path))
    assert caught.value.hint == "known: db, plain, web"


@pytest.mark.parametrize("text", ["web:0", "web:65537", "web:1000000", "web:40000,db:40000", "", "web:", "w b"])
def test_counts_and_names_are_bounded(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        resolve_request(text, make_config(tmp_path))


@pytest.mark.parametrize("cpus", [0, 4097])
def test_cores_are_bounded(tmp_path: Path, cpus: int) -> None:
    with pytest.raises(UsageError, match="cores"):
        resolve_request("web", make_config(tmp_path), cpus)


def test_missing_image_names_template_and_image(tmp_path: Path) -> None:
    with pytest.raises(PvcError) as caught:
        resolve("db", make_config(tmp_path), Overrides())
    assert "template 'db'" in str(caught.value)
    assert "image 'web'" in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.find_hint()


def test_a_template_without_an_image_needs_none(tmp_path: Path) -> None:
    order = resolve("plain:2", make_config(tmp_path), Overrides(user_data="#cloud-config\n", resource_set="lan"), 2)
    assert order.request.encode() == "1;cpus=2;lan:2"
    assert order.templates["plain"].disk is None
    assert order.templates["plain"].user_data == "#cloud-config\n"


def test_unknown_resource_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no resource set 'lam'") as caught:
        resolve("plain", make_config(tmp_path), Overrides(resource_set="lam"))
    assert caught.value.hint == "did you mean 'lan'?"


def test_image_overrides() -> None:
    assert parse_image_overrides(("web=a@2", "site:b"), "web:2,db") == {"web": "a@2", "": "site:b"}


@pytest.mark.parametrize("values", [("x=a",), ("web=",), ("a", "b"), ("web=a", "web=b")])
def test_wrong_image_overrides(values: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--image"):
        parse_image_overrides(values, "web:2")


def test_two_vms_on_one_drive_are_told_before_there_is_a_job(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    drives = (PersistentDrive("/data/a"), PersistentDrive("/data/vm%{vm_rank}"), PersistentDrive("/s", mmp=Mmp.CLUSTER))
    plain = replace(config.templates["plain"], persistent_drives=drives)
    other = replace(plain, name="other", persistent_drives=(PersistentDrive("/data/b"),))
    config = replace(config, templates={"plain": plain, "other": other, "third": replace(plain, name="third")})
    assert resolve("plain,other", config, Overrides()).templates["plain"].drives == drives
    for definition in ("plain:2", "plain,third"):
        with pytest.raises(UsageError, match="2 VMs of this cluster would write to the persistent drive /data/a"):
            resolve(definition, config, Overrides())


def test_slurm_is_asked_only_where_a_network_is_of_its_resources(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config.networks["gpu"] = PciNetwork("gpu", ("0000:3b:00.0",), "nouveau", "gpu")
    config.networks["nic"] = PciNetwork("nic", ("0000:5e:00.0",), "mlx5_core")
    for name in ("gpu", "nic"):
        config.resource_sets[name] = ResourceSet(name, ("nat", name))
        config.templates[name] = replace(config.templates["plain"], name=name, resource_set=name)
    assert resolve_request("plain,nic,gpu:2", config, 4).encode() == "1;cpus=4;gres;nat:1,nic:1,gpu:2"
    assert resolve_request("nic:2", config).encode() == "1;nic:2"
    overrides = Overrides(resource_set="gpu")
    assert resolve("plain", config, overrides).request.encode() == "1;gres;gpu:1"


def test_networks_that_no_node_could_give_are_refused_at_once(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    nat = config.networks["nat"]
    assert isinstance(nat, EthernetNetwork)
    small = replace(nat, int_network=IPv4Network("10.8.0.0/29"))
    few = replace(config, networks={**config.networks, "nat": small})
    assert resolve_request("web:5", few).encode() == "1;nat:5"
    with pytest.raises(UsageError, match=r"network nat \(10\.8\.0\.0/29\) has addresses for 5 VMs, not for vm5"):
        resolve_request("web:6", few)
    # Each by itself is right; in one cluster one gateway would have two networks with the same addresses.
    both = replace(config, networks={**config.networks, "lan": replace(nat, name="lan")})
    assert resolve_request("web", both)
    assert resolve_request("db", both)
    with pytest.raises(UsageError, match="networks nat and lan have overlapping addresses"):
        resolve_request("web,db", both)
