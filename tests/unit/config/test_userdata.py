# SPDX-License-Identifier: Apache-2.0
"""What cloud-init would pass over, or not understand, is told before there is a job."""

from __future__ import annotations

import base64
import gzip
import os
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from email.mime.text import MIMEText

import pytest

from pvc.config.userdata import MAX_PACKED, MAX_USER_DATA, is_cloud_config, read_user_data

CONFIG = "#cloud-config\npackages: [vim]\n"
SCRIPT = "#!/bin/sh\necho\n"


def mime(*parts: tuple[str, str], boundary: str = "==x==") -> str:
    """A message as cloud-init's documentation makes one."""
    found = MIMEMultipart(boundary=boundary)
    for text, kind in parts:
        found.attach(MIMEText(text, kind))
    return found.as_string()


def packed_part() -> str:
    part = MIMENonMultipart("application", "gzip")
    part.set_payload(base64.b64encode(gzip.compress(CONFIG.encode())).decode())
    part["Content-Transfer-Encoding"] = "base64"
    found = MIMEMultipart()
    found.attach(part)
    return found.as_string()


GOOD = {
    "cloud-config": CONFIG,
    "nothing but its header": "#cloud-config\n",
    "capitals and white space": "\n  #Cloud-Config\npackages: []\n",
    "lines of DOS": CONFIG.replace("\n", "\r\n"),
    "a document's mark": "#cloud-config\n---\npackages: []\n",
    "a key that is there twice, as PyYAML takes it": "#cloud-config\na: 1\na: 2\n",
    "a key that is no word": "#cloud-config\nmounts:\n  ? [a, b]\n  : c\n",
    "script": SCRIPT,
    "script of DOS": SCRIPT.replace("\n", "\r\n"),
    "jinja": "## template: jinja\n#cloud-config\n{% if v1 %}\na: [\n{% endif %}\n",
    "jinja that makes its header": "## template: jinja\n{{ header }}\n",
    "include": "#include\nhttps://example.org/a\n# not this\nfile:///etc/more\n",
    "include on one line": "#include-once http://example.org/a\n",
    "boothook": "#cloud-boothook\n#!/bin/sh\ndate\n",
    "part-handler": "#part-handler\ndef list_types():\n    return ['x/y']\n",
    "archive": (
        "#cloud-config-archive\n- '#cloud-config'\n- {content: 'a: 1'}\n"
        "- type: text/x-shellscript\n  content: '#!/bin/sh'\n"
    ),
    "json patch": '#cloud-config-jsonp\n[{"op": "add", "path": "/a", "value": 1}]\n',
    "MIME": mime((CONFIG, "cloud-config"), (SCRIPT, "x-shellscript"), (CONFIG, "plain")),
    "MIME with a script for each boot": mime((SCRIPT, "x-shellscript-per-boot")),
    "MIME with gzip in it": packed_part(),
}  # fmt: skip


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_what_cloud_init_takes(text: str) -> None:
    assert read_user_data(text.encode()) == text
    # Guests of old releases know neither: they get the plain text.
    assert read_user_data(gzip.compress(text.encode())) == text
    assert read_user_data(b"\xef\xbb\xbf" + text.encode()) == text


BAD = {
    "no header": ("packages: [vim]\n", r"^line 1: 'packages: \[vim\]' is none of #cloud-config, .*"),
    "a mark before the header": ("---\n" + CONFIG, "^line 2: '#cloud-config' has to be the first line, and '--"),
    "text before the header": ("\n# mine\n" + CONFIG, r"^line 3: .* and '# mine' is before it \(line 2\)"),
    "a blank in the header": ("# cloud-config\na: 1\n", "^line 1: .* is not cloud-init's '#cloud-config'"),
    "no blank in the header": ("##template: jinja\n" + CONFIG, "^line 1: .* is not cloud-init's '## template: jinja'"),
    "YAML": ("#cloud-config\na: 1\nb: [1,\n", "^line 4: is not YAML: "),
    "a tab": ("#cloud-config\na:\n\tb: 1\n", "^line 3: is not YAML: "),
    "two documents": ("#cloud-config\na: 1\n---\nb: 1\n", "^line 3: is not YAML: expected a single document"),
    "a list": ("#cloud-config\n- a\n", "is not a mapping"),
    "bottomless": ("#cloud-config\na: " + "[" * 9999, "^line 2: is not YAML: .*nest"),
    "script after a blank line": ("\n" + SCRIPT, "^line 1: a script begins with #! and has nothing before it"),
    "jinja of nothing": ("## template: jinja\n\n", "has nothing below"),
    "jinja of no kind": ("## template: jinja\n\nfoo\n", "^line 3: after ## template: jinja comes"),
    "include of nothing": ("#include\n\n", "includes nothing"),
    "include of no URL": ("#include\nhttp://x/\nmore.yaml\n", "^line 3: 'more.yaml' is no URL"),
    "an archive that is none": ("#cloud-config-archive\na: 1\n", "is not a list"),
    "an archive of numbers": ("#cloud-config-archive\n- 1\n", "^part 1: is neither a text nor a mapping"),
    "an archive of unknown type": ("#cloud-config-archive\n- {type: a/b, content: x}\n", "^part 1: is of type 'a/b'"),
    "MIME without its version": ("Content-Type: multipart/mixed; boundary=x\n\n--x\n", "^line 1: .* MIME-Version: 1.0"),
    "MIME in the text": ("hello\nMIME-Version: 1.0\n", "not as a header"),
    "MIME that is cut off": (mime((CONFIG, "cloud-config")).replace("--==x==--", ""), "boundary is missing or not cl"),
    "MIME of unknown type": (mime((CONFIG, "cloud-confg")), "^part 1: is of type 'text/cloud-confg'"),
    "MIME with bad YAML": (mime((SCRIPT, "x-shellscript"), ("#cloud-config\n[", "plain")), r"^part 2: line \d: "),
    "MIME of nothing known": (mime(("hello\n", "plain")), "^part 1: line 1: 'hello' is none of"),
    "nothing": (" \n", "^is empty"),
    "another coding": (CONFIG.encode("utf-16"), "^is UTF-16"),
    "no text": (b"#cloud-config\na: \xff\n", "^line 2: is not UTF-8"),
    "half of gzip": (gzip.compress(CONFIG.encode())[:-9], "ends too early"),
    "damaged gzip": (gzip.compress(CONFIG.encode())[:12] + b"\x07" * 40, "damaged gzip"),
    "gzip of very much": (gzip.compress(b"#" * (MAX_USER_DATA + 1)), "is larger than 4 MiB, unpacked"),
    "too much": (b"#" * (MAX_USER_DATA + 1), "is larger than 4 MiB$"),
    "what does not fit into a job": (SCRIPT + os.urandom(MAX_PACKED).hex(), "KiB packed, and 120 KiB fit"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "told"), BAD.values(), ids=BAD)
def test_what_cloud_init_passes_over(content: str | bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        read_user_data(content.encode() if isinstance(content, str) else content)
    assert "\n" not in str(caught.value)


def test_what_is_one_cloud_config() -> None:
    assert [name for name, text in GOOD.items() if is_cloud_config(text)] == list(GOOD)[:7]
