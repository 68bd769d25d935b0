# SPDX-License-Identifier: Apache-2.0
"""Sites and users that come from pcocc: what their files become, what is told, what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pvc.cli import main
from pvc.config.load import load_config
from pvc.errors import ConfigError, UsageError
from pvc.model.network import BridgedNetwork, EthernetNetwork
from pvc.model.site import SiteConfig
from pvc.ops.migrate import Migration, check, plan_migration, write
from tests.unit.images.faults import die, run_at

BATCH = """
type: slurm
settings:
 etcd-servers: [etcd1, etcd2]
 etcd-ca-cert: /etc/etcd/ca.crt
 etcd-client-port: 2379
 etcd-protocol: http
 etcd-auth-type: password
 batch-args: ['--exclusive']
"""
NETWORKS = """
nat-ssh:
  type: ethernet
  settings:
    network-layer: "L3"
    int-network: "10.251.0.0/16"
    ext-network: "10.250.0.0/16"
    dev-prefix: "nat"
    mtu: 1500
    mac-prefix: 52:54:00
    gateway: local-nat
    reverse-nat: {vm-port: 22, min-host-port: 60222, max-host-port: 60322}
    host-if-suffix: ""
pv:
  type: ethernet
  settings: {network-layer: L2, dev-prefix: pv, mtu: 1500, host-if-suffix: "-ib", ext-network: 10.250.0.0/16}
ib:
  type: infiniband
  settings: {host-device: mlx5_0, min-pkey: "0x2000", max-pkey: "0x3000", license: pkey}
gpu:
  type: genericpci
  settings: {host-device-addrs: ['0000:00:04.0', '0000:00:06.0'], host-driver: nvidia}
hostib: {type: host-infiniband, settings: {host-device: mlx5_0}}
hosteth: {type: bridged-ethernet, settings: {host-bridge: br0, tap-prefix: ethtap, mtu: 1500}}
"""
RESOURCES = """
default: {networks: [nat-ssh], default: true}
ib-cluster: {networks: [nat-ssh, ib]}
bare:
  networks:
"""
TEMPLATES = """
example:
  image: 'user:example@3'
  resource-set: default
  mount-points: {homedir: /home}
  custom-args: ['-cdrom', /path/to/my.iso]
  qemu-bin: /opt/qemu/bin/qemu-system-x86_64
  nic-model: e1000
  description: 'example'
  user-data: first.yaml
  instance-id: 'example'
  emulator-cores: 2
  remote-display: spice
  full-node: true
  disk-cache: 'writeback'
  kernel: vmlinuz
heir:
  inherits: example
overloads:
  inherits: example
  image: /images/old
  resource-set: ib-cluster
  mount-points:
  custom-args:
  qemu-bin:
  nic-model:
  user-data:
  instance-id:
  emulator-cores:
  full-node: False
  bind-vcpus: false
  disk-model: 'ide'
  persistent-drives:
    - /d/plain
    - '/d/drive': {mmp: 'no', cache: 'unsafe', backup: 'user:backup'}
  remote-display:
  disk-cache:
  machine-type: 'q35'
  kernel:
diskless: {image: no, machine-type: , resource-set: bare}
"""
REPOS = """
repos:
  - {name: user, path: "%{homedir}/.pcocc/images"}
  - {name: global, path: /var/pcocc/images}
