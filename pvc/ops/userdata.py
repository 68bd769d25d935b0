# SPDX-License-Identifier: Apache-2.0
"""User-data by cloud-init's own schema, where this machine has cloud-init.

It need not be the guests' release, so what it says is told and decides nothing.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache

from pvc import run
from pvc.config.userdata import is_cloud_config
from pvc.errors import CommandError, HostError
from pvc.model.site import Template
from pvc.model.vm import VmTemplate
from pvc.texts import clean_text

LOG = logging.getLogger(__name__)

_LIMIT_S = 30.0
_LONGEST = 400


def warn_of_schema(templates: Iterable[Template | VmTemplate]) -> None:
    """Tell what the schema says of their cloud-configs, once for each of these."""
    names: dict[str, list[str]] = {}
    for template in templates:
        if template.user_data is not None:
            names.setdefault(template.user_data, []).append(template.name)
    for text, users in names.items():
        fault = find_schema_fault(text)
        if fault is not None:
            LOG.warning("user-data of %s: cloud-init's schema here says: %s", ", ".join(users), fault)


@cache
def find_schema_fault(text: str) -> str | None:
    """What the schema says of a user-data, None: nothing, or nobody knows."""
    if not is_cloud_config(text) or shutil.which("cloud-init", path=run.PATH) is None:
        return None
    with tempfile.NamedTemporaryFile("w", prefix="pvc-user-data-", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        try:
            run.run(["cloud-init", "schema", "--config-file", file.name], timeout_s=_LIMIT_S)
        except CommandError as err:
            # A release that cannot check says so in other words; a time-out has none.
            lines = [line.strip() for line in err.stderr.replace(file.name, "user-data").splitlines() if line.strip()]
            return clean_text(" ".join(lines))[:_LONGEST] if err.returncode == 1 else None
        except HostError:
            return None
    return None
