# SPDX-License-Identifier: Apache-2.0
"""pvc image, by its command line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pvc.cli import main
from pvc.cli.progress import format_size
from tests.unit.images.disks import bz_image, raw_disk


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".pvc").mkdir(parents=True)
    repos = f"repos:\n  - name: user\n    path: {tmp_path}/home/images\n"
    (tmp_path / "home" / ".pvc" / "repos.yaml").write_text(repos)
    (tmp_path / "disk").write_bytes(raw_disk())
    (tmp_path / "kernel").write_bytes(bz_image())
    return tmp_path


def test_import_list_show_delete(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = ["--kernel", f"{home}/kernel", "--append", "root=/dev/vda", "--user", "root", "--description", "mine"]
    assert main.run(["image", "import", f"{home}/disk", "a", *kernel]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("imported user:a@1: raw, a disk of 1.0M")
    assert "copying disk (1.0M)" in err
    assert main.run(["image", "list", "-R", "user"]) == 0
    *row, stored, boots = capsys.readouterr().out.splitlines()[1].split()[:7]
    assert (row, boots) == (["user", "a", "1", "raw", "1.0M"], "kernel")
    assert stored.endswith("K")  # the disk has holes
    assert main.run(["image", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["uri"] for each in listed if each["repository"] == "user"] == ["user:a@1"]
    assert main.run(["image", "show", "a"]) == 0
    shown = capsys.readouterr().out
    assert "user         root" in shown
    assert "append       root=/dev/vda" in shown
    assert main.run(["image", "show", "user:a@1", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert Path(files["kernel"]).read_bytes() == bz_image()
    assert main.run(["image", "delete", "-y", "a"]) == 0
    assert capsys.readouterr().out.startswith("removed user:a@1")
    assert main.run(["image", "show", "user:a"]) == 2


def test_a_damaged_image_is_shown_and_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["image", "import", f"{home}/disk", "a"]) == 0
    for path in (home / "home" / "images" / "data").rglob("?" * 64):
        path.unlink()
    capsys.readouterr()
    assert main.run(["image", "show", "a"]) == 7
    out, err = capsys.readouterr()
    assert "user:a@1" in out
    assert "cannot be used" in err
    assert "hint: import it again" in err


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["import", "/nowhere", "a"], 2, "cannot read /nowhere: No such file"),
        (["import", "{home}/disk", "a/b"], 2, "not a name"),
        (["import", "{home}/kernel", "a"], 2, "say -t raw"),
        (["import", "{home}/disk", "a", "-t", "qcow2"], 2, "no qcow2 header"),
        (["import", "{home}/disk", "a", "-t", "vmdk"], 2, "vmdk"),
        (["import", "{home}/disk", "a", "-R", "nope"], 2, "no image repository 'nope'"),
        (["import", "{home}/disk", "a", "--description", "a\nb"], 2, "one printable line"),
        (["show", "nope"], 2, "no image 'nope'"),
        (["delete", "-y", "nope"], 2, "no image 'nope'"),
        (["list", "-R", "nope"], 2, "no image repository 'nope'"),
        (["build", "nope"], 2, "no recipe 'nope'"),
        (["build", "debian", "--suite", "Bad Suite"], 3, "not a release"),
    ],
)
def test_mistakes(home: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, text: str) -> None:
    assert main.run(["image", *(word.format(home=home) for word in argv)]) == code
    out, err = capsys.readouterr()
    assert text in err
    assert out == ""
    assert not list((home / "home").rglob("*.json"))


def test_sizes_for_people() -> None:
    assert [format_size(n) for n in (0, 999, 1000, 10 << 20, 1 << 30, 3 << 41)] == [
        "0B", "999B", "1.0K", "10M", "1.0G", "6.0T",
    ]  # fmt: skip


def test_tag_copy_resize_verify_gc_and_repositories(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repos = "".join(f"  - name: {name}\n    path: {home}/{name}\n" for name in ("user", "site"))
    (home / "home" / ".pvc" / "repos.yaml").write_text("repos:\n" + repos)
    assert main.run(["image", "import", f"{home}/disk", "a"]) == 0
    for line, said in (
        ("image tag a b", "tagged user:a@1 as user:b@1"),
        ("image copy b site:c", "copied user:b@1 to site:c@1: raw"),
        ("image resize a +1M", "resized user:a@1 to user:a@2: raw, a disk of 2.0M"),
        ("image verify", "user:a@1: ok\nuser:a@2: ok\nuser:b@1: ok\nsite:c@1: ok\n"),
        ("image verify c a@1", "site:c@1: ok\nuser:a@1: ok\n"),
        ("repo verify site", "site:c@1: ok\n"),
        ("image gc -n", "user: 0 files, 0B could be freed"),
        ("repo gc user site", "user: 0 files, 0B freed\nsite: 0 files, 0B freed\n"),
    ):
        capsys.readouterr()
        assert main.run(line.split()) == 0, line
        assert said in capsys.readouterr().out
    assert main.run(["repo", "list", "--json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert [listed["user"][key] for key in ("state", "images", "revisions")] == ["ok", 2, 3]
    assert main.run(["repo", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:2] == ["NAME", "STATE"]
    assert main.run(["image", "resize", "a", "1M"]) == 2
    assert "it can only grow" in capsys.readouterr().err
    assert main.run(["image", "resize", "a", "huge"]) == 2
    for path in (home / "user" / "data").rglob("?" * 64):
        path.chmod(0o644)
        path.write_bytes(bytes(path.stat().st_size))
    capsys.readouterr()
    assert main.run(["image", "verify", "--json", "a@1"]) == 7
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["ok"] is False
    assert "1 of 1 images damaged: user:a@1" in err
    (home / "site" / ".config").write_text('{"version": 9}')
    assert main.run(["repo", "list"]) == 0
    assert "unusable" in capsys.readouterr().out


def test_export_and_import_of_archives(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["image", "import", f"{home}/disk", "a"]) == 0
    assert main.run(["image", "export", "a", f"{home}/a.tar"]) == 0
    assert "exported user:a@1: 1.0M" in capsys.readouterr().out
    assert main.run(["image", "import", f"{home}/a.tar"]) == 2
    assert "user:a is there" in capsys.readouterr().err
    assert main.run(["image", "import", f"{home}/a.tar", "a"]) == 0
    assert "imported user:a@2: raw" in capsys.readouterr().out
    assert main.run(["image", "export", "--all", f"{home}/all.tar"]) == 0
    assert main.run(["image", "import", "--update", f"{home}/all.tar"]) == 0
    assert "user:a@3" in capsys.readouterr().out
    for line, said in (
        (f"image import {home}/disk", "how shall the image be called"),
        (f"image import {home}/a.tar --user root", "says all but NAME"),
        (f"image import {home}/all.tar x", "leave NAME away"),
        (f"image export {home}/b.tar", "name images, or say --all"),
        (f"image export a {home}/a.tar", "exists"),
        (f"image export a@9 {home}/b.tar", "no image 'a@9'"),
    ):
        assert main.run(line.split()) == 2, line
        assert said in capsys.readouterr().err
    assert not (home / "b.tar").exists()


def test_export_to_and_import_from_a_layout(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["image", "import", f"{home}/disk", "a", "--user", "root"]) == 0
    assert main.run(["image", "export", "a", f"oci:{home}/layout:v1"]) == 0
    out, err = capsys.readouterr()
    assert "exported user:a@1: sha256:" in out
    assert "exporting " in err
    assert main.run(["image", "import", f"oci:{home}/layout", "--update"]) == 0
    assert capsys.readouterr().out.startswith("imported user:a@2: raw, a disk of 1.0M")
    assert main.run(["image", "import", f"oci:{home}/layout:v1", "b", "--append", "x"]) == 2
    assert "says all but NAME and -R itself" in capsys.readouterr().err
    assert main.run(["image", "export", "a", "a", f"oci:{home}/layout"]) == 2
    assert "is a place for one image" in capsys.readouterr().err
    assert main.run(["image", "export", "--all", f"oci:{home}/layout"]) == 2


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("from: nothing\n", [], "no image 'nothing'"),
        ("from: a\n", ["--suite", "bookworm"], "--suite, --cache and --builder are for recipes of packages"),
        ("extends: debian\n", ["--flat"], "--flat is for recipes that are from another image"),
        ("from: a\nappend: quiet\n", [], "boots by its disk: append has no effect"),
        ("from: a\nsize: 512K\n", [], "too small for image user:a@1"),
    ],
)
def test_builds_that_cannot_be(
    home: Path, capsys: pytest.CaptureFixture[str], text: str, options: list[str], said: str
) -> None:
    assert main.run(["image", "import", f"{home}/disk", "a"]) == 0
    (home / "mine.yaml").write_text(text)
    assert main.run(["image", "build", f"{home}/mine.yaml", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.allow_sockets("a web server of the test's own")
def test_an_address_as_the_source(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = (home / "disk").read_bytes()
            if self.path == "/none":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data if self.path == "/disk" else data[:1000])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert main.run(["image", "import", f"{url}/disk", "a"]) == 0
            assert capsys.readouterr().out.startswith("imported user:a@1: raw, a disk of 1.0M")
            assert main.run(["image", "import", f"{url}/none", "b"]) == 2
            assert "the server says: 404" in capsys.readouterr().err
            assert main.run(["image", "import", f"{url}/part", "b"]) == 6
            assert "ended after 1000 of" in capsys.readouterr().err
        finally:
            server.shutdown()
            thread.join()
    assert main.run(["image", "import", f"{url}/disk", "b"]) == 6
    assert list((home / "home/images/.tmp").iterdir()) == []


@pytest.mark.allow_run("the command with a pipe before and behind it")
def test_standard_streams(home: Path) -> None:
    def pvc(*words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        argv = [sys.executable, "-c", "from pvc.cli.main import main; main()", "image", *words]
        return subprocess.run(argv, input=data, capture_output=True, check=False, timeout=60)

    disk = (home / "disk").read_bytes()
    assert pvc("import", "-", "a", data=gzip.compress(disk)).returncode == 0
    made = pvc("export", "a", "-")
    assert b"exported user:a@1" in made.stderr
    assert pvc("import", "-", "b", data=made.stdout).stdout.startswith(b"imported user:b@1: raw")
    bad = pvc("import", "-", "c", data=b"nonsense" * 1000)
    assert (bad.returncode, b"cannot import -: neither" in bad.stderr) == (2, True)
    with open("/dev/full", "wb") as full:
        argv = [sys.executable, "-c", "from pvc.cli.main import main; main()", "image", "export", "a", "-"]
        ran = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
    assert b"cannot write the archive: No space left on device" in ran.stderr
    assert list((home / "home/images/.tmp").iterdir()) == []
