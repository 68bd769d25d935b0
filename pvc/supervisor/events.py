"""The supervisor's standard output: one event a line, for the launcher."""

from __future__ import annotations

import os
import time

from pvc import codec
from pvc.errors import PvcError
from pvc.model.event import Event, EventKind
from pvc.supervisor.vm import Vm


class Events:
    """Writes events to a descriptor; a launcher that is gone hears nothing, and that is no error here."""

    def __init__(self, fd: int, node: str) -> None:
        self._fd = fd
        self._node = node

    def listening(self, host: str, port: int) -> None:
        """The control port is open."""
        self._write(Event(EventKind.LISTENING, self._node, time.time(), host=host, port=port))

    def vm(self, vm: Vm, hint: str | None = None) -> None:
        """A VM's phase or its detail changed."""
        self._write(
            Event(
                EventKind.VM,
                self._node,
                time.time(),
                rank=vm.share.rank,
                phase=vm.phase,
                detail=vm.detail,
                hint=hint,
            )
        )

    def notice(self, text: str) -> None:
        """Something the user should know, once."""
        self._write(Event(EventKind.NOTICE, self._node, time.time(), detail=text))

    def error(self, err: PvcError) -> None:
        """This node's share failed."""
        self._write(
            Event(
                EventKind.ERROR,
                self._node,
                time.time(),
                detail=str(err),
                hint=err.find_hint(),
                exit_code=err.exit_code,
            )
        )

    def ended(self) -> None:
        """Everything is stopped."""
        self._write(Event(EventKind.ENDED, self._node, time.time()))

    def _write(self, event: Event) -> None:
        data = codec.dumps(event).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError:
            return
