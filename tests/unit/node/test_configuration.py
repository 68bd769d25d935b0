# SPDX-License-Identifier: Apache-2.0
"""The configuration in force: read once, replaced as a whole or not at all."""

from __future__ import annotations

import os

import pytest

from pvc.errors import ConfigError
from pvc.node.context import Context
from tests.unit.config.sites import ethernet, write_site

TWO = ethernet() + "lan:\n  type: bridged\n  settings:\n    host-bridge: br0\n    tap-prefix: lan\n"


@pytest.fixture
def context(context: Context) -> Context:
    write_site(context.conf_dir)
    return context


def test_files_that_change_have_no_effect_before_a_reload(context: Context) -> None:
    assert context.config_state().read_at is None
    before = context.config()
    assert not context.config_state().changed
    write_site(context.conf_dir, networks=ethernet(mtu=1400))
    os.utime(context.conf_dir / "networks.yaml", ns=(1, 1))
    assert context.config() is before
    assert context.config_state().changed
    context.reload()
    assert context.config().ethernets["nat"].mtu == 1400
    assert not context.config_state().changed
    assert context.config_state().kept == ()


def test_what_is_wrong_is_refused_whole_and_all_of_it_is_told(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    before = context.config()
    write_site(context.conf_dir, networks=ethernet(mtu=1400) + "    colour: blue\n", batch="settings:\n  accel: kvm\n")
    with pytest.raises(ConfigError) as caught:
        context.reload()
    text = str(caught.value)
    assert f"{context.conf_dir}/networks.yaml:6: nat.settings.colour" in text
    assert f"{context.conf_dir}/batch.yaml:" in text
    assert "etcd-servers" in text
    assert "stays in force" in (caught.value.find_hint() or "")
    assert context.config() is before
    state = context.config_state()
    assert (state.refusal, state.refused_at is not None) == (text, True)
    assert "networks.yaml:6" in caplog.text
    write_site(context.conf_dir)
    context.reload()
    assert (context.config_state().refusal, context.config_state().refused_at) == ("", None)


def test_none_is_in_force_until_the_files_are_right(context: Context) -> None:
    write_site(context.conf_dir, batch="settings: {}\n")
    for _ in range(2):
        with pytest.raises(ConfigError):
            context.config()
    write_site(context.conf_dir)
    assert context.config().batch.etcd.servers == ("e1",)


def test_what_running_clusters_are_found_by_is_kept_and_named(context: Context) -> None:
    write_site(context.conf_dir, networks=TWO)
    context.config()
    batch = "settings:\n  etcd-servers: [e2]\n  run-dir: /scratch\n  etcd-prefix: other\n"
    networks = TWO.replace("dev-prefix: nat", "dev-prefix: net").replace("tap-prefix: lan", "tap-prefix: tap")
    write_site(context.conf_dir, batch=batch, networks=networks)
    context.reload()
    config = context.config()
    assert config.batch.etcd.servers == ("e2",)
    assert (config.batch.etcd.prefix, config.batch.run_dir) == ("pvc", "/var/tmp/pvc")
    assert config.ethernets["nat"].dev_prefix == "nat"
    assert [text.partition(": ")[0].rpartition("/")[2] for text in context.config_state().kept] == [
        "batch.yaml:3", "batch.yaml:4", "networks.yaml:4", "networks.yaml:9"
    ]  # fmt: skip
    assert "'net' counts when pvc-node starts again; until then it is 'nat'" in str(context.config_state().kept)
    # What is still not as the files say is named once more by the next reload
    context.reload()
    assert len(context.config_state().kept) == 4


def test_a_kept_prefix_is_no_other_networks(context: Context) -> None:
    write_site(context.conf_dir, networks=TWO)
    before = context.config()
    swapped = TWO.replace("dev-prefix: nat", "dev-prefix: new").replace("lan:\n  type", "wan:\n  type")
    write_site(context.conf_dir, networks=swapped.replace("tap-prefix: lan", "tap-prefix: nat"))
    with pytest.raises(ConfigError, match=r"networks\.yaml:9: .*'nat' is that of network 'nat' until pvc-node starts"):
        context.reload()
    assert context.config() is before


def test_the_next_question_to_the_store_goes_where_the_files_say(context: Context) -> None:
    first = context.store()
    assert context.store() is first
    write_site(context.conf_dir, batch="settings:\n  etcd-servers: [e2]\n")
    context.reload()
    assert context.store() is not first
    assert vars(context.store())["_settings"].servers == ("e2",)


def test_a_process_that_read_nothing_yet_reads_at_a_reload(context: Context) -> None:
    context.reload()
    assert context.config_state().read_at is not None
