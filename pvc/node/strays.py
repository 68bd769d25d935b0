# SPDX-License-Identifier: Apache-2.0
"""What is on this node of jobs that no ledger names: found by what all that pvc makes is called.

A ledger can be lost, or emptied, by a broken disk or by hand. Directories of jobs below run-dir are no sign of one:
they hold nothing up, and files of a user's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from pathlib import Path

from pvc.errors import ConfigError
from pvc.host import netlink, netns, nft, ovs, sysctl
from pvc.node.context import Context, read_boot_id
from pvc.plan import actions, names
from pvc.state.ledger import Ledger, Record, read_jobs

_NAME = re.compile(re.escape(names.netns(0)[:-1]) + r"([1-9]\d{0,9})")


def find(context: Context) -> Set[int]:
    """The jobs with something on this node and no ledger.

    :raise HostError: the node cannot be read.
    """
    with netlink.opened("list devices") as links:
        groups = set(links.groups())
    hands = context.hands()
    found = {
        *_of_names(netns.list_names()),
        *_of_names(name for _, name in nft.list_tables()),
        *(int(name) for name in _list(context.runtime_dir / "net") if name.isdecimal()),
        *sysctl.read_jobs(hands.sysctl_record),
        *ovs.read_jobs(hands.switch_record),
    }
    # Last: a set-up writes its ledger before anything else, and a tear-down removes it after all else.
    known = {*read_jobs(context.state_dir), *read_jobs(context.runtime_dir)}
    # A group has no room for all of a federation's job ids.
    nobodys = groups - {names.link_group(job_id) for job_id in {*known, *found}}
    grouped = {job_id for group in nobodys if (job_id := names.job_of_group(group)) is not None}
    return {*found, *grouped} - known


def collect(context: Context, job_id: int) -> list[actions.Action]:
    """The actions whose undoing removes what there is of a job, in order of creation.

    :raise HostError: the node cannot be read.
    """
    hands, steps = context.hands(), list[actions.Action]()
    with suppress(ConfigError):  # what it says of run-dir is not known then
        directory = Path(context.site().run_dir) / str(job_id)
        if directory.exists():
            steps.append(actions.MakeRunDir(str(directory), 0, 0))
    name = names.netns(job_id)
    if name in netns.list_names():
        steps.append(actions.AddNetns(name))
    group = names.link_group(job_id)
    with netlink.opened("list devices") as links:
        ports = tuple(links.groups().get(group, ()))
    if ports:
        steps.append(actions.AddSwitchTaps(group, 0, ports, vnet_header=False))
    if job_id in ovs.read_jobs(hands.switch_record):
        steps.append(actions.AddSwitchPorts(job_id, names.SWITCH, "", (), ports))
        steps.append(actions.LoadFlows(names.SWITCH, job_id, (), "", ()))
    tables = tuple((family, table) for family, table in nft.list_tables() if table == names.host_table(job_id))
    if tables:
        steps.append(actions.LoadRules(None, tables, ""))
    steps += [actions.SetSysctl(key, "", job_id) for key in sysctl.held(hands.sysctl_record, job_id)]
    service = context.runtime_dir / "net" / str(job_id)
    if service.exists():
        steps.append(actions.StartDnsmasq(name, str(service), "", ()))
    return steps


def _of_names(words: Iterable[str]) -> Iterator[int]:
    for word in words:
        if match := _NAME.fullmatch(word):
            yield int(match.group(1))


def _list(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []


def adopt(context: Context, job_id: int) -> bool:
    """Give a job without a ledger one, with what there is of it to be undone; whether there was anything.

    :raise PvcError: the node cannot be read, or the ledger cannot be written.
    """
    with context.job_lock(job_id):
        ledger = Ledger(context.state_dir, job_id)
        if ledger.exists():
            return False
        steps = collect(context, job_id)
        if steps:
            context.forgetful = True
            ledger.open(Record(job_id, 0, read_boot_id()))
            ledger.intend(steps)
        return bool(steps)
