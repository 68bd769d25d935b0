# SPDX-License-Identifier: Apache-2.0
"""Each recipe of pvc's, built, booted as VMs of a user's job, and used for what it is there for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pvc.images import build
from pvc.images.recipe import find_recipe, load_lineage
from pvc.images.repository import Repositories
from pvc.images.transfer import Incoming
from pvc.model.site import Repository
from pvc.testbed.images import find_cache
from tests.slurm.clusters import Cluster
from tests.slurm.testbed import Testbed

BOOT_S = 900.0
# Services of the guest come up after ssh: ask until they answer, one minute each time.
UNTIL = "for try in $(seq 20); do timeout 60 {} && exit 0; sleep 3; done; exit 1"


VMS = ("vm0", "vm1")


def boot(tb: Testbed, name: str, count: int) -> Cluster:
    lineage = load_lineage(find_recipe(name))
    site = Repositories([Repository("site", str(tb.place.state_dir / "images"))])
    with build.built(lineage, print, cache=find_cache() / "images") as made:
        incoming = Incoming(made.disk, name, kernel=made.kernel, initrd=made.initrd, append=made.append)
        site.import_file(incoming, lambda *_: None)
    cluster = Cluster(tb, f"{name}:{count}", "-m", "700M").wait_running()
    try:
        tb.run(["pvc", "wait", "--timeout", f"{BOOT_S:g}s", "-j", str(cluster.job_id)], timeout=BOOT_S + 60)
    except BaseException:
        cluster.close()
        raise
    return cluster


def ask(tb: Testbed, cluster: Cluster, vm: str, command: str) -> str:
    argv = ["pvc", "ssh", "-j", str(cluster.job_id), vm, "--", command]
    return tb.run(argv, timeout=1500).out


@pytest.fixture
def cluster(tb: Testbed, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    found = boot(tb, *request.param)
    yield found
    found.close()


@pytest.mark.parametrize("cluster", [("mpi", 2)], indirect=True)
@pytest.mark.parametrize("user", ["root", "debian"])
def test_mpi_ranks_are_on_all_vms(tb: Testbed, cluster: Cluster, user: str) -> None:
    ask(tb, cluster, "vm0", UNTIL.format("test -s /run/pvc-cluster/names"))
    command = "mpirun -np 2 --map-by node --hostfile /run/pvc-cluster/names mpi-hello"
    out = ask(tb, cluster, "vm0", f"su - {user} -c '{command}'")
    assert sorted(out.splitlines()) == [f"rank {i} of 2 on vm{i}, sum of ranks 1" for i in (0, 1)]


@pytest.mark.parametrize("cluster", [("slurm", 2)], indirect=True)
def test_slurm_runs_jobs_on_all_vms(tb: Testbed, cluster: Cluster) -> None:
    out = ask(tb, cluster, "vm0", UNTIL.format("srun -N2 hostname"))
    assert sorted(out.split()) == ["vm0", "vm1"]
    # The others have no configuration but the one that vm0 gave them.
    assert sorted(ask(tb, cluster, "vm1", UNTIL.format("srun -N2 hostname")).split()) == ["vm0", "vm1"]
    assert ask(tb, cluster, "vm1", "sinfo -h -o %D").split() == ["2"]
    # A batch job of the user, in a cgroup of its own.
    script = "#!/bin/sh\nid -un\ncat /proc/self/cgroup\n"
    command = f"cd /tmp && printf '{script}' > job && sbatch -w vm1 -W -o /tmp/job.out job"
    ask(tb, cluster, "vm0", f'su - debian -c "{command}"')
    user, group = ask(tb, cluster, "vm1", "cat /tmp/job.out").split()
    assert user == "debian"
    assert "/job_" in group
    # One key for all, which is not that of another cluster, nor one from the package.
    keys = {ask(tb, cluster, vm, "stat -c %a%U /etc/munge/munge.key; sha256sum < /etc/munge/munge.key") for vm in VMS}
    assert len(keys) == 1
    assert next(iter(keys)).startswith("600munge\n")


@pytest.mark.parametrize("cluster", [("docker", 1)], indirect=True)
@pytest.mark.parametrize("user", ["root", "debian"])
def test_a_container_runs_without_a_registry(tb: Testbed, cluster: Cluster, user: str) -> None:
    ask(tb, cluster, "vm0", f"su - {user} -c make-busybox-image")
    for network in ("none", "bridge"):
        command = f"docker run --rm --network {network} busybox echo hello"
        assert ask(tb, cluster, "vm0", f"su - {user} -c '{command}'") == "hello\n"
    # As a file, as it comes from elsewhere.
    ask(tb, cluster, "vm0", f"su - {user} -c 'docker save -q -o /tmp/{user}.tar busybox && docker rmi busybox'")
    out = ask(tb, cluster, "vm0", f"su - {user} -c 'docker load -q -i /tmp/{user}.tar && docker run --rm busybox true'")
    assert "localhost/busybox" in out
