# SPDX-License-Identifier: Apache-2.0
"""pvc-node: the root side's command. Users have no use for it."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

import click

from pvc import __version__, log
from pvc.cli import output
from pvc.codec import to_data
from pvc.errors import HostError, JobError, PvcError, UsageError, is_shortage
from pvc.model.host import JobFacts
from pvc.node.context import Context, NodeName
from pvc.node.orders import tell_daemon
from pvc.texts import clean_text

LOG = logging.getLogger("pvc.node")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pvc-node")
@click.option(
    "--conf-dir", help="The configuration.", type=click.Path(path_type=Path), default="/etc/pvc", show_default=True
)
@click.option(
    "--state-dir",
    help="What is remembered across a restart of the node.",
    type=click.Path(path_type=Path),
    default="/var/lib/pvc",
    show_default=True,
)
@click.option(
    "--runtime-dir",
    help="Socket, locks and name servers' files.",
    type=click.Path(path_type=Path),
    default="/run/pvc",
    show_default=True,
)
@click.option("-v", "--verbose", count=True, help="Say more; twice: every step.")
@click.pass_context
def cli(ctx: click.Context, conf_dir: Path, state_dir: Path, runtime_dir: Path, verbose: int) -> None:
    """Set up and tear down virtual clusters on this node; called by Slurm's prolog and epilog."""
    log.setup(logging.DEBUG if verbose > 1 else logging.INFO, timestamps=True, sparing=True, journal_as="pvc-node")
    ctx.obj = Context(conf_dir, state_dir, runtime_dir)


_node_option = click.option("--node", default=None, help="This node's name in Slurm, if slurm.conf does not tell.")


@cli.command()
@_node_option
@click.pass_obj
def serve(context: Context, node: str | None) -> None:
    """Serve prologs, epilogs and supervisors until told to stop."""
    from pvc.node.daemon import Daemon

    _need_root()
    Daemon(context, NodeName(node)).serve()


@cli.command()
@click.pass_obj
def setup(context: Context) -> None:
    """Set up the job that the environment describes, then leave a daemon for its supervisors."""
    _run_cold(context, "setup")
    _leave_daemon(context)


@cli.command()
@click.pass_obj
def ensure(context: Context) -> None:
    """The same as setup, but for a job that is set up already or was refused."""
    _run_cold(context, "ensure")
    _leave_daemon(context)


@cli.command()
@click.pass_obj
def teardown(context: Context) -> None:
    """Undo what was set up for the job that the environment names (SLURM_JOB_ID)."""
    from pvc.node.sweeper import is_clean

    _run_cold(context, "teardown")
    if not is_clean(context):
        _leave_daemon(context)  # which removes what users have left, however long that takes


@cli.command()
@_node_option
@click.pass_obj
def reclaim(context: Context, node: str | None) -> None:
    """Undo what belongs to no job any more, and remove all that ended jobs left in their directories."""
    from pvc.node.reclaim import reclaim as reclaim_jobs
    from pvc.node.sweeper import explain, sweep

    _need_root()
    context.prepare()
    outcome = reclaim_jobs(context, NodeName(node).read())
    if not outcome.clean and not outcome.unasked:
        output.say("jobs with a virtual cluster are still here", error=True)
    swept = sweep(context)
    if not swept.clean:
        text = explain(swept.error) if swept.error else "another process removes what ended jobs left"
        output.say(text, error=True)
    if outcome.unasked is not None:
        raise JobError(f"{outcome.unasked}; what belongs to no job is not known", hint="try again when Slurm answers")


