# SPDX-License-Identifier: Apache-2.0
"""The programs at ports against a second reading of the rules, frame by frame: run by test_programs.py as root.

    python -m tests.host.prog_world SCENARIO
    python -m tests.host.prog_world fuzz SECONDS

Frames go into a program by BPF_PROG_TEST_RUN (bpf(2)), which says what it decided and what it made of the frame.
"""

from __future__ import annotations

import ctypes
import ipaddress
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pvc.host import portprogs
from pvc.plan import addresses
from pvc.plan.actions import AddPrograms, Port
from pvc.plan.members import Numbering

LOOPBACK = 1
PASS, DROP, REDIRECT = 0, 2, 7
OWN, LOCAL, GATEWAY = "52:54:00:00:00:07", "52:54:00:00:00:08", "52:54:00:ff:ff:00"
FIRST = Numbering("52:54:00:00:00:01", "10.200.0.1", "fd00:c8::1")
MINE, MINE6 = bytes([10, 200, 0, 7]), ipaddress.IPv6Address("fd00:c8::7").packed
MTU = 1500
STEP = AddPrograms(
    "-", "-", None, GATEWAY, MTU, FIRST,
    (Port("lo", OWN, "10.200.0.7", "fd00:c8::7"),),
    (((0, 6),), ((8, 300),)),  # ranks 6 and 7 are of this node
    None,
)  # fmt: skip


