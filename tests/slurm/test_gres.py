# SPDX-License-Identifier: Apache-2.0
"""VMs get the PCI devices that Slurm gave to their job: two users' jobs at once on a node with a real gres.conf.

The node's PCI bus is a directory in place of /sys/bus/pci, whose devices are at vfio-pci for good, as sites have them
that keep devices for VMs alone: so nothing there has to act on what is written, and who owns /dev/vfio/GROUP tells all.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from pvc.parse import parse_cpu_list
from pvc.testbed import lifecycle
from pvc.testbed.place import find_place
from tests.slurm.images import import_small
from tests.slurm.testbed import Testbed, own_name, start_testbed
from tests.waits import wait_until

# Not in the order of their names: indices follow the lines of gres.conf, through all types.
GRES_CONF = """\
NodeName=n1 Name=gpu Type=a100 File=/etc/slurm/gres/dev[5-7]
NodeName=n1 Name=gpu Type=h100 File=/etc/slurm/gres/dev2
NodeName=n1 Name=lic Count=4
"""
ADDRESSES = tuple(f"0000:3b:00.{number}" for number in range(4))
GROUPS = tuple(range(40, 44))
NETWORKS = """
gpu:
  type: genericpci
  settings: {{gres: gpu, host-driver: vfio-pci, host-device-addrs: [{devices}]}}
fast:
  type: genericpci
  settings: {{gres: "gpu:h100", host-driver: vfio-pci, host-device-addrs: [{devices}]}}
""".format(devices=", ".join(f'"{address}"' for address in ("0000:01:00.0", *ADDRESSES)))
RESOURCES = "\ngpu:\n  networks: [gpu]\nfast:\n  networks: [fast]\n"
TEMPLATES = """
gpu: {image: small, resource-set: gpu, gres: "gpu:a100:1"}
fast: {image: small, resource-set: fast}
none: {image: small, resource-set: gpu}
"""


def _build_bus() -> str:
    words = ["set -e; mkdir -p /run/bus/drivers/vfio-pci /run/bus/groups /dev/vfio"]
    for address, group in zip(ADDRESSES, GROUPS, strict=True):
        place = f"/run/bus/devices/{address}"
        words += [
            f"mkdir -p {place} /run/bus/groups/{group}/devices; echo '(null)' >{place}/driver_override",
            f"ln -s ../../drivers/vfio-pci {place}/driver; ln -s ../../groups/{group} {place}/iommu_group",
            f"ln -s ../../../devices/{address} /run/bus/groups/{group}/devices/{address}; : >/dev/vfio/{group}",
        ]
    return "; ".join([*words, "mount --bind /run/bus /sys/bus/pci"])


def _append(path: Path, text: str) -> None:
    path.write_text((path.read_text() if path.exists() else "") + text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Testbed]:
    """A testbed of one node with four GPUs of two types."""
    name = own_name("-gres")
    try:
        tb = start_testbed(name, nodes=1)
        slurm, pvc = tb.place.state_dir / "etc" / "slurm", tb.place.state_dir / "etc" / "pvc"
        (slurm / "gres").mkdir()
        for number in range(10):
            (slurm / "gres" / f"dev{number}").touch()
        (slurm / "gres.conf").write_text(GRES_CONF)
        text = (slurm / "slurm.conf").read_text()
        text = re.sub(r"(?m)^NodeName=n1 .*", r"GresTypes=gpu,lic\n\g<0> Gres=gpu:a100:3,gpu:h100:1,lic:4", text)
        (slurm / "slurm.conf").write_text(text)
        for file, more in (("networks", NETWORKS), ("resources", RESOURCES), ("templates", TEMPLATES)):
            _append(pvc / f"{file}.yaml", more)
        # Slurm's daemons take GresTypes at their start.
        for node in ("n1", "login"):
            tb.crash(node)
        for node in ("login", "n1"):
            tb.boot(node)
        tb.root(_build_bus(), "n1")
        import_small(tb, tmp_path_factory.mktemp("small"))
        tb.run(["srun", "true"])
        tb.wait_no_jobs()
        yield tb
    finally:
        lifecycle.down(find_place(name))


@contextmanager
def held(tb: Testbed, user: str, *words: str) -> Iterator[int]:
    """A job of a user's that is set up; its id.

    No step waits for the prolog: one that slurmd hears of before the prolog (22.05, NoHold) may start without it.
    """
    script = "echo $SLURM_JOB_ID && cat >/dev/null"
    process = tb.start(["salloc", "-n1", *words, "sh", "-c", script], user=user, stdin=subprocess.PIPE)
    try:
        said = process.stdout.readline()
        assert said.strip().isdigit(), said + process.stderr.read()
        if any(word.startswith("--pvc=") for word in words):
            ready = f"test -e /var/lib/pvc/jobs/{int(said)}/plan.json && echo yes"
            wait_until(lambda: tb.root(ready, "n1", check=False), 120, f"job {said.strip()} is not set up")
        yield int(said)
    finally:
        process.communicate(timeout=300)


def given(tb: Testbed, job: int) -> set[int]:
    """The indices that Slurm shows of a job's GPUs."""
    text = tb.root(["scontrol", "show", "job", "-d", str(job)], "n1")
    found = [index for part in re.findall(r"gpu[^ ]*?\(IDX:([\d,-]+)\)", text) for index in parse_cpu_list(part)]
    assert found, text
    return set(found)


