# SPDX-License-Identifier: Apache-2.0
"""Keys of templates that reach a guest: its instance to cloud-init, and a kernel of the template's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from guests import build_guest
from harness import Console, guest_template, supervised

from pvc.config.load import load_config
from pvc.config.setting import Expansion
from pvc.images.repository import Repositories
from pvc.images.resolve import resolve_template
from pvc.model.vm import Phase
from tests.unit.config.sites import write_site

pytestmark = pytest.mark.vm


def test_a_kernel_and_an_instance_of_the_templates_own(tmp_path: Path) -> None:
    guest = build_guest()
    text = "bare:\n  kernel: kernels/mine\ninstance:\n  instance-id: lab-7\n"
    site = write_site(tmp_path / "site", templates=text)
    (site / "kernels").mkdir()
    shutil.copyfile(guest.kernel, site / "kernels/mine")
    found = load_config(site, None, expansion=Expansion("anne", os.fspath(tmp_path), {})).templates
    bare, instance = (resolve_template(found[name], Repositories(())) for name in ("bare", "instance"))
    tiny = guest_template(guest, instance_id=instance.instance_id)
    with supervised(tmp_path, bare, tiny) as cluster:
        cluster.wait_phase(0, Phase.BOOTING)
        with cluster.connect() as connection:
            # Nothing is there for it to boot from: the command line is what it tells, and that it looked.
            said = Console(connection, 0).wait(b"Unable to mount root fs", 300)
            assert b"Command line: console=ttyS0 root=/dev/vda1" in said
        # A connection that says nothing meanwhile would be closed.
        with cluster.connect() as connection:
            console = Console(connection, 1)
            console.wait_prompt()
            console.send(b"cat /seed/meta-data; echo\n")
            assert b'"instance-id": "lab-7"' in console.wait(b"local-hostname")
