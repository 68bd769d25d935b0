# SPDX-License-Identifier: Apache-2.0
"""An srun for ``launch``: takes the cluster's description, and says what the supervisors of all nodes would say.

    python -m tests.bench._supervisors FILE [srun's own words]

What it was sent, in bytes, is written to FILE. Nodes speak in turns, as those of a real job do; a VM's phases follow
one another as quickly as they are read.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pvc import codec
from pvc.model.cluster import ClusterSpec, NodeShare
from pvc.model.event import Event, EventKind
from pvc.model.vm import Phase
from pvc.supervisor.events import event_line


def main(argv: list[str]) -> int:
    line = sys.stdin.buffer.readline()
    Path(argv[0]).write_text(str(len(line)))
    spec = codec.loads(ClusterSpec, line)
    for event in tell(spec.placement.shares):
        sys.stdout.buffer.write(event_line(event))
    sys.stdout.buffer.flush()
    sys.stdin.buffer.read()
    for share in spec.placement.shares:
        sys.stdout.buffer.write(event_line(Event(EventKind.ENDED, share.node, time.time())))
    return 0


def tell(shares: tuple[NodeShare, ...]) -> Iterator[Event]:
    """All ports are open, then all VMs have their network, then all boot, then all answer."""
    for share in shares:
        yield Event(EventKind.LISTENING, share.node, time.time(), host="10.99.0.1", port=40000)
    for phase in (Phase.NETWORK, Phase.BOOTING, Phase.REACHABLE):
        for share in shares:
            for rank in range(share.first_rank, share.first_rank + share.count):
                yield Event(EventKind.VM, share.node, time.time(), rank=rank, phase=phase)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
