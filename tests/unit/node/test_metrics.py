# SPDX-License-Identifier: Apache-2.0
"""Metrics as Prometheus' own parser reads them, who is served, and that what is shipped asks for no others."""

from __future__ import annotations

import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pvc import __version__
from pvc.config.batch import parse_listener
from pvc.errors import ConfigError, HostError, JobError, Problem, StateError, UsageError
from pvc.model.netview import Fault, Upkeep
from pvc.model.node import NodeGrant, VmGrant
from pvc.model.nodeview import Drain
from pvc.node import daemon, metrics, requests, scrape
from pvc.node.context import Context, NodeName
from pvc.state.drain import OutOfServiceError, write_drain
from pvc.state.ledger import Ledger, Ready, Record, Refusal
from tests.unit.config.sites import write_site

ROOT = Path(__file__).parents[3]
VALUES = {
    "SLURM_JOB_UID": "1000",
    "SLURM_JOB_GID": "1000",
    "SLURM_NODELIST": "n1",
    "SLURM_JOB_CPUS_PER_NODE": "4",
    "SLURMD_NODENAME": "n1",
}


@pytest.fixture
def context(context: Context) -> Context:
    write_site(context.conf_dir)
    return context


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float | None:
    return read(text).get((name, tuple(sorted(labels.items()))))


def add_job(context: Context, job_id: int, vms: int, uid: int = 1000, *, standing: tuple[Fault, ...] = ()) -> None:
    """As the ledger of a job that is set up."""
    ledger = Ledger(context.state_dir, job_id)
    ledger.open(Record(job_id, uid, "boot", uplink_slot=job_id, ports=(60000 + job_id, 61000 + job_id)))
    grants = tuple(VmGrant(rank, (), {}) for rank in range(vms))
    ledger.write_ready(Ready(NodeGrant(job_id, "n1", "10.0.0.1", "/tmp", grants), "", ()))
    ledger.write_upkeep(Upkeep(standing=standing))


def test_prometheus_parses_what_there_is(context: Context) -> None:
    context.config()
    add_job(context, 12, 3)
    add_job(context, 13, 2, standing=(Fault("it is gone"),))
    Ledger(context.state_dir, 14).open(Record(14, 1001, "boot", refusal=Refusal(4, "no", None)))
    Ledger(context.state_dir, 15).open(Record(15, 1001, "boot"))
    Ledger(context.state_dir, 16).path.mkdir()
    (Ledger(context.state_dir, 16).path / "record.json").write_text("{")
    text = scrape.render(context)
    assert [value(text, "pvc_vms", state=state) for state in ("ready", "broken")] == [3, 2]
    phases = ("ready", "refused", "unfinished", "unreadable")
    assert [value(text, "pvc_ledger_records", phase=phase) for phase in phases] == [2, 1, 1, 1]
    assert [value(text, "pvc_leases", kind=kind) for kind in ("ports", "uplinks", "devices")] == [4, 2, 0]
    assert value(text, "pvc_build_info", version=__version__) == 1
    assert value(text, "pvc_drained") == value(text, "pvc_config_refused") == 0
    assert (value(text, "pvc_config_read_timestamp_seconds") or 0) > 1.7e9
    assert "user" not in re.sub("^#.*", "", text, flags=re.MULTILINE)


def test_families_are_what_is_given(context: Context) -> None:
    """Also where nothing has happened yet, and in the kinds that they say."""
    found = {family.name: family.type for family in text_string_to_metric_families(scrape.render(context))}
    assert found == {name: family.kind for name, family in metrics.FAMILIES.items()}


def test_set_ups_and_tear_downs_are_counted_by_their_time_and_class(context: Context) -> None:
    write_drain(context.state_dir, Drain("new switch", 1.0))
    code, said = requests.handle(context, "setup", {**VALUES, "SLURM_JOB_ID": "12", "SPANK_PVC_REQUEST": "1;nat:1"})
    assert (code, said.startswith("refused: ")) == (0, True)
    requests.handle(context, "ensure", {**VALUES, "SLURM_JOB_ID": "x"})
    context.metrics.observe("teardown", 0.07)
    context.metrics.observe("teardown", 100.0)
    text = scrape.render(context)
    assert value(text, "pvc_setup_seconds_count") == 1
    assert value(text, "pvc_failures_total", **{"operation": "setup", "class": "drained"}) == 1
    assert value(text, "pvc_failures_total", **{"operation": "setup", "class": "node"}) == 1
    assert value(text, "pvc_drained") == 1
    buckets = [value(text, "pvc_teardown_seconds_bucket", le=le) for le in ("0.05", "0.1", "60.0", "+Inf")]
    assert buckets == [0, 1, 1, 2]
    assert value(text, "pvc_teardown_seconds_sum") == pytest.approx(100.07)


def test_users_are_named_where_the_site_asks_for_it(context: Context) -> None:
    write_site(context.conf_dir, batch="settings:\n  etcd-servers: [e1]\n  metrics-users: yes\n")
    add_job(context, 12, 3, uid=0)
    add_job(context, 13, 2, uid=0)
    add_job(context, 14, 1, uid=4000000000)
    text = scrape.render(context)
    assert value(text, "pvc_user_vms", user="root") == 5
    assert value(text, "pvc_user_vms", user="4000000000") == 1


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (OutOfServiceError("x"), "drained"),
        (UsageError("x"), "usage"),
        (ConfigError([Problem("f", 1, "k", "x")]), "configuration"),
        (JobError("x"), "slurm"),
        (StateError("x"), "store"),
        (HostError("x"), "node"),
        (OSError(28, "No space left on device"), "shortage"),
        (KeyError("x"), "internal"),
    ],
)
def test_failures_are_classed_by_who_must_act(error: Exception, word: str) -> None:
    assert metrics.classify(error) == word


