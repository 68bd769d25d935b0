# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvc import codec
from pvc.images.image import Blob, Format, Image, ImageUri, parse_uri

NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True)


@given(st.builds(ImageUri, NAME, st.none() | NAME, st.none() | st.integers(1, 999_999_999)))
def test_a_uri_means_what_it_says(uri: ImageUri) -> None:
    assert parse_uri(str(uri)) == uri


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "@",
        "a:",
        ":a",
        "a@",
        "a@0",
        "a@-1",
        "a@01",
        "a@x",
        "a b",
        "../a",
        "a/b",
        "a:b@1@2",
        "a@1\n",
        "a\n",
        "ä",
    ],
)
def test_what_is_no_uri(text: str) -> None:
    with pytest.raises(ValueError, match="not an image"):
        parse_uri(text)


@given(st.text(max_size=80))
def test_no_uri_leads_out_of_a_repository(text: str) -> None:
    try:
        uri = parse_uri(text)
    except ValueError:
        return
    assert not {"/", "\0", "\n"} & set(uri.name + (uri.repository or ""))
    assert uri.name not in {".", ".."}


def test_an_image_survives_json_and_a_hostile_one_does_not() -> None:
    blob = Blob("ab" * 32, 10)
    image = Image("debian", 3, 1.5, "me", Format.QCOW2, 1 << 30, blob, blob, None, "quiet", "text", {"user": "root"})
    assert codec.loads(Image, codec.dumps(image)) == image
    with pytest.raises(ValueError, match="not a blob"):
        codec.loads(Image, codec.dumps(image).replace("ab" * 32, "../../../etc/shadow"))
