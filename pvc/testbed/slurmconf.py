# SPDX-License-Identifier: Apache-2.0
"""The texts of /etc/slurm: pure. Every choice that is not obvious has its reason beside it."""

from __future__ import annotations

from collections.abc import Sequence

from pvc.testbed.model import CgroupMount

CONTROLLER = "login"
CPUS = 16
REAL_MEMORY_MIB = 16000
MEMORY_PER_CPU_MIB = 640

_CONF = """\
ClusterName={cluster}
SlurmctldHost={controller}({controller_address})
AuthType=auth/munge
CredType=cred/munge
SlurmUser=slurm
SlurmdUser=root
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType={proctrack}
TaskPlugin={task}
# The nodes pretend to have {cpus} CPUs, whatever this machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={memory_per_cpu_mib}
MpiDefault=none
# A node that was rebooted comes back by itself, whatever the reason for which it was down.
ReturnToService=2
# A busy machine is no lost one; but a node that was rebooted is told of the end of a job after twice this time only.
MessageTimeout=20
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
KillWait=5
MinJobAge=30
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=10000,bf_interval=1,bf_hetjob_immediate
# A job whose prolog failed is not tried again behind the user's back.
JobRequeue=0
PrologFlags={prolog_flags}
PrologEpilogTimeout=60
# Five times MessageTimeout, as newer releases ask for.
UnkillableStepTimeout=100
PlugStackConfig=/etc/slurm/plugstack.conf
MailProg=/bin/true
{nodes}
PartitionName=debug Nodes={node_names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def slurm_conf(*, cluster: str, controller_address: str, addresses: Sequence[tuple[str, str]], tracking: bool) -> str:
    """slurm.conf for nodes given as (name, address); without ``tracking`` Slurm tracks processes by parentage."""
    nodes = "\n".join(
        f"NodeName={name} NodeAddr={address} CPUs={CPUS} Boards=1 SocketsPerBoard=2 CoresPerSocket={CPUS // 2} "
        f"ThreadsPerCore=1 RealMemory={REAL_MEMORY_MIB} State=UNKNOWN"
        for name, address in addresses
    )
    return _CONF.format(
        cluster=cluster,
        controller=CONTROLLER,
        controller_address=controller_address,
        proctrack="proctrack/cgroup" if tracking else "proctrack/linuxproc",
        task="task/affinity,task/cgroup" if tracking else "task/affinity",
        prolog_flags="Alloc,NoHold",
        cpus=CPUS,
        memory_per_cpu_mib=MEMORY_PER_CPU_MIB,
        nodes=nodes,
        node_names=",".join(name for name, _ in addresses),
    )


def has_tracking(cgroups: Sequence[CgroupMount], controllers: Sequence[str]) -> bool:
    """Whether Slurm can use the cgroups: version 1 needs the freezer, version 2 refuses without its controllers."""
    if _is_unified(cgroups):
        return {"cpuset", "memory"} <= set(controllers)
    return "freezer" in controllers


def _is_unified(cgroups: Sequence[CgroupMount]) -> bool:
    return not any(mount.version == 1 for mount in cgroups)


def cgroup_conf(cgroups: Sequence[CgroupMount], controllers: Sequence[str]) -> str:
    """cgroup.conf for the hierarchies that the nodes mount, with the controllers that they have.

    ``CgroupPlugin=autodetect`` (22.05) looks for systemd's paths, so the version is pinned. slurmd always loads a
    plug-in: where no cgroups can be used it is that of version 1, which looks for none before they are needed.
    """
    tracking = has_tracking(cgroups, controllers)
    unified = tracking and _is_unified(cgroups)
    lines = ["CgroupPlugin=cgroup/v2", "IgnoreSystemd=yes"] if unified else ["CgroupPlugin=cgroup/v1"]
    if not unified:
        lines.append("CgroupMountpoint=/sys/fs/cgroup")
    for setting, possible in (
        # The nodes' cores are invented and start from the machine's first CPU on every node: confining jobs
        # to them would crowd all nodes onto that CPU (twice as slow on two).
        ("ConstrainCores", False),
        ("ConstrainRAMSpace", tracking and "memory" in controllers),
        ("ConstrainDevices", unified or (tracking and "devices" in controllers)),
    ):
        lines.append(f"{setting}={'yes' if possible else 'no'}")
    return "\n".join(lines) + "\n"


def plugstack_conf(*, plugin: str | None, pvc: str, pvc_node: str) -> str:
    """plugstack.conf that loads pvc's shim, or nothing while it is not built."""
    if plugin is None:
        return "# spank/pvc.so is not built or was not wanted\n"
    return f"required {plugin} pvc={pvc} pvc-node={pvc_node}\n"
