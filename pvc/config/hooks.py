# SPDX-License-Identifier: Apache-2.0
"""Programs that run on the nodes around a VM's life: the key hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pvc.config import setting
from pvc.config.setting import Setting, Table
from pvc.model.vm import Hooks

_MAX_S = 3600
_WORD = setting.path(name="word", expected="a program or its argument", at_start=True)
_COMMAND = setting.list_of(_WORD, single=True)

HOOKS = Table(
    settings=(
        Setting(
            "before-start",
            _COMMAND,
            "Before QEMU starts, which waits for it. When it fails, the VM has failed.",
            default=[],
        ),
        Setting(
            "reachable",
            _COMMAND,
            "Each time that ssh answers after a boot. Nothing waits for it; when it fails, the VM goes on, and its "
            "status says so.",
            default=[],
        ),
        Setting(
            "before-stop",
            _COMMAND,
            "Before the guest is asked to power down, which waits for it. Not where it ends by itself or is switched "
            "off at once.",
            default=[],
        ),
        Setting(
            "after-stop",
            _COMMAND,
            "When QEMU is gone, however it ended; the VM's end is told after it.",
            default=[],
        ),
        Setting(
            "timeout",
            setting.integer(1, _MAX_S),
            "Seconds that each has; then it is killed, and has failed.",
            default=60,
        ),
    )
)


def build_hooks(values: Mapping[str, Any]) -> Hooks:
    """What the key says.

    :raise ValueError: a program is a relative path.
    """
    found = {key.replace("-", "_"): value for key, value in values.items() if key != "timeout"}
    for key, words in found.items():
        if words and (not words[0] or ("/" in words[0] and not words[0].startswith("/"))):
            name = key.replace("_", "-")
            raise ValueError(f"{name}: {words[0]!r} is neither an absolute path nor a program's name")
    return Hooks(**found, timeout_s=values["timeout"])
