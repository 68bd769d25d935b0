"""Which file system a file is on, with its mount options: proc_pid_mountinfo(5), proc_pid_fdinfo(5)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MountFacts:
    """A mounted file system: its type, and the options of the mount and of the file system."""

    fstype: str
    options: tuple[str, ...]


def parse_mountinfo(text: str, mount_id: str) -> MountFacts | None:
    """The mount of that number; None: it is not there."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, more = left.split(), right.split()
        if len(fields) >= 6 and len(more) >= 3 and fields[0] == mount_id:
            return MountFacts(more[0], (*fields[5].split(","), *more[2].split(",")))
    return None


def find_mount(fd: int) -> MountFacts | None:
    """The mount that an open file is on; None where the kernel does not say it.

    :raise OSError: there is no /proc.
    """
    with open(f"/proc/self/fdinfo/{fd}") as stream:
        facts = dict(line.split(":", 1) for line in stream if ":" in line)
    with open("/proc/self/mountinfo", errors="surrogateescape") as stream:
        return parse_mountinfo(stream.read(), facts.get("mnt_id", "").strip())
