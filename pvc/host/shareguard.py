# SPDX-License-Identifier: Apache-2.0
"""A program of its own: confine a virtiofsd to one directory, then become it. ``python3 -I -S THIS ro|rw DIR -- …``.

``unshare`` has put it into new user, mount and network namespaces, in which the job's owner is root and no other user
exists: the file system grants this root what it grants the owner. Here the directory becomes a mount of its own,
read-only with all that is mounted below it where that is asked for: the kernel then refuses every write, whatever
guest and daemon do. In the daemon's arguments ``{dir}`` is the directory.

Facts from mount(2), mount_setattr(2) (Linux 5.12), user_namespaces(7), seccomp(2), linux/seccomp.h, linux/filter.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 32, 4096, 16384
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1
_SYS_MOUNT_SETATTR = 442  # on every architecture
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
# Of seccomp's data: the call's number and the architecture. (architecture, setgroups) by machine.
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_SETGROUPS = {"x86_64": (0xC000003E, 116), "aarch64": (0xC00000B7, 159)}
_LIBC = ctypes.CDLL(None, use_errno=True)


class GuardError(Exception):
    """The directory cannot be confined."""


def _call(what: str, result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise GuardError(f"{what}: {os.strerror(number)}")


def bind_directory(path: str, *, read_only: bool) -> None:
    """Make a directory a mount, with all mounts below it.

    :raise GuardError: the kernel refuses.
    """
    name = os.fsencode(path)
    # Recursive, for in a user namespace the kernel takes no mount away that hides something.
    _call(f"cannot bind {path}", _LIBC.mount(name, name, None, ctypes.c_ulong(_MS_BIND | _MS_REC), None))
    if not read_only:
        return
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _LIBC.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        name,
        ctypes.c_uint(_AT_RECURSIVE),
        attributes,
        ctypes.c_size_t(len(attributes)),
    )
    _call(f"cannot make {path} read-only, which needs Linux 5.12", result)


def forgive_setgroups() -> None:
    """Let setgroups(2) succeed and do nothing.

    A virtiofsd gives up its supplementary groups or ends, but in a user namespace made without privileges nobody may.
    They are the owner's rights, so they can stay.

    :raise GuardError: the kernel has no seccomp filters.
    """
    known = _SETGROUPS.get(platform.machine())
    if known is None or not os.getgroups():
        return
    architecture, number = known
    program = b"".join(
        struct.pack("=HBBI", *line)
        for line in (
            (_LOAD, 0, 0, _ARCHITECTURE_AT),
            (_JUMP_IF_EQUAL, 0, 3, architecture),
            (_LOAD, 0, 0, _NUMBER_AT),
            (_JUMP_IF_EQUAL, 0, 1, number),
            (_RETURN, 0, 0, _ERRNO),
            (_RETURN, 0, 0, _ALLOW),
        )
    )
    lines = ctypes.create_string_buffer(program, len(program))
    filtered = struct.pack("HP", len(program) // 8, ctypes.addressof(lines))
    zero = ctypes.c_ulong(0)
    _call("no_new_privs", _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), zero, zero, zero))
    _call("seccomp", _LIBC.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_MODE_FILTER), filtered, zero, zero))


def main(argv: list[str]) -> None:
    """Confine, then become the daemon."""
    mode, path, _, *daemon = argv
    try:
        bind_directory(path, read_only=mode == "ro")
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.set_inheritable(directory, True)
        forgive_setgroups()
        # By its descriptor: a name could hold a comma, which separates options.
        os.execv(daemon[0], [word.replace("{dir}", f"/proc/self/fd/{directory}/.") for word in daemon])
    except (GuardError, OSError) as err:
        sys.exit(f"{path} cannot be shared: {err}")


if __name__ == "__main__":
    main(sys.argv[1:])
