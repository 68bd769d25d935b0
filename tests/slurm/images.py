"""Images for tests on a testbed: a guest of ten megabytes that answers like an ssh server, imported once."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pvc.images.repository import Repositories
from pvc.images.transfer import Incoming
from pvc.model.site import Repository
from tests.slurm.testbed import Testbed
from tests.vm.guests import Guest, agent_guest, build_guest

SMALL = "small"


def import_small(testbed: Testbed, scratch: Path) -> str:
    """Put the small guest into the testbed's repository; its name, which is a template's, too."""
    return _import(testbed, scratch, build_guest(), SMALL)


def import_agent(testbed: Testbed, scratch: Path) -> str:
    """The same for the small guest with the agent in it."""
    return _import(testbed, scratch, agent_guest(), "agent")


def _import(testbed: Testbed, scratch: Path, guest: Guest, name: str) -> str:
    disk = scratch / f"{name}.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    site = Repositories([Repository("site", str(testbed.place.state_dir / "images"))])
    incoming = Incoming(source=disk, name=name, kernel=guest.kernel, initrd=guest.initrd, append=guest.append)
    site.import_file(incoming, lambda *_: None)
    return name
