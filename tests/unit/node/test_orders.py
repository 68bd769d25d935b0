# SPDX-License-Identifier: Apache-2.0
"""Root's orders: a node out of service and back, versions, and who may give orders."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from pvc import __version__
from pvc.cli import node as commands
from pvc.errors import ConfigError, HostError, JobError
from pvc.model.nodeview import Drain
from pvc.node import daemon, orders, setup
from pvc.node.context import Context, NodeName, read_boot_id
from pvc.state.drain import read_drain, remove_drain, write_drain
from pvc.state.ledger import Ledger, Record, Refusal
from tests.unit.config.sites import write_site
from tests.unit.plan.worlds import job_of

REASON = "new switch until noon"


@pytest.fixture
def context(context: Context) -> Context:
    write_site(context.conf_dir)
    return context


@pytest.fixture
def serving(context: Context) -> Iterator[Context]:
    """A daemon's loop at sockets of its own; nothing else of a daemon runs."""
    serving = daemon.Daemon(context, NodeName("n1"))
    path = context.runtime_dir / orders.SOCKET
    roots, users = daemon._listen(path.with_name(path.name + orders.ROOTS_OWN), 0o600), daemon._listen(path, 0o666)
    near, far = socket.socketpair()
    with roots, users, near, far:
        thread = threading.Thread(target=serving._accept, args=(roots, users, near))
        thread.start()
        try:
            yield context
        finally:
            serving._ending.set()
            far.send(b"x")
            thread.join()


def run(monkeypatch: pytest.MonkeyPatch, context: Context, *words: str) -> str:
    """What a command of pvc-node prints."""
    monkeypatch.setattr(commands, "_need_root", lambda: None)
    monkeypatch.setattr("pvc.log.setup", lambda *_, **__: None)
    places = {"conf": context.conf_dir, "state": context.state_dir, "runtime": context.runtime_dir}
    options = [text for name, path in places.items() for text in (f"--{name}-dir", os.fspath(path))]
    done = CliRunner().invoke(commands.cli, [*options, *words], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def refusal_of(context: Context, job_id: int) -> Refusal:
    record = context.read_record(job_id)
    assert record is not None
    assert record.refusal is not None
    return record.refusal


def test_a_drained_node_refuses_with_the_reason_and_is_no_fault(context: Context) -> None:
    write_drain(context.state_dir, Drain(REASON, 1.0))
    assert setup.set_up(context, job_of(1, 1, job_id=12), "1;cpus=1;nat:1").startswith("refused: ")
    refusal = refusal_of(context, 12)
    assert refusal.exit_code == JobError.exit_code
    assert refusal.message == f"{job_of(1, 1).node} is out of service for virtual clusters: {REASON}"
    assert "--exclude=" in (refusal.hint or "")


def test_a_cluster_that_runs_is_there_on_a_drained_node(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(1, 1, job_id=12)
    Ledger(context.state_dir, 12).open(Record(12, job.uid, read_boot_id()))
    monkeypatch.setattr(Ledger, "read_ready", lambda _: object())
    write_drain(context.state_dir, Drain(REASON, 1.0))
    assert setup.set_up(context, job, "", again=False) == "was there"


def test_a_drain_outlives_pvc_node_and_is_read_once(context: Context) -> None:
    write_drain(context.state_dir, Drain(REASON, 1.0))
    for each in (context, Context(context.conf_dir, context.state_dir, context.runtime_dir)):
        with pytest.raises(JobError, match=REASON):
            each.check_service("n1")
    assert remove_drain(context.state_dir)
    assert not remove_drain(context.state_dir)
    with pytest.raises(JobError, match=REASON):
        context.check_service("n1")
    orders.obey(context, "drain")
    context.check_service("n1")


def test_a_drain_that_is_not_understood_still_drains(context: Context) -> None:
    context.state_dir.mkdir()
    (context.state_dir / "drain.json").write_text("{")
    with pytest.raises(JobError, match=r"drain\.json cannot be read"):
        context.check_service("n1")


@pytest.mark.allow_sockets  # a daemon's own
def test_commands_reach_the_daemon(serving: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    serving.check_service("n1")
    assert REASON in run(monkeypatch, serving, "drain", "--node", "n1", f" {REASON}\n")
    assert (read_drain(serving.state_dir) or Drain("", 0.0)).reason == REASON
    with pytest.raises(JobError, match=REASON):
        serving.check_service("n1")
    assert "set up again on n1" in run(monkeypatch, serving, "undrain", "--node", "n1")
    serving.check_service("n1")
    assert "all the time" in run(monkeypatch, serving, "undrain", "--node", "n1")


@pytest.mark.allow_sockets  # a daemon's own
def test_the_daemon_tells_its_state(serving: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    state = orders.tell_daemon(serving.runtime_dir, "state")
    assert state is not None
    assert (state.version, state.pid) == (__version__, os.getpid())
    monkeypatch.setattr("pvc.slurm.job.read_settings", lambda: {"PlugStackConfig": "/nowhere/plugstack.conf"})
    said = json.loads(run(monkeypatch, serving, "version", "--json"))
    assert (said["pvc"], said["daemon"], said["plugins"]) == (__version__, __version__, {})
    assert "/nowhere/plugstack.conf cannot be read" in said["problems"][0]


def test_without_a_daemon_the_next_one_knows(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert orders.tell_daemon(context.runtime_dir, "state") is None
    run(monkeypatch, context, "drain", "--node", "n1", REASON)
    with pytest.raises(JobError, match=REASON):
        context.check_service("n1")


def refuse(*_: object) -> None:
    raise FileNotFoundError


@pytest.mark.allow_sockets  # a daemon's own
def test_nobody_else_gives_orders(serving: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(HostError, match="does not know this request"):
        orders.tell_daemon(serving.runtime_dir, "drain")


@pytest.mark.allow_sockets  # a daemon's own
def test_a_reload_by_command(serving: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    before = serving.config()
    write_site(serving.conf_dir, networks="nat:\n  type: ethernet\n  colour: blue\n")
    with pytest.raises(ConfigError, match=r"networks\.yaml:3: nat\.colour") as caught:
        run(monkeypatch, serving, "reload")
    assert "stays in force" in (caught.value.find_hint() or "")
    assert serving.config() is before
    state = orders.tell_daemon(serving.runtime_dir, "state")
    assert state is not None
    assert "networks.yaml:3" in state.configuration.refusal
    write_site(serving.conf_dir, batch="settings:\n  etcd-servers: [e2]\n  run-dir: /scratch\n")
    said = run(monkeypatch, serving, "reload")
    assert "configuration: as of " in said
    assert "batch.yaml:3: settings.run-dir: '/scratch' counts when pvc-node starts again" in said
    assert serving.config().batch.etcd.servers == ("e2",)


def test_a_signal_reloads(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    """As does SIGHUP, after which the loop has a byte to read."""
    serving = daemon.Daemon(context, NodeName("n1"))
    context.config()
    write_site(context.conf_dir, batch="settings: {}\n")
    serving._heed_signal()
    assert context.config_state().refused_at is None
    serving._reload.set()
    serving._heed_signal()
    assert context.config_state().refused_at is not None
    assert "batch.yaml" in caplog.text
    assert not serving._reload.is_set()


def test_a_reload_without_a_daemon_says_whether_the_files_are_right(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert "no pvc-node serves" in run(monkeypatch, context, "reload")
    write_site(context.conf_dir, batch="settings: {}\n")
    with pytest.raises(ConfigError):
        run(monkeypatch, Context(context.conf_dir, context.state_dir, context.runtime_dir), "reload")