def test_labels_of_any_bytes_are_parsed() -> None:
    odd = 'a"b\\c\nd'
    assert value(metrics.encode([("pvc_user_vms", {"user": odd}, 1)]), "pvc_user_vms", user=odd) == 1


def ask(path: Path, request: bytes) -> tuple[str, str]:
    """(status line, body)"""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(20)
        link.connect(str(path))
        link.sendall(request)
        data = b""
        while chunk := link.recv(65536):
            data += chunk
    head, _, body = data.decode().partition("\r\n\r\n")
    return head.splitlines()[0] if head else "", body


@pytest.mark.allow_sockets  # a daemon's own
def test_the_daemon_serves_them(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "metrics.sock"
    write_site(context.conf_dir, batch=f"settings:\n  etcd-servers: [e1]\n  metrics-address: {path}\n")
    serving = daemon.Daemon(context, NodeName("n1"))
    near, far = socket.socketpair()
    with (
        daemon._listen(tmp_path / "roots", 0o600) as roots,
        daemon._listen(tmp_path / "users", 0o666) as users,
        serving._open_metrics() as listener,
        near,
        far,
    ):
        assert path.stat().st_mode & 0o777 == 0o600
        thread = threading.Thread(target=serving._accept, args=(roots, users, near, listener))
        thread.start()
        try:
            status, body = ask(path, b"GET /metrics HTTP/1.1\r\nHost: n1\r\n\r\n")
            assert status == "HTTP/1.1 200 OK"
            assert value(body, "pvc_drained") == 0
            assert ask(path, b"HEAD /metrics HTTP/1.1\r\n\r\n") == ("HTTP/1.1 200 OK", "")
            assert ask(path, b"GET /etc/passwd HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 404 Not Found"
            assert ask(path, b"POST /metrics HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 405 Method Not Allowed"
            assert ask(path, b"\xff\0\r\n\r\n")[0] == "HTTP/1.1 400 Bad Request"
        finally:
            serving._ending.set()
            far.send(b"x")
            thread.join()
    assert not path.exists()


@pytest.mark.allow_sockets  # listeners of its own
def test_who_keeps_all_places_keeps_nobody_but_scrapers_out(context: Context) -> None:
    scrapes = scrape.Scrapes(context)
    pairs = [socket.socketpair() for _ in range(scrape._MOST + 1)]
    assert [scrapes.admit(near) for near, _ in pairs] == [*([True] * scrape._MOST), False]
    assert pairs[-1][1].recv(100) == b""
    for _, far in pairs:
        far.close()


@pytest.mark.allow_sockets  # a listener of its own
def test_without_metrics_clusters_are_served_all_the_same(
    context: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("somebody's file")
    batch = f"settings:\n  etcd-servers: [e1]\n  metrics-address: {tmp_path / 'taken'}\n"
    write_site(context.conf_dir, batch=batch)
    with daemon.Daemon(context, NodeName("n1"))._open_metrics() as listener:
        assert listener is None
    assert "no metrics are served: cannot serve metrics at" in caplog.text
    assert (tmp_path / "taken").read_text() == "somebody's file"


def test_they_are_off_by_default(context: Context) -> None:
    with daemon.Daemon(context, NodeName("n1"))._open_metrics() as listener:
        assert listener is None


@pytest.mark.parametrize("text", ["/run/pvc/metrics.sock", "127.0.0.1:9717", "[::1]:9717", "0.0.0.0:1"])
def test_addresses(text: str) -> None:
    assert parse_listener(text) == text


@pytest.mark.parametrize(
    "text", ["metrics.sock", "9717", "localhost:9717", "::1:9717", "[127.0.0.1]:9717", "127.0.0.1:0", "/" + 110 * "x"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_listener(text)


def names_of(expression: str) -> set[str]:
    return set(re.findall(r"\bpvc_\w+", expression))


def expressions() -> list[str]:
    """All that the alert rules and the dashboard ask for."""
    rules: Any = yaml.safe_load((ROOT / "conf/prometheus/pvc-alerts.yaml").read_text())
    board = json.loads((ROOT / "conf/grafana/pvc.json").read_text())
    asked = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return asked + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_rules_and_dashboard_use_metrics_that_there_are(context: Context) -> None:
    context.config()
    context.metrics.fail("setup", HostError("x"))
    given = {name for name, _ in read(scrape.render(context))}
    assert {name for each in expressions() for name in names_of(each)} - given == set()
    assert len(expressions()) > 15


def test_rules_ask_for_classes_and_states_that_there_are(context: Context) -> None:
    known = {word for _, word in metrics._CLASSES} | {"shortage", "internal"}
    known |= {text for _, labels in read(scrape.render(context)) for key, text in labels if key in ("state", "phase")}
    for each in expressions():
        for found in re.findall(r'(?:class|state|phase)=~?"([^"]+)"', each):
            assert set(found.split("|")) <= known, each