@cli.command()
@_node_option
@click.option("--site", is_flag=True, help="The clusters of all nodes, as the state store and Slurm have them.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def status(context: Context, node: str | None, site: bool, as_json: bool) -> None:
    """Show whose clusters are on this node, what they hold of how much, and what is left over."""
    from pvc.cli import nodeview
    from pvc.node.overview import view_node, view_site

    _need_root()
    if site:
        clusters = view_site(context)
        output.print_json(clusters) if as_json else nodeview.print_site(clusters)
        return
    view = view_node(context, NodeName(node).read())
    output.print_json(view) if as_json else nodeview.print_node(view)


@cli.command()
@_node_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def repair(context: Context, node: str | None, yes: bool) -> None:
    """Remove what is left over on this node, after a question for each job; exit code 6 when something stays."""
    from pvc.cli import nodeview

    _need_root()
    context.prepare()
    if not nodeview.repair(context, NodeName(node).read(), yes=yes):
        raise SystemExit(HostError.exit_code)


@cli.command()
@_node_option
@click.argument("reason")
@click.pass_obj
def drain(context: Context, node: str | None, reason: str) -> None:
    """Set up no new cluster on this node, whose users are told REASON; running ones go on, also through a restart."""
    from pvc.model.nodeview import Drain
    from pvc.state.drain import write_drain

    _need_root()
    told = clean_text(reason).strip()
    if not told:
        raise UsageError("a node is drained for a reason, which users are told", hint="pvc-node drain 'new switch'")
    try:
        write_drain(context.state_dir, Drain(told, time.time()))
    except OSError as err:
        raise HostError("this node cannot be drained") from err
    tell_daemon(context.runtime_dir, "drain")
    output.say(f"no new virtual cluster is set up on {NodeName(node).read()}: {told}")


@cli.command()
@_node_option
@click.pass_obj
def undrain(context: Context, node: str | None) -> None:
    """Set up clusters on this node again."""
    from pvc.state.drain import remove_drain

    _need_root()
    try:
        drained = remove_drain(context.state_dir)
    except OSError as err:
        raise HostError("this node stays drained") from err
    tell_daemon(context.runtime_dir, "drain")
    word = "are set up again" if drained else "were set up all the time"
    output.say(f"virtual clusters {word} on {NodeName(node).read()}")


@cli.command()
@click.pass_obj
def reload(context: Context) -> None:
    """Let the pvc-node that serves take the configuration as it is now, if all of it is right; else nothing changes."""
    from pvc.cli import nodeview

    _need_root()
    state = tell_daemon(context.runtime_dir, "reload")
    if state is None:
        context.config()
        output.say("the configuration is right; no pvc-node serves here, so each job's prolog reads it")
        return
    nodeview.print_configuration(state.configuration)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.pass_obj
def version(context: Context, as_json: bool) -> None:
    """Show the versions of pvc, of the pvc-node that serves, of records, and of the plug-in that slurmd loads."""
    from pvc.cli import nodeview

    view = nodeview.read_versions(context)
    output.print_json(view) if as_json else nodeview.print_versions(view)


@cli.command()
@click.option("--request", "request_text", required=True, help="As in SPANK_PVC_REQUEST: 1;cpus=2;nat:4.")
@click.option("--nodelist", required=True, help="As in SLURM_NODELIST.")
@click.option("--cpus-per-node", required=True, help="As in SLURM_JOB_CPUS_PER_NODE.")
@click.option("--node", required=True, help="The node of NODELIST whose share is printed.")
@click.option("--job", type=int, default=1, show_default=True, help="A job id; names of devices depend on it.")
@click.option("--gres", default=None, help="What Slurm gives of what the node has: gpu:1(IDX:2);gpu:4.")
@click.option("--json", "as_json", is_flag=True, help="The whole plan, not a summary.")
@click.pass_obj
def plan(
    context: Context,
    request_text: str,
    nodelist: str,
    cpus_per_node: str,
    node: str,
    job: int,
    gres: str | None,
    as_json: bool,
) -> None:
    """Print what a set-up would do on NODE, and do nothing."""
    from pvc.node.setup import plan_dry
    from pvc.parse import parse_cpus_per_node
    from pvc.slurm.gres import parse_job_gres
    from pvc.slurm.nodes import expand_nodes

    try:
        nodes, cpus = expand_nodes(nodelist), parse_cpus_per_node(cpus_per_node)
        given = parse_job_gres(gres) if gres is not None else None
        facts = JobFacts(job, os.getuid(), os.getgid(), node, nodes, cpus, gres=given)
    except ValueError as err:
        raise UsageError(str(err)) from err
    planned = plan_dry(context, facts, request_text)
    if as_json:
        steps = [{"action": type(step).__name__, **to_data(step)} for step in planned.actions]
        output.say(
            json.dumps({"grant": to_data(planned.grant), "taps": to_data(planned.taps), "actions": steps}, indent=2)
        )
        return
    for step in planned.actions:
        output.say(type(step).__name__)


def _run_cold(context: Context, verb: str) -> None:
    from pvc.node import requests
    from pvc.node.facts import KEYS

    _need_root()
    values = {key: os.environ[key] for key in KEYS if key in os.environ}
    with requests.naming(values):
        code, message = requests.handle(context, verb, values)
    if code:
        output.say(clean_text(message), error=True)
        raise SystemExit(code)


def _leave_daemon(context: Context) -> None:
    # Taps are handed out by a live process; when there is none, this set-up has to leave one behind.
    from pvc import run
    from pvc.node.orders import is_serving

    if is_serving(context.runtime_dir):
        return
    argv = [sys.executable, "-I", "-m", "pvc.cli.node", "--conf-dir", os.fspath(context.conf_dir)]
    argv += ["--state-dir", os.fspath(context.state_dir), "--runtime-dir", os.fspath(context.runtime_dir), "serve"]
    try:
        run.spawn(argv, stdout=run.DEVNULL, stderr=run.DEVNULL, new_session=True, cwd=Path("/"))
    except HostError as err:
        if not is_shortage(err):
            raise
        LOG.error("%s", err)  # users have all processes: the next one that is asked tries again


def _need_root() -> None:
    if os.geteuid() != 0:
        raise HostError("pvc-node needs root", hint="users call pvc")


def main() -> None:
    """Entry point: errors become a line and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as err:
        raise SystemExit(err.exit_code) from None
    except click.ClickException as err:
        err.show()
        raise SystemExit(UsageError.exit_code) from None
    except PvcError as err:
        output.say(f"pvc-node: {err}", error=True)
        hint = err.find_hint()
        if hint:
            output.say(f"hint: {clean_text(hint)}", error=True)
        raise SystemExit(err.exit_code) from None


if __name__ == "__main__":
    main()