def owners(tb: Testbed) -> list[str]:
    """Who has the group of each device, in their order."""
    paths = [f"/dev/vfio/{group}" for group in GROUPS]
    return tb.root(["stat", "-c", "%U", *paths], "n1").split()


def wait_owners(tb: Testbed, expected: list[str]) -> None:
    """Until the devices have these owners."""
    with suppress(AssertionError):  # which does not say who has them instead
        wait_until(lambda: owners(tb) == expected, 120, "other owners")
    assert owners(tb) == expected


def test_jobs_at_once_have_the_devices_that_slurm_gave_to_each(site: Testbed) -> None:
    with ExitStack() as jobs:
        # One without VMs: what it has is free for pvc, but nobody else's.
        other = jobs.enter_context(held(site, "student", "--gres=gpu:a100:1"))
        first = jobs.enter_context(held(site, "student", "--gres=gpu:a100:1", "--pvc=gpu:1"))
        second = jobs.enter_context(held(site, "teacher", "--gres=gpu:a100:1", "--pvc=gpu:1"))
        third = jobs.enter_context(held(site, "teacher", "--gres=gpu:h100:1", "--pvc=fast:1"))
        shown = {job: given(site, job) for job in (other, first, second, third)}
        assert sorted(index for indices in shown.values() for index in indices) == [0, 1, 2, 3]
        assert shown[third] == {3}
        expected = ["root"] * 4
        for job, user in ((first, "student"), (second, "teacher"), (third, "teacher")):
            for index in shown[job]:
                expected[index] = user
        wait_owners(site, expected)
    site.wait_no_jobs()
    wait_owners(site, ["root"] * 4)


def test_two_devices_of_one_vm(site: Testbed) -> None:
    with held(site, "student", "--gres=gpu:a100:1"), held(site, "teacher", "--gres=gpu:a100:2", "--pvc=gpu:1") as job:
        indices = given(site, job)
        expected = ["teacher" if index in indices else "root" for index in range(4)]
        wait_owners(site, expected)
    site.wait_no_jobs()
    wait_owners(site, ["root"] * 4)


def test_what_nobody_asked_slurm_for_is_refused(site: Testbed) -> None:
    done = site.run(["pvc", "alloc", "none", "true"], check=False, timeout=300)
    assert done.code == 2
    assert "network gpu: 1 VMs on this node get as many devices each, and Slurm gave the job 0 gpu here" in done.err
    assert "gres: gpu:1 in the template, or --gres=gpu:1, asks for one each" in done.err
    # Of another type: "fast" are h100.
    done = site.run(["pvc", "alloc", "--gres=gpu:a100:2", "fast:2", "true"], check=False, timeout=300)
    assert "Slurm gave the job 0 gpu:h100 here" in done.err
    # A request of a user's own making says nothing of devices: Slurm is not asked, and nothing is given.
    job = "salloc -n1 --gres=gpu:a100:1 --pvc=gpu:1 true"
    site.run(["sh", "-c", f"PVC_RESOLVED='gpu:1 1;gpu:1' PVC_GRES='gpu:3(IDX:0-2);gpu:4' {job}"], check=False)
    site.wait_no_jobs()
    wait_owners(site, ["root"] * 4)
    assert site.node_states() == {"n1": "idle"}