class _Run(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf's bpf.h."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


@dataclass(frozen=True)
class Runner:
    """A loaded program."""

    number: int
    library: Any

    def __call__(self, frame: bytes) -> tuple[int, bytes]:
        into = ctypes.create_string_buffer(frame, len(frame))
        out = ctypes.create_string_buffer(len(frame) + 256)
        given_ = _Run(ctypes.sizeof(_Run))
        given_.data_in, given_.data_size_in = ctypes.addressof(into), len(frame)
        given_.data_out, given_.data_size_out = ctypes.addressof(out), len(out)
        code = self.library.bpf_prog_test_run_opts(self.number, ctypes.byref(given_))
        assert code == 0, code
        return given_.retval, out.raw[: given_.data_size_out]


@contextmanager
def loaded(name: str) -> Iterator[Runner]:
    """The program of that name; the loopback device is the port of vm6, and another one that of vm7."""
    with portprogs.loaded(STEP, {"lo": LOOPBACK}, 77) as programs:
        programs.fill(b"here", [(struct.pack("=I", 8), struct.pack("=I", 99))])
        yield Runner(programs.find(name.encode()), portprogs.load_library())


# --- the rules, read once more -------------------------------------------------------------------------------------


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def may_send(frame: bytes) -> bool:
    """Whether vm6 may send it, whomever to."""
    kind, body = frame[12:14], frame[14:]
    if frame[6:12] != mac(OWN):
        return False
    rules = {b"\x08\x06": may_arp, b"\x08\x00": may_four, b"\x86\xdd": may_six}
    return kind in rules and rules[kind](frame[:6], body)


def may_arp(target: bytes, body: bytes) -> bool:
    del target
    if len(body) < 28 or body[:6] != b"\0\1\x08\0\6\4" or body[8:14] != mac(OWN):
        return False
    asks, answers = body[6:8] == b"\0\1", body[6:8] == b"\0\2"
    return (asks or answers) and (body[14:18] == MINE or (asks and body[14:18] == bytes(4)))


def may_four(target: bytes, body: bytes) -> bool:
    if len(body) < 20 or body[0] >> 4 != 4:
        return False
    head, size = (body[0] & 15) * 4, int.from_bytes(body[2:4])
    if head < 20 or not head <= size <= len(body):
        return False
    fragment, rest = int.from_bytes(body[6:8]), body[head:size]
    if body[9] == 17 and fragment & 0x1FFF == 0:
        if not is_datagram(rest, whole=not fragment & 0x2000) or rest[:2] == b"\0\x43" or rest[2:4] == b"\0\x44":
            return False
        if body[12:16] == bytes(4):
            return rest[:4] == b"\0\x44\0\x43" and bool(target[0] & 1 or target == mac(GATEWAY))
    return body[12:16] == MINE


def is_datagram(rest: bytes, *, whole: bool) -> bool:
    size = int.from_bytes(rest[4:6])
    return len(rest) >= 8 and size >= 8 and (size <= len(rest) or not whole)


def may_six(target: bytes, body: bytes) -> bool:
    del target
    packet = packet_of(body)
    if packet is None or packet[0] >> 4 != 6:
        return False
    source, following, rest, whole = packet[8:24], packet[6], packet[40:], True
    nobody = source == bytes(16)
    if is_taken(source) or not (nobody or source == MINE6 or is_local(source)):
        return False
    for _ in range(8):
        if following not in (0, 43, 44, 51, 60, 135, 139, 140):
            break
        size = extension_size(following, rest)
        if following == 44 and not whole:
            return False
        if following == 44 and len(rest) >= 8 and int.from_bytes(rest[2:4]) & 0xFFF8:
            return not nobody
        if len(rest) < size:
            return False
        whole = whole and following != 44
        following, rest = rest[0], rest[size:]
    if following in (0, 43, 44, 51, 60, 135, 139, 140) or following in range(148, 256):
        return False
    if following == 17:
        honest = rest[:2] != b"\x02\x23" and rest[2:4] != b"\x02\x22"
        return is_datagram(rest, whole=whole) and honest and not nobody
    if following == 58:
        return len(rest) >= 4 and may_tell(rest, whole, nobody)
    return not nobody and (following != 6 or len(rest) >= 20)


def extension_size(kind: int, rest: bytes) -> int:
    """How long it says that it is."""
    if kind == 44 or len(rest) < 2:
        return 8
    return (rest[1] + 2) * 4 if kind == 51 else (rest[1] + 1) * 8


def packet_of(body: bytes) -> bytes | None:
    """An IPv6 packet without what lies behind it, if it is there as far as it says."""
    size = 40 + int.from_bytes(body[4:6])
    return body[:size] if len(body) >= size else None


def may_tell(message: bytes, whole: bool, nobody: bool) -> bool:
    kind = message[0]
    if kind not in range(133, 138):
        return not nobody or kind in (131, 143)
    if kind in (134, 137) or not whole:
        return False
    head = 8 if kind == 133 else 24
    if len(message) < head or (kind == 136 and nobody) or not are_own(message[head:]):
        return False
    if kind == 133 or (kind == 135 and not nobody):
        return True
    target = message[8:24]
    return not is_taken(target) if is_local(target) else target == MINE6


def are_own(options: bytes) -> bool:
    """At most eight, all whole, and the link-layer addresses in them vm6's."""
    for _ in range(8):
        if not options:
            return True
        size = options[1] * 8 if len(options) > 1 else 0
        if not 8 <= size <= len(options) or (options[0] in (1, 2) and options[1:size] != b"\1" + mac(OWN)):
            return False
        options = options[size:]
    return not options


def is_local(address: bytes) -> bool:
    return ipaddress.IPv6Address(address).is_link_local


def is_taken(address: bytes) -> bool:
    """By whoever has a MAC of this network, unless that is vm6."""
    own = ipaddress.IPv6Address(addresses.link_local(OWN)).packed
    return address[:13] == own[:13] and address != own


def decide(frame: bytes) -> int:
    """What becomes of it."""
    if not may_send(frame):
        return DROP
    if is_question(frame):
        return REDIRECT
    if len(frame) > MTU + 14:
        return DROP
    if frame[0] & 1 or frame[:6] == mac(GATEWAY):
        return PASS
    number = int.from_bytes(frame[4:6])
    if frame[:4] != mac(OWN)[:4] or not 1 <= number <= 300 or number == 7:
        return DROP
    return REDIRECT


def is_question(frame: bytes) -> bool:
    """For the address of a VM that another node has."""
    if frame[12:14] == b"\x08\x06":
        asked = int.from_bytes(frame[38:42]) - int.from_bytes(MINE) + 6
        return frame[20:22] == b"\0\1" and is_elsewhere(asked)
    packet = packet_of(frame[14:])
    if frame[12:14] != b"\x86\xdd" or packet is None or len(packet) < 72 or packet[6] != 58 or packet[40] != 135:
        return False
    asked = int.from_bytes(frame[62:78]) - int.from_bytes(MINE6) + 6
    return packet[64:66] == b"\1\1" and is_elsewhere(asked)


def is_elsewhere(rank: int) -> bool:
    return rank in range(6) or rank in range(8, 300)


# --- frames --------------------------------------------------------------------------------------------------------

_MACS = (
    *(OWN, LOCAL, GATEWAY),
    *("52:54:00:00:00:01", "52:54:00:00:01:2c", "52:54:00:00:01:2d", "52:54:00:01:00:01"),
    *("ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01", "02:00:00:00:00:00"),
)
MACS = st.sampled_from([mac(each) for each in _MACS])
FOURS = st.sampled_from([MINE, bytes(4), bytes([10, 200, 0, 1]), bytes([10, 200, 1, 45]), bytes([8, 8, 8, 8])])
SIXES = st.sampled_from([
    *(ipaddress.IPv6Address(each).packed for each in ("::", "fd00:c8::7", "fd00:c8::1", "fd00:c8::12d", "fe80::1",
                                                       "febf::1", "fec0::1", "ff02::1", "fd00:c8::1:1")),
    *(ipaddress.IPv6Address(addresses.link_local(each)).packed for each in (OWN, LOCAL, GATEWAY)),
])  # fmt: skip
SMALL = st.binary(max_size=40)


@st.composite
def arps(draw: Callable[..., Any]) -> bytes:
    head = draw(st.sampled_from([b"\0\1\x08\0\6\4"] * 4 + [b"\0\6\x08\0\6\4", b"\0\1\x08\0\6\6"]))
    operation = draw(st.sampled_from([b"\0\1", b"\0\2", b"\0\3"]))
    parts: list[bytes] = [head, operation, draw(st.just(mac(OWN)) | MACS), draw(FOURS), draw(MACS), draw(FOURS)]
    return b"\x08\x06" + b"".join(parts)


def near(size: int) -> st.SearchStrategy[int]:
    """A length that is right, or is not: some bytes off, and none at all."""
    off = st.integers(-24, 24).map(lambda more: min(max(size + more, 0), 65535))
    return st.just(size) | st.just(size) | off | st.sampled_from([0, 65535])


@st.composite
def datagrams(draw: Callable[..., Any], ports: tuple[int, ...]) -> bytes:
    payload = draw(SMALL)
    return (
        struct.pack("!HHHH", *(draw(st.sampled_from(ports)) for _ in "ab"), draw(near(8 + len(payload))), 0) + payload
    )


@st.composite
def fours(draw: Callable[..., Any]) -> bytes:
    options = draw(st.sampled_from([0, 0, 0, 1, 5, 10]))
    first = draw(st.sampled_from([0x40, 0x40, 0x40, 0x50])) | (5 + options)
    protocol = draw(st.sampled_from([1, 6, 17, 17, 17]))
    offset = draw(st.sampled_from([0, 0, 0x2000, 1, 0x2001, 0x4000]))
    rest = draw(datagrams((67, 68, 1000)) if protocol == 17 else st.binary(max_size=60))
    size = draw(near(20 + 4 * options + len(rest)))
    packed = struct.pack("!BBHHHBBH", first, 0, size, 0, offset, 64, protocol, 0)
    parts: list[bytes] = [packed, draw(FOURS), draw(FOURS), draw(st.sampled_from([b"\1", b"\x83"])) * 4 * options, rest]
    return b"\x08\0" + b"".join(parts)


OPTIONS = st.lists(
    st.sampled_from([
        *(b"\1\1" + mac(each) for each in (OWN, OWN, LOCAL)), *(b"\2\1" + mac(each) for each in (OWN, LOCAL)),
        *(b"\1\2" + mac(OWN) + bytes(8), b"\1\0" + mac(OWN), b"\x0e\1nonce!", b"\x0e\2" + bytes(14), b"\1", b""),
    ]),
    max_size=10,
).map(b"".join) | st.just(b"\1\1" + mac(OWN))  # fmt: skip


@st.composite
def messages(draw: Callable[..., Any]) -> bytes:
    """Of ICMPv6: echoes, groups (MLD), discovery, and what only a router says."""
    kind = draw(st.sampled_from([128, 130, 131, 132, 133, 133, 134, 135, 135, 135, 136, 136, 137, 143]))
    target = b"" if kind == 133 else bytes(8) if kind == 134 else draw(SIXES)
    return bytes([kind, 0, 0, 0]) + bytes(4) + target + draw(OPTIONS)


# Extension headers, those of HIP, Shim6, mobility and experiments (253), too.
HEADERS = st.lists(st.sampled_from([0, 43, 44, 51, 60, 135, 139, 140, 253]), max_size=9) | st.just([])


@st.composite
def sixes(draw: Callable[..., Any]) -> bytes:
    upper = draw(st.sampled_from([6, 17, 17, 58, 58, 58, 59, 50, 148, 255]))
    datagram = datagrams((546, 547, 1000))
    payload = draw({58: messages(), 17: datagram}.get(upper, st.binary(max_size=40)))
    for header in reversed(draw(HEADERS)):
        if header == 44:
            place = draw(st.sampled_from([b"\0\0", b"\0\0", b"\0\1", b"\0\x08"]))
            payload = bytes([upper, 0]) + place + bytes(4) + payload
        elif header == 51:
            payload = bytes([upper, 1]) + bytes(10) + payload
        else:
            more = draw(st.integers(0, 2))
            payload = bytes([upper, more]) + bytes(6 + 8 * more) + payload
        upper = header
    version = draw(st.sampled_from([0x60] * 5 + [0x40]))
    head = bytes([version, 0, 0, 0]) + draw(near(len(payload))).to_bytes(2) + bytes([upper, 255])
    parts: list[bytes] = [head, draw(SIXES), draw(SIXES), payload]
    return b"\x86\xdd" + b"".join(parts)


TAGS = st.sampled_from([b"\x81\0\0\1", b"\x88\xa8\0\1\x81\0\0\2"])


@st.composite
def frames(draw: Callable[..., Any]) -> bytes:
    source = draw(st.just(mac(OWN)) | st.just(mac(OWN)) | MACS)
    body = draw(arps() | fours() | sixes() | sixes())
    body = draw(TAGS) + body if draw(st.integers(0, 15)) == 15 else body
    frame = bytearray(draw(MACS) + source + body)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    if draw(st.sampled_from([False, False, False, True])):
        del frame[draw(st.integers(14, len(frame))) :]
    return at_least(bytes(frame)) + draw(st.just(b"") | SMALL | st.sampled_from([1400, 1500]).map(bytes))


def at_least(frame: bytes) -> bytes:
    """The kernel's test takes no frame without its network header; wire_world.py sends those."""
    return frame + bytes(max(0, {b"\x08\0": 34, b"\x86\xdd": 54}.get(frame[12:14], 15) - len(frame)))


def compare(run: Runner, frame: bytes) -> int:
    """What both say of it; what is dropped or passed is left as it was."""
    verdict, made = run(frame)
    assert verdict == decide(frame), frame.hex()
    if verdict == PASS:
        assert made == frame
    elif verdict == REDIRECT and is_question(frame):
        assert made[:6] == mac(OWN)
        assert made[6:10] == mac(OWN)[:4]
    elif verdict == REDIRECT and frame[4:6] != b"\0\x08":
        number = int.from_bytes(frame[4:6])
        assert made[:6] == mac(addresses.label_mac(0 if number < 7 else 1))
        assert made[6:] == b"\x02\0" + frame[4:6] + frame[10:]
    return verdict


def decisions() -> None:
    """The program and the second reading agree on any frame of a VM."""
    seen: set[int] = set()
    with loaded("from_vm") as run:

        @settings(max_examples=3000, deadline=None, database=None)
        @given(frames())
        def check(frame: bytes) -> None:
            seen.add(compare(run, frame))

        check()
    assert seen == {PASS, DROP, REDIRECT}


def ways() -> None:
    """What leaves a node with a label arrives at the other one as it was sent; an answer's checksum is right."""
    sent = mac("52:54:00:00:00:01") + mac(OWN) + b"\x08\0" + struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 1, 0)
    sent += MINE + bytes([10, 200, 0, 1]) + bytes(20)
    with loaded("from_vm") as run, loaded("from_tunnel") as arrive:
        verdict, labelled = run(sent)
        assert (verdict, labelled[:12].hex(":")) == (REDIRECT, "02:00:00:00:00:00:02:00:00:01:00:07")
        # There, the number 1 is a VM's; here, 7 is.
        here = labelled[:6] + b"\x02\0\0\7\0\1" + labelled[12:]
        assert arrive(here) == (REDIRECT, mac(OWN) + mac("52:54:00:00:00:01") + sent[12:])
        assert arrive(labelled)[0] == DROP
        assert arrive(b"\xff" * 6 + sent[6:]) == (PASS, b"\xff" * 6 + sent[6:])
        target = ipaddress.IPv6Address("fd00:c8::64").packed
        solicit = bytes([135, 0, 0, 0, 0, 0, 0, 0]) + target + b"\1\1" + mac(OWN) + b"\x0e\1nonce!"
        head = b"\x60\0\0\0" + len(solicit).to_bytes(2) + b"\x3a\xff" + MINE6 + target
        verdict, said = run(b"\x33\x33\xff\0\0\x64" + mac(OWN) + b"\x86\xdd" + head + solicit)
    assert (verdict, len(said)) == (REDIRECT, 86)
    assert said[:14] == mac(OWN) + mac("52:54:00:00:00:64") + b"\x86\xdd"
    assert said[22:38] + said[38:54] + said[62:78] == target + MINE6 + target
    assert (said[54], said[78:80], said[80:]) == (136, b"\2\1", mac("52:54:00:00:00:64"))
    pseudo = said[22:54] + (32).to_bytes(4) + (58).to_bytes(4) + said[54:]
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF


SCENARIOS = (decisions, ways)


def fuzz(seconds: float) -> None:
    """Frames until the time is over."""
    ends, done = time.monotonic() + seconds, 0
    with loaded("from_vm") as run:

        @settings(max_examples=500, deadline=None, database=None)
        @given(frames())
        def check(frame: bytes) -> None:
            nonlocal done
            done += 1
            compare(run, frame)

        while ends > time.monotonic():
            check()
    print(f"{done} inputs")


def main() -> None:
    if sys.argv[1] == "fuzz":
        fuzz(float(sys.argv[2]))
        return
    next(each for each in SCENARIOS if each.__name__ == sys.argv[1])()


if __name__ == "__main__":
    main()
