# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from pvc.model.node import Nic
from pvc.model.vm import Mount
from pvc.plan.cloudinit import SeedSpec, plan_seed, plan_settle

NIC = Nic("nat", "52:54:00:00:00:03", 1450, "10.200.0.4/16", "10.200.0.1", 0)
L2 = Nic("lan", "52:54:00:00:01:03", 9000, None, None, 1)
SPEC = SeedSpec(
    instance_id="pvc-12-ab-vm3",
    hostname="vm3",
    nics=(NIC,),
    authorized_keys=("ssh-ed25519 AAAA somebody: 'with' \"odd\" # comment",),
    host_key="-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n",
    host_key_pub="ssh-ed25519 BBBB host\n",
    user_data=None,
)


def parse(spec: SeedSpec, name: str) -> Any:
    return yaml.safe_load(plan_seed(spec)[name])


def test_meta_data() -> None:
    found = parse(SPEC, "meta-data")
    assert found == {
        "instance-id": "pvc-12-ab-vm3",
        "local-hostname": "vm3",
        "public-keys": list(SPEC.authorized_keys),
    }


def test_vendor_data_carries_the_host_key() -> None:
    assert plan_seed(SPEC)["vendor-data"].startswith("#cloud-config\n")
    found = parse(SPEC, "vendor-data")
    assert found["ssh_keys"] == {"ed25519_private": SPEC.host_key, "ed25519_public": "ssh-ed25519 BBBB host"}
    assert found["disable_root"] is False
    assert found["ssh_deletekeys"] is True


def test_user_data_is_verbatim() -> None:
    text = "#!/bin/sh\necho '\u00fcml' \"$x\"\n"
    assert plan_seed(dataclasses.replace(SPEC, user_data=text))["user-data"] == text


def test_without_user_data_there_is_an_empty_cloud_config() -> None:
    assert plan_seed(SPEC)["user-data"].startswith("#cloud-config\n")
    assert parse(SPEC, "user-data") == {}


def test_network_is_dhcp_by_mac() -> None:
    found = parse(dataclasses.replace(SPEC, nics=(NIC, L2, NIC)), "network-config")
    assert found["version"] == 2
    assert [(name, each["set-name"]) for name, each in found["ethernets"].items()] == [
        (f"eth{i}", f"eth{i}") for i in range(3)
    ]
    first, second, third = found["ethernets"].values()
    assert first["match"] == {"macaddress": NIC.mac}
    assert first["dhcp4"] is True
    assert first["mtu"] == 1450
    assert first["dhcp4-overrides"]["hostname"] == "vm3"
    assert first["dhcp4-overrides"]["use-dns"] is True
    assert "route-metric" not in first["dhcp4-overrides"]
    assert second["dhcp4"] is False
    assert second["mtu"] == 9000
    assert third["dhcp4-overrides"]["route-metric"] == 300


def test_without_nics_the_guest_decides() -> None:
    assert "network-config" not in plan_seed(dataclasses.replace(SPEC, nics=()))


def test_directories_are_words_for_our_images_and_a_bootcmd_for_others() -> None:
    mounts = (Mount("/home/anne", "/data", tag="pvc0"), Mount("/sw", "/mnt/sw", True, "sw"))
    spec = dataclasses.replace(SPEC, mounts=mounts)
    assert plan_seed(spec)["mounts"] == "pvc0 /data rw\nsw /mnt/sw ro\n"
    assert "mounts-virtiofs" not in plan_seed(spec)
    commands = parse(spec, "vendor-data")["bootcmd"]
    assert [each[3:] for each in commands] == [["mount", "pvc0", "/data", "rw"], ["mount", "sw", "/mnt/sw", "ro"]]
    assert "mounts" not in plan_seed(SPEC)
    assert "bootcmd" not in parse(SPEC, "vendor-data")
    # Images of earlier versions read the first file and expect 9p there.
    shared = Mount("/scratch", "/scratch", tag="pvc2", type="virtiofs")
    both = dataclasses.replace(SPEC, mounts=(*mounts, shared))
    assert plan_seed(both)["mounts"] == plan_seed(spec)["mounts"]
    assert plan_seed(both)["mounts-virtiofs"] == "pvc2 /scratch rw\n"
    assert "mount -t virtiofs" in parse(both, "vendor-data")["bootcmd"][2][2]


def test_the_agent_is_started_early_whatever_the_user_wants() -> None:
    spec = dataclasses.replace(SPEC, agent=True)
    ((*shell, text),) = parse(spec, "vendor-data")["bootcmd"]
    assert shell == ["sh", "-c"]
    assert "pvc-agent.sh" in text
    own = dataclasses.replace(spec, user_data="#cloud-config\nbootcmd: [[echo, mine]]\n")
    found = parse(own, "vendor-data")
    assert found["bootcmd"] == parse(spec, "vendor-data")["bootcmd"]
    assert "list(prepend)" in found["merge_type"]
    assert "runcmd" not in found


def test_a_guest_without_cloud_init_is_told_the_same() -> None:
    words = plan_settle(SPEC)
    assert words[:2] == [("op", "settle"), ("hostname", SPEC.hostname)]
    assert [value for key, value in words if key == "authorized-key"] == list(SPEC.authorized_keys)
    assert dict(words)["host-key"] == SPEC.host_key
    shares = (Mount("/h", "/data", tag="a"), Mount("/h", "/with blank", read_only=True, tag="b", type="virtiofs"))
    words = plan_settle(dataclasses.replace(SPEC, mounts=shares))
    assert [value for key, value in words if key == "mount"] == ["9p rw a /data", "virtiofs ro b /with blank"]
    bare = Nic("lan", "52:54:00:00:00:09", 1500, None, None, 1)
    six = Nic("six", "52:54:00:00:00:0a", 1500, "10.0.0.1/8", None, 2, "fd00::1/64")
    told = [
        value for key, value in plan_settle(dataclasses.replace(SPEC, nics=(*SPEC.nics, bare, six))) if key == "address"
    ]
    first = SPEC.nics[0]
    assert told[0] == f"{first.mac} {first.address} {first.gateway}"
    assert told[-2:] == ["52:54:00:00:00:0a 10.0.0.1/8", "52:54:00:00:00:0a fd00::1/64"]
    assert not any(bare.mac in each for each in told)
