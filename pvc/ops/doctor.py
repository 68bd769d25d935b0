# SPDX-License-Identifier: Apache-2.0
"""``pvc doctor``: what a user's set-up lacks on the machine where clusters are asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pvc import codec, run
from pvc.config.load import find_site_dir, load_user_config
from pvc.errors import CommandError, ConfigError, HostError, JobError, PvcError
from pvc.model.site import SiteConfig
from pvc.ops.checkup import Finding, Verdict, examine, fail, ok, warn
from pvc.ops.control import in_parallel
from pvc.ops.jobdir import find_jobs_dir
from pvc.slurm.ask import ask
from pvc.slurm.nodes import expand_nodes
from pvc.slurm.submit import submission_environment

_SLURM_PROGRAMS = ("salloc", "sbatch", "srun", "squeue", "scancel", "scontrol")
_ASK_TIMEOUT_S = 120.0


def examine_user() -> Iterator[Finding]:
    """The machine and account that this process runs on and as."""
    yield from examine("slurm", _check_slurm)
    yield from examine("plug-in", _check_plugin)
    try:
        config = load_user_config()
    except ConfigError as err:
        yield fail("configuration", str(err), f"correct the files; pvc config check reads {find_site_dir()} and ~/.pvc")
        config = None
    if config is not None:
        found = config
        yield ok("configuration", f"{len(found.templates)} templates, {len(found.resource_sets)} resource sets")
        yield from examine("images", lambda: _check_images(found))
    yield from examine("keys", _check_keys)
    yield from examine("home", _check_home)


def _check_slurm() -> Iterator[Finding]:
    missing = [name for name in _SLURM_PROGRAMS if shutil.which(name) is None]
    if missing:
        yield fail("slurm", f"not installed: {', '.join(missing)}", "apt install slurm-client")
        return
    try:
        said = ask(["scontrol", "ping"], "ask for Slurm's controller")
    except JobError as err:
        yield fail("slurm", f"no controller answers: {err}", err.hint or "see slurm.conf and slurmctld's log")
        return
    up = [line for line in said.splitlines() if "is UP" in line]
    if up:
        yield ok("slurm", up[0].strip())
    else:
        yield fail("slurm", said.strip() or "no controller answers", "start slurmctld")


def _check_plugin() -> Iterator[Finding]:
    fix = "name pvc.so in plugstack.conf (see conf/plugstack.conf), then restart slurmd on all nodes"
    try:
        said = ask(["salloc", "--help"], "see the options of salloc")
    except JobError as err:
        yield fail("plug-in", f"salloc does not say its options: {err}", fix)
        return
    if "--pvc" in said:
        yield ok("plug-in", "salloc knows --pvc")
    else:
        yield fail("plug-in", "salloc does not know --pvc", fix)


def _check_images(config: SiteConfig) -> Iterator[Finding]:
    from pvc.images.repository import Repositories
    from pvc.images.resolve import resolve_template

    repositories = Repositories(list(config.repositories))
    for store in repositories.stores:
        if not store.path.exists():
            continue  # a user's repository is made by the first import
        if not os.access(store.path, os.R_OK | os.X_OK):
            yield fail("images", f"repository {store.name} ({store.path}) cannot be read", "chmod a+rX it")
    images = repositories.list()
    if not images:
        yield warn("images", "no repository has an image", "pvc image build debian, or pvc image import")
        return
    yield ok("images", ", ".join(sorted({found.image.name for found in images})))
    for template in config.templates.values():
        try:
            resolve_template(template, repositories)
        except PvcError as err:
            yield warn("images", f"template {template.name} cannot be used: {err}", err.find_hint())


def _check_keys() -> Iterator[Finding]:
    missing = [name for name in ("ssh", "ssh-keygen", "openssl") if shutil.which(name) is None]
    if missing:
        yield fail("keys", f"not installed: {', '.join(missing)}", "apt install openssh-client openssl")
        return
    own = sorted(path.name for path in (Path.home() / ".ssh").glob("*.pub"))
    each = "each cluster has a key of its own"
    yield ok("keys", f"{each}; VMs accept {', '.join(own)}, too" if own else each)


def _check_home() -> Iterator[Finding]:
    place = find_jobs_dir()
    probe = next(path for path in (place, *place.parents) if path.exists())
    if not os.access(probe, os.W_OK | os.X_OK):
        yield fail("home", f"{probe} cannot be written, and clusters are kept in {place}", f"chmod u+wx {probe}")
        return
    free_mib = shutil.disk_usage(probe).free >> 20
    if free_mib < 16:
        yield fail("home", f"{free_mib} MiB are free in {probe}", "make room")
    else:
        yield ok("home", f"{place} can be written; nodes must see it, too (pvc doctor --nodelist)")


def examine_nodes(nodes: str, pvc: str) -> list[Finding]:
    """``pvc doctor --node`` on each of these nodes, by a small job each.

    :raise HostError: that is not a list of nodes.
    """
    try:
        names = expand_nodes(nodes)
    except ValueError as err:
        raise HostError(str(err)) from None
    return [finding for found in in_parallel(lambda name: _ask_node(name, pvc), names) for finding in found]


def _ask_node(name: str, pvc: str) -> list[Finding]:
    argv = ["srun", "--quiet", f"--nodelist={name}", "--nodes=1", "--ntasks=1", "--job-name=pvc-doctor"]
    argv += ["--immediate=20", pvc, "doctor", "--node", "--json"]
    try:
        said = run.run(
            argv,
            env=submission_environment(os.environ, "srun")[0],
            timeout_s=_ASK_TIMEOUT_S,
            ok_codes=(0, HostError.exit_code),
        )
        found = codec.from_data(tuple[Finding, ...], codec.read_json(said))
    except CommandError as err:
        why = err.stderr.strip().splitlines()
        return [Finding("job", Verdict.FAIL, why[-1] if why else str(err), f"sinfo -R -n {name}", name)]
    except (ValueError, HostError, JobError) as err:
        return [Finding("job", Verdict.FAIL, f"no answer that can be understood: {err}", None, name)]
    return [replace(finding, where=name) for finding in found]
