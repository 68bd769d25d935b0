# SPDX-License-Identifier: Apache-2.0
"""Any site of pcocc's: what comes out passes pvc's own check, or all that is wrong is told at its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import event, given
from hypothesis import strategies as st

from pvc.config.emit import Written, emit
from pvc.config.yamlmarks import parse_document
from pvc.errors import ConfigError, Problem
from pvc.ops.migrate import check, plan_migration, write
from tests.unit.config.test_migrate import SITE, load, migrate, old_site

names = st.sampled_from(["a", "b", "c-d", "e.f"])
maybe = st.sampled_from([None, True, False, 0, 2, "x", "L2", "/p", "r:i@0", "%{user}", 1500, [], {}])
ethernet = st.fixed_dictionaries(
    {"dev-prefix": st.sampled_from(["n", "pv", "nat"])},
    optional={
        "network-layer": st.sampled_from(["L3", "L2", None]),
        "mtu": st.sampled_from([1500, 9000, None]),
        "host-if-suffix": st.sampled_from(["", "-ib"]),
        "gateway": st.just("local-nat"),
        "domain-name": st.sampled_from(["vms.site", None]),
        "allow-outbound": st.sampled_from(["all", "none"]),
        "reverse-nat": st.just({"vm-port": 22, "min-host-port": 60222, "max-host-port": 60322}),
        "dns-server": st.sampled_from(["10.0.0.1", None]),
    },
)
network = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["eth", "ethernet"]), "settings": ethernet}),
    st.fixed_dictionaries({"type": st.sampled_from(["ib", "hostib", "pv"]), "settings": st.just({"x": 1})}),
    st.builds(
        lambda prefix: {"type": "bridged", "settings": {"host-bridge": "br0", "tap-prefix": prefix}},
        st.text("abcd019", min_size=1, max_size=9).map(lambda text: f"t{text}"),
    ),
)
template = st.fixed_dictionaries(
    {},
    optional={
        "image": st.sampled_from(["i", "r:i@0", "i@17", "/dir/i", False, None]),
        "resource-set": st.sampled_from(["a", None]),
        "inherits": names,
        "description": st.text(max_size=9),
        "user-data": st.sampled_from([None, {"swap": None, "v": "22.10"}, "#cloud-config\n{}\n"]),
        "instance-id": st.sampled_from([None, "i-1", 7]),
        "mount-points": st.sampled_from([None, {"home": "/home"}, {"data": {"path": "/d", "readonly": True}}]),
        "persistent-drives": st.sampled_from([None, ["/d"], [{"/d": {"mmp": "no", "cache": "none", "backup": "x"}}]]),
        "remote-display": st.sampled_from([None, "spice"]),
        "custom-args": st.sampled_from([None, ["-cdrom", "/x"]]),
        "nic-model": st.sampled_from([None, "e1000"]),
        "machine-type": st.sampled_from([None, "pc", "q35"]),
        "cpu-model": st.sampled_from([None, "host"]),
        "disk-model": st.sampled_from([None, "virtio", "virtio-scsi", "ide"]),
        "disk-cache": st.sampled_from([None, "unsafe", "writeback"]),
        "emulator-cores": st.sampled_from([None, 0, 2]),
        "bind-vcpus": st.booleans(),
        "full-node": st.booleans(),
        "kernel": st.sampled_from([None, "/boot/vmlinuz"]),
    },
)
sites = st.fixed_dictionaries(
    {
        "batch": st.fixed_dictionaries(
            {
                "type": st.just("slurm"),
                "settings": st.fixed_dictionaries(
                    {
                        "etcd-servers": st.just(["e"]),
                        "etcd-client-port": st.just(2379),
                        "etcd-protocol": st.sampled_from(["http", "https"]),
                        "etcd-auth-type": st.sampled_from(["password", "munge", "none"]),
                    }
                ),
            }
        ),
        "networks": st.dictionaries(names, network, max_size=3),
        "templates": st.dictionaries(names, template, max_size=3),
        "repos": st.sampled_from([{"repos": []}, {"repos": [{"name": "r", "path": "/p"}], "cache": {"path": "/c"}}]),
    }
)


@given(site=sites, odd=st.lists(st.tuples(st.sampled_from(list(SITE)), maybe, maybe), max_size=1), data=st.data())
def test_any_site_passes_or_is_told_why_not(
    tmp_path_factory: pytest.TempPathFactory, site: dict[str, Any], odd: list[tuple[str, Any, Any]], data: st.DataObject
) -> None:
    wanted = sorted(site["networks"]) or ["a"]
    site["resources"] = {"a": {"networks": data.draw(st.sampled_from([None, [], wanted[:1], wanted])), "default": True}}
    for name, key, value in odd:
        site[name] = {**site[name], **({key: value} if isinstance(key, str) else {"a": value})}
    source = tmp_path_factory.mktemp("old")
    for name, content in site.items():
        (source / f"{name}.yaml").write_text(yaml.safe_dump(content, allow_unicode=True))
    target = source / "new"
    plan = plan_migration(source)
    problems: tuple[Problem, ...] = ()
    try:
        check(plan, Path("/nowhere"))
    except ConfigError as err:
        problems = err.problems
    event("refused" if problems else "passed")
    assert all(Path(each.file).parent == source and each.text for each in problems)
    if problems:
        return
    write(plan, target)
    found = load(target)
    assert set(found.templates) == set(site["templates"])
    assert not [each for each in found.warnings if "has no effect" in each.text]


def test_most_sites_pass(tmp_path: Path) -> None:
    """The property above must not hold because all is refused: each value alone is taken."""
    for number, (key, value) in enumerate(
        [
            ("image", "/dir/i"),
            ("image", False),
            ("user-data", {"swap": None}),
            ("instance-id", 7),
            ("persistent-drives", [{"/d": {"mmp": "no", "backup": "x"}}]),
            ("machine-type", None),
            ("emulator-cores", 2),
            ("kernel", "/boot/vmlinuz"),
        ]
    ):
        text = yaml.safe_dump({"t": {key: value}})
        migrate(old_site(tmp_path / f"old{number}", templates=text), tmp_path / f"new{number}")


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=12),
    st.sampled_from(["52:54:00", "no", "2020-01-01", "~", "<<", "a\nb\n", "\n", " x\n"]),
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@given(tree=trees, comment=st.text("abc #:\n", max_size=200))
def test_what_is_emitted_is_read_back(tree: Any, comment: str) -> None:
    paths = [(), ("a",), (0,), ("a", 0), (0, "a")]
    text = emit({"top": tree, "n": Written("22.10")}, {("top", *path): [comment.replace("\n", " ")] for path in paths})
    document = parse_document("x", text.encode())
    assert document.problems == []
    assert document.data["top"] == tree
    assert document.written["n",] == "22.10"
