# SPDX-License-Identifier: Apache-2.0
"""Programs at the ports of a cluster's networks (bpf/port.c), loaded and attached by libbpf.

They and their maps live as long as a device has them: nothing is pinned, and a namespace takes them along
(tc-bpf(8); struct layouts: libbpf.h, bpf/port.h).
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from pvc.config.share import find_share
from pvc.errors import HostError
from pvc.host import linkbatch
from pvc.plan import addresses, members
from pvc.plan.actions import AddPrograms, Port

_INGRESS = 1
_REPLACE = 1
_HANDLE = _PRIORITY = 1
_EEXIST = -17
# bpf/port.h
_NETWORK = struct.Struct("=4s6sHII16sII")
_PORT = struct.Struct("=6sH4s16sIQQQ")
_BLOCK = struct.Struct("=I2sxx")
_NUMBER = struct.Struct("=I")
_FROM_VM, _FROM_TUNNEL = b"from_vm", b"from_tunnel"


class _Hook(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    ]


class _Options(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    ]


def ensure(step: AddPrograms) -> None:
    """Load the programs with what they are to know, and attach them; the caller is in the cluster's namespace.

    :raise HostError: there is no libbpf, the kernel refuses the programs, or a device is missing.
    """
    taps = {port.name: linkbatch.get_index(port.name) for port in step.ports}
    tunnel = linkbatch.get_index(step.tunnel) if step.tunnel is not None else 0
    with loaded(step, taps, tunnel) as programs:
        for index in taps.values():
            programs.attach(_FROM_VM, index)
        if step.tunnel is not None:
            programs.attach(_FROM_TUNNEL, tunnel)


@contextmanager
def loaded(step: AddPrograms, taps: dict[str, int], tunnel: int) -> Iterator[Programs]:
    """The programs, told what ``step`` says; ``taps`` and ``tunnel`` are indices of devices. What is attached stays.

    :raise HostError: there is no libbpf, or the kernel refuses.
    """
    with _load() as programs:
        programs.fill(b"networks", [(_NUMBER.pack(0), _pack_network(step, tunnel))])
        programs.fill(b"ports", ((_NUMBER.pack(taps[port.name]), _pack_port(step, port)) for port in step.ports))
        programs.fill(b"here", _pack_here(step, taps))
        programs.fill(b"elsewhere", _pack_elsewhere(step))
        yield programs


def try_loading() -> None:
    """Load the programs, and let go of them.

    :raise HostError: there is no libbpf, or the kernel refuses them.
    """
    with _load():
        pass


def read_attached(devices: Iterable[str]) -> frozenset[str]:
    """Those of ``devices`` of this namespace that have a program of ours at ingress.

    :raise HostError: there is no libbpf.
    """
    there = {name: index for index, name in socket.if_nameindex()}
    return frozenset(name for name in devices if name in there and _is_attached(there[name]))


def _pack_network(step: AddPrograms, tunnel: int) -> bytes:
    first = step.numbering
    base = int(ipaddress.IPv4Address(first.address or 0))
    return _NETWORK.pack(
        addresses.pack_mac(first.mac)[:4],
        addresses.pack_mac(step.gateway_mac),
        members.mac_number(first.mac),
        base,
        first.address6 is not None,
        _six(first.address6),
        tunnel,
        step.mtu,
    )


def _pack_port(step: AddPrograms, port: Port) -> bytes:
    four = socket.inet_aton(port.address) if port.address is not None else bytes(4)
    guarded = port.address is not None
    rate, burst = step.limit if step.limit is not None else (0, 0)
    return _PORT.pack(addresses.pack_mac(port.mac), guarded, four, _six(port.address6), burst, rate, burst, 0)


def _pack_here(step: AddPrograms, taps: dict[str, int]) -> Iterator[tuple[bytes, bytes]]:
    for port in step.ports:
        yield _NUMBER.pack(members.mac_number(port.mac)), _NUMBER.pack(taps[port.name])


def _pack_elsewhere(step: AddPrograms) -> Iterator[tuple[bytes, bytes]]:
    for label, ranks in enumerate(step.elsewhere):
        for block in members.split_macs(step.numbering.mac, ranks):
            yield _BLOCK.pack(16 - block.bits, block.first.to_bytes(2)), _NUMBER.pack(label)


def _six(text: str | None) -> bytes:
    return socket.inet_pton(socket.AF_INET6, text) if text is not None else bytes(16)


class Programs:
    """Programs and maps in the kernel, of one cluster's network."""

    def __init__(self, library: Any, handle: int) -> None:
        self._library, self._handle = library, ctypes.c_void_p(handle)

    def fill(self, name: bytes, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Write entries into a map."""
        found = self._library.bpf_object__find_map_by_name(self._handle, name)
        number = self._library.bpf_map__fd(ctypes.c_void_p(found))
        for key, value in entries:
            _check(self._library.bpf_map_update_elem(number, key, value, ctypes.c_uint64(0)), "write the map", name)

    def find(self, name: bytes) -> int:
        """The descriptor of a program."""
        found = self._library.bpf_object__find_program_by_name(self._handle, name)
        return int(self._library.bpf_program__fd(ctypes.c_void_p(found)))

    def attach(self, name: bytes, index: int) -> None:
        """Run a program for whatever comes in by a device; one that is there already is replaced."""
        hook = _hook(index)
        code = self._library.bpf_tc_hook_create(ctypes.byref(hook))
        if code != _EEXIST:
            _check(code, "prepare a device for", name)
        options = _options()
        options.prog_fd = self.find(name)
        options.flags = _REPLACE
        _check(self._library.bpf_tc_attach(ctypes.byref(hook), ctypes.byref(options)), "attach the program", name)


@contextmanager
def _load() -> Iterator[Programs]:
    library, content = load_library(), _read_object()
    # bpf_object__open_mem reads the object from memory: a file is read once, by a process that lives long.
    handle = library.bpf_object__open_mem(content, ctypes.c_size_t(len(content)), None)
    if not handle:
        raise _failed("read the programs", b"", ctypes.get_errno())
    try:
        _check(library.bpf_object__load(ctypes.c_void_p(handle)), "load the programs", b"")
        yield Programs(library, handle)
    finally:
        library.bpf_object__close(ctypes.c_void_p(handle))


def _is_attached(index: int) -> bool:
    hook, options = _hook(index), _options()
    code = load_library().bpf_tc_query(ctypes.byref(hook), ctypes.byref(options))
    return bool(code == 0 and options.prog_id)


def _hook(index: int) -> _Hook:
    return _Hook(ctypes.sizeof(_Hook), index, _INGRESS, 0)


def _options() -> _Options:
    return _Options(ctypes.sizeof(_Options), 0, 0, 0, _HANDLE, _PRIORITY)


def _check(code: int, what: str, name: bytes) -> None:
    if code < 0:
        raise _failed(what, name, -code)


def _failed(what: str, name: bytes, code: int) -> HostError:
    text = f"cannot {what} {name.decode()}".rstrip()
    error = HostError(
        f"{text}: {os.strerror(code)}",
        hint="networks with data-path: kernel need a kernel with BPF and its types (/sys/kernel/btf)",
    )
    error.__cause__ = OSError(code, os.strerror(code))
    return error


@cache
def load_library() -> Any:
    """The C library that loads programs.

    :raise HostError: there is none.
    """
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as err:
        raise HostError("there is no libbpf 1.x on this node", hint="install libbpf1 or libbpf") from err
    for name in ("bpf_object__open_mem", "bpf_object__find_map_by_name", "bpf_object__find_program_by_name"):
        getattr(library, name).restype = ctypes.c_void_p
    library.bpf_object__close.restype = None
    library.libbpf_set_print(None)  # it would write to standard error; what matters comes back as a code
    return library


@cache
def _read_object() -> bytes:
    path = find_share() / "bpf" / "port.o"
    try:
        return path.read_bytes()
    except OSError as err:
        raise HostError(f"cannot read {path}", hint="build it: make bpf") from err