cache: {path: /tmp/cache}
"""
SITE = {"batch": BATCH, "networks": NETWORKS, "resources": RESOURCES, "templates": TEMPLATES, "repos": REPOS}


def old_site(directory: Path, **changes: str | None) -> Path:
    directory.mkdir(parents=True)
    for name, text in (SITE | changes).items():
        if text is not None:
            (directory / f"{name}.yaml").write_text(text)
    (directory / "first.yaml").write_text("#cloud-config\npackages: [vim]\n")
    (directory / "vmlinuz").write_bytes(b"kernel")
    return directory


def migrate(source: Path, target: Path, site: Path = Path("/nowhere")) -> Migration:
    plan = plan_migration(source)
    check(plan, site)
    write(plan, target)
    return plan


def told(plan: Migration, *, lost: bool) -> dict[str, str]:
    return {
        f"{Path(note.place.file).name}:{note.place.line}:{note.place.key}": note.place.text
        for note in plan.notes
        if note.lost is lost
    }


def load(directory: Path) -> SiteConfig:
    return load_config(directory, None)


def test_a_site_comes_as_a_whole(tmp_path: Path) -> None:
    plan = migrate(old_site(tmp_path / "old"), tmp_path / "new")
    found = load(tmp_path / "new")
    assert found.batch.etcd.servers == ("etcd1", "etcd2")
    assert found.batch.batch_args == ("--exclusive",)
    assert list(found.networks) == ["nat-ssh", "pv", "gpu", "hosteth"]
    nat, bridge = found.networks["nat-ssh"], found.networks["hosteth"]
    assert isinstance(nat, EthernetNetwork)
    assert (str(nat.int_network), nat.mac_prefix, nat.reverse_nat[0].min_host_port) == (
        "10.251.0.0/16",
        "52:54:00",
        60222,
    )
    assert isinstance(bridge, BridgedNetwork)
    assert bridge.tap_prefix == "ethp"
    sets = {name: each.networks for name, each in found.resource_sets.items()}
    assert sets == {"default": ("nat-ssh",), "ib-cluster": ("nat-ssh",), "bare": ()}
    assert [(each.name, each.path) for each in found.repositories] == [("global", "/var/pcocc/images.pvc")]
    # What is left of warnings is what a comment says, too.
    assert [each.key for each in found.warnings] == ["hosteth.settings.tap-prefix"]
    assert set(plan.files) == {"batch.yaml", "networks.yaml", "resources.yaml", "repos.yaml", "templates.yaml"}


def test_templates_keep_what_they_mean(tmp_path: Path) -> None:
    source = old_site(tmp_path / "old")
    migrate(source, tmp_path / "new")
    found = load(tmp_path / "new").templates
    example, heir, overloads, diskless = (found[name] for name in ("example", "heir", "overloads", "diskless"))
    assert (example.image, heir.image, overloads.image, diskless.image) == (
        "user:example@4",
        "user:example@4",
        "old",
        None,
    )
    assert example.user_data == "#cloud-config\npackages: [vim]\n"
    assert example.kernel == f"{source}/vmlinuz"
    assert [each.machine_type for each in (example, heir, overloads, diskless)] == ["pc", "pc", "q35", "pc"]
    assert (overloads.nic_model, overloads.user_data, overloads.kernel, overloads.instance_id) == (
        "virtio-net",
        None,
        None,
        None,
    )
    assert (overloads.disk_cache, overloads.mount_points, overloads.custom_args) == ("unsafe", (), ())
    assert [each.path for each in overloads.persistent_drives] == ["/d/plain", "/d/drive"]
    assert (heir.instance_id, heir.resource_set, overloads.resource_set) == ("example", "default", "ib-cluster")


def test_all_that_is_other_is_told_with_its_place(tmp_path: Path) -> None:
    source = old_site(tmp_path / "old", containers="docker: {}\n")
    (source / "helpers").mkdir()
    (source / "etcd-password").write_text("secret")
    plan = migrate(source, tmp_path / "new")
    lost, changed = told(plan, lost=True), told(plan, lost=False)
    assert lost.keys() == {
        "networks.yaml:11:nat-ssh.settings.gateway",
        "networks.yaml:17:ib",
        "networks.yaml:23:hostib",
        "resources.yaml:3:ib-cluster.networks[1]",
        "templates.yaml:12:example.emulator-cores",
        "templates.yaml:14:example.full-node",
        "templates.yaml:31:overloads.bind-vcpus",
        "templates.yaml:35:overloads.persistent-drives[1]./d/drive.backup",
        "repos.yaml:5:cache",
        "containers.yaml:0:",
        "helpers:0:",
    }
    assert changed.keys() == {
        "batch.yaml:4:settings.etcd-servers",
        "networks.yaml:4:nat-ssh.settings",
        "networks.yaml:24:hosteth.settings.tap-prefix",
        "templates.yaml:3:example.image",
        "templates.yaml:2:example.machine-type",
        "templates.yaml:5:example.mount-points",
        "templates.yaml:10:example.user-data",
        "templates.yaml:16:example.kernel",
        "templates.yaml:21:overloads.image",
        "templates.yaml:40:diskless.machine-type",
        "repos.yaml:3:repos[0].path",
        "repos.yaml:4:repos[1].path",
        "etcd-password:0:",
    }
    assert all(text for text in (lost | changed).values())
    # A secret goes nowhere.
    assert "secret" not in "".join(plan.files.values())


def test_every_change_has_its_comment(tmp_path: Path) -> None:
    plan = migrate(old_site(tmp_path / "old"), tmp_path / "new")
    for note in plan.notes:
        text = (tmp_path / "new" / Path(note.place.file).name).read_text()
        comments = " ".join(
            line.strip().removeprefix("#").strip() for line in text.splitlines() if line.lstrip().startswith("#")
        )
        start = note.place.text.split(" comes by:")[0].split(" come by:")[0]
        assert start in comments, note
    shown = (tmp_path / "new/repos.yaml").read_text()
    assert "\n  # pvc image import --from-pcocc /var/pcocc/images -R global\n" in shown.replace("    #", "  #")


def test_a_users_directory(tmp_path: Path) -> None:
    site = tmp_path / "site"
    migrate(old_site(tmp_path / "old"), site)
    mine = tmp_path / ".pcocc"
    (mine / "templates.d").mkdir(parents=True)
    (mine / "templates.yaml").write_text("mine: {inherits: example, image: own@0}\n")
    (mine / "templates.d/more.yaml").write_text("more: {inherits: mine, description: more}\n")
    (mine / "repos.yaml").write_text("repos: [{name: user, path: '%{homedir}/.pcocc/images'}]\n")
    target = tmp_path / ".pvc"
    (target / "jobs").mkdir(parents=True)
    migrate(mine, target, site)
    found = load_config(site, target)
    assert (found.templates["more"].image, found.templates["more"].nic_model) == ("own@1", "e1000")
    assert [each.name for each in found.repositories] == ["user", "global"]
    # Without a site nobody knows what is inherited; what stands there is looked at all the same.
    migrate(mine, tmp_path / "alone")
    (mine / "templates.d/bad.yaml").write_text("bad: {memory: much}\n")
    for where in (site, Path("/nowhere")):
        with pytest.raises(ConfigError, match=r"bad\.yaml:1: bad\.memory: 'much' is not a size"):
            migrate(mine, tmp_path / "again", where)


def test_all_problems_are_told_at_once_in_the_old_files(tmp_path: Path) -> None:
    source = old_site(
        tmp_path / "old",
        batch=BATCH.replace("etcd-client-port: 2379", "etcd-client-port: none"),
        networks=NETWORKS.replace("'0000:00:04.0'", "'0000:00:04'").replace(
            "mtu: 1500\n    mac", "mtuu: 1500\n    mac"
        ),
        resources="default: {networks: [nat-ssh, lan]\n",
        templates="a:\n  persistent-drives: [drive]\nb:\n  inherits: c\n_d: {}\n",
    )
    with pytest.raises(ConfigError) as caught:
        migrate(source, tmp_path / "new")
    found = {f"{Path(each.file).name}:{each.line}:{each.key}" for each in caught.value.problems}
    assert found == {
        "batch.yaml:6:settings.etcd-client-port",
        "networks.yaml:9:nat-ssh.settings.mtuu",
        "networks.yaml:22:gpu.settings.host-device-addrs[0]",
        "resources.yaml:2:",
        "templates.yaml:2:a.persistent-drives[0]",
        "templates.yaml:4:b.inherits",
        "templates.yaml:5:_d",
    }
    assert all(Path(each.file).parent == source for each in caught.value.problems)
    assert not (tmp_path / "new").exists()
    assert str(tmp_path / "new") not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "place"),
    [
        ("networks", "a/b: {type: ethernet, settings: {dev-prefix: a}}\n", "networks.yaml:1:a/b"),
        (
            "networks",
            "a:\n  type: ethernet\n  settings: {dev-prefix: a, colour: red}\n",
            "networks.yaml:3:a.settings.colour",
        ),
        ("networks", "a:\n  type: ether\n  settings: {}\n", "networks.yaml:2:a.type"),
        ("networks", "a:\n  type: ethernet\n  setting: {}\n", "networks.yaml:3:a.setting"),
        ("networks", "- a\n", "networks.yaml:1:"),
        ("networks", "a: [\n", "networks.yaml:2:"),
        ("resources", "a: {networks: [none]}\n", "resources.yaml:1:a.networks[0]"),
        ("templates", "a:\n  inherits: none\n", "templates.yaml:2:a.inherits"),
        ("templates", "_a:\n  image: x\n", "templates.yaml:1:_a"),
        ("templates", "a:\n  resource-set: none\n", "templates.yaml:2:a.resource-set"),
        ("templates", "a:\n  image: x\n  user-data: none.yaml\n", "templates.yaml:3:a.user-data"),
        ("templates", "a:\n  colour: red\n", "templates.yaml:2:a.colour"),
        ("templates", "a:\n  image: x\n    image: y\n", "templates.yaml:3:"),
        ("repos", "repos: ['%{homedir}/images']\n", "repos.yaml:1:repos[0]"),
        ("repos", "repos: [{name: a}]\n", "repos.yaml:1:repos[0].path"),
        ("repos", "repos: [{name: a, path: /a}, {name: a, path: /b}]\n", "repos.yaml:1:repos[1].name"),
    ],
)
def test_what_pcocc_refuses_is_refused_with_its_place(tmp_path: Path, file: str, text: str, place: str) -> None:
    parts = {
        "networks": "n: {type: eth, settings: {dev-prefix: n}}\n",
        "resources": "r: {networks: [], default: yes}\n",
    }
    source = old_site(tmp_path / "old", **({"templates": "", "repos": None} | parts | {file: text}))
    with pytest.raises(ConfigError) as caught:
        migrate(source, tmp_path / "new")
    found = [f"{Path(each.file).name}:{each.line}:{each.key}" for each in caught.value.problems]
    assert place in found
    assert {each.split(":")[0] for each in found} == {f"{file}.yaml"}
    assert "pvc-migrate" not in str(caught.value)


def test_a_single_machine_has_no_counterpart(tmp_path: Path) -> None:
    source = old_site(tmp_path / "old", batch=BATCH.replace("slurm", "local"))
    with pytest.raises(ConfigError, match="pvc testbed up"):
        migrate(source, tmp_path / "new")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source, target = old_site(tmp_path / "old"), tmp_path / "new"
    target.mkdir()
    (target / "templates.yaml").write_text("mine: {}\n")
    with pytest.raises(UsageError, match=r"templates\.yaml exists"):
        migrate(source, target)
    assert [path.name for path in target.iterdir()] == ["templates.yaml"]
    assert (target / "templates.yaml").read_text() == "mine: {}\n"
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path / "link", tmp_path / "file", tmp_path / "none" / "deep"):
        with pytest.raises(UsageError):
            migrate(source, wrong)
    with pytest.raises(UsageError, match="has no configuration of pcocc's"):
        plan_migration(tmp_path / "new" / "..")


def test_a_killed_command_leaves_all_files_or_none(tmp_path: Path) -> None:
    plan, calls = plan_migration(old_site(tmp_path / "old")), 0
    for number in range(1000):
        target = tmp_path / f"new{number}"
        if not run_at(number, lambda target=target: write(plan, target), die):  # type: ignore[misc]
            break
        calls += 1
        if target.exists():
            assert {path.name for path in target.iterdir()} == set(plan.files)
            load(target)
    assert calls > 10
    # What the killed ones have left goes with the next one, once it is older than a moment.
    left = list(tmp_path.glob(".pvc-migrate-*"))
    assert left
    for path in left:
        os.utime(path, (1, 1))
    write(plan, tmp_path / "last")
    assert list(tmp_path.glob(".pvc-migrate-*")) == []


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = old_site(tmp_path / "old")
    assert main.run(["config", "migrate", str(source)]) == 0
    out, err = capsys.readouterr()
    assert f"  {source}/networks.yaml:17: ib: type infiniband" in out
    assert "nothing was written" in err
    assert main.run(["config", "migrate", str(source), "-o", str(tmp_path / "new"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["written"]) == 5
    assert data["lost"][0]["key"] == "nat-ssh.settings.gateway"
    assert main.run(["config", "migrate", str(source), "-o", str(tmp_path / "new")]) == 2
    assert main.run(["config", "check", str(tmp_path / "new"), "--site-only"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("no problems\n")
    assert "warning: " in err
    (source / "batch.yaml").write_text("[")
    assert main.run(["config", "migrate", str(source)]) == 3
