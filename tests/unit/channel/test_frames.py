# SPDX-License-Identifier: Apache-2.0
"""Frames: what is packed is found again, however it is cut; nonsense is told, and a HELLO ends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc.channel.frames import (
    CHECK,
    HEADER,
    MAGIC,
    MAX_PAYLOAD,
    Decoder,
    Frame,
    Hello,
    Kind,
    ProtocolError,
    pack,
    pack_credit,
    pack_frame,
    pack_hello,
    pack_words,
    parse_credit,
    parse_hello,
    parse_words,
)

HELLO = Hello(7, 9, 1, "0.1")
frames = st.builds(
    Frame, st.sampled_from(list(Kind)[1:]), st.integers(0, 2**32 - 1), st.binary(max_size=200), st.integers(0, 1)
)
values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
pairs = st.lists(st.tuples(st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True), values))


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    return [*parts, data]


def hear(decoder: Decoder, data: bytes) -> list[Frame]:
    """What a receiver hears that goes on after errors."""
    heard: list[Frame] = []
    for part in (data, b"", b""):
        try:
            heard += decoder.feed(part)
        except ProtocolError:
            assert not decoder.in_step
            heard += decoder.feed(b"")
    return heard


@given(st.lists(frames), st.lists(st.integers(0, 90)), st.lists(st.integers(0, 20)))
def test_frames_come_back_however_they_are_cut(sent: list[Frame], sizes: list[int], zeros: list[int]) -> None:
    data = b""
    for i, frame in enumerate(sent):
        data += bytes(zeros[i] if i < len(zeros) else 0) + pack_frame(frame)
    decoder = Decoder(in_step=True)
    assert [frame for part in cut(data, sizes) for frame in decoder.feed(part)] == sent


@given(st.binary(max_size=300), st.lists(frames, max_size=3), st.integers(0, 400), frames)
def test_a_hello_is_heard_after_anything(nonsense: bytes, sent: list[Frame], keep: int, last: Frame) -> None:
    """After noise and a sender that died within a frame, the next HELLO and what follows come through."""
    decoder = Decoder()
    parts = (nonsense, b"".join(map(pack_frame, sent))[:keep], pack_hello(HELLO), pack_frame(last))
    heard = [frame for part in parts for frame in hear(decoder, part)]
    assert [parse_hello(heard[-2].payload), heard[-1]] == [HELLO, last]


@given(st.integers(0, HEADER.size + MAX_PAYLOAD), st.integers(1, MAX_PAYLOAD))
def test_a_hello_is_heard_after_half_a_frame(keep: int, length: int) -> None:
    decoder = Decoder(in_step=True)
    frame = pack(Kind.DATA, 5, b"x" * length)[:keep]
    heard = hear(decoder, frame) + hear(decoder, pack_hello(HELLO))
    assert parse_hello(heard[-1].payload) == HELLO
    assert decoder.in_step


@given(st.binary())
def test_no_input_hurts(data: bytes) -> None:
    for in_step in (True, False):
        decoder = Decoder(in_step=in_step)
        for part in (data, b"", b""):
            try:
                decoder.feed(part)
            except ProtocolError:
                assert not decoder.in_step
        assert len(decoder._buffer) <= len(data)


def test_errors() -> None:
    good = pack(Kind.NOTE, 3, b"a=b\0")
    for bad in (
        HEADER.pack(10, 0, CHECK, 0, 0),
        HEADER.pack(5, 2, CHECK, 0, 0),
        HEADER.pack(5, 0, CHECK + 1, 0, 0),
        HEADER.pack(5, 0, CHECK, 0, MAX_PAYLOAD + 1),
    ):
        decoder = Decoder(in_step=True)
        assert decoder.feed(good + bad) == [Frame(Kind.NOTE, 3, b"a=b\0")]
        with pytest.raises(ProtocolError):
            decoder.feed(b"")
        assert decoder.feed(good) == []
        assert len(decoder.feed(pack_hello(HELLO) + good)) == 2
    with pytest.raises(ValueError, match="65536"):
        pack(Kind.DATA, 1, bytes(MAX_PAYLOAD + 1))


def test_out_of_step_it_keeps_next_to_nothing() -> None:
    decoder = Decoder()
    for _ in range(100):
        assert decoder.feed(MAGIC[:-1] * 1000) == []
    assert len(decoder._buffer) < 64


@given(pairs)
def test_words(sent: list[tuple[str, str]]) -> None:
    assert parse_words(pack_words(sent)) == sent


@pytest.mark.parametrize("bad", [b"a=b", b"=x\0", b"A=x\0", b"\0", b"a\0", b"a=b\0\0"])
def test_what_is_no_words(bad: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_words(bad)


def test_words_that_cannot_be_sent() -> None:
    for key, value in (("", "x"), ("A", "x"), ("a", "x\0y"), ("ä", "x"), ("a", "x" * MAX_PAYLOAD)):
        with pytest.raises(ValueError, match=r"word|at most"):
            pack_words([(key, value)])


def test_bytes_that_are_not_utf8_survive() -> None:
    assert pack_words(parse_words(b"path=/tmp/\xff\0")) == b"path=/tmp/\xff\0"


def test_credit() -> None:
    assert parse_credit(pack_credit(65536)) == 65536
    for bad in (b"", b"\0\0\0\0", b"12345"):
        with pytest.raises(ProtocolError):
            parse_credit(bad)


@pytest.mark.parametrize("payload", [b"", MAGIC, bytes(40), MAGIC + bytes(16), MAGIC + bytes(16) + b"protocol=x\0"])
def test_what_is_no_hello(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_hello(payload)


def test_texts_of_a_guest_are_harmless() -> None:
    hello = pack_words([("protocol", "1"), ("release", "1\x1b[2J\n" + "x" * 100)])
    assert parse_hello(MAGIC + bytes(16) + hello).release == "1?[2J " + "x" * 31 + "..."
