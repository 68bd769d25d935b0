# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pytest

from pvc.errors import ConfigError, HostError, UsageError
from pvc.images import aptsources, build, mmdebstrap, uefidisk
from pvc.images.recipe import Recipe, find_recipe, join_recipes, load_lineage, load_recipe, plan_stages
from pvc.images.recipefiles import EPOCH
from pvc.model.node import Nic
from pvc.plan.cloudinit import SeedSpec, plan_seed

GOOD = """
description: mine
suite: bookworm
packages: [linux-image-amd64, busybox-static]
append: root=/dev/vda
size: 2G
files:
  - {path: /etc/motd, content: hello, mode: 0600}
variants:
  trixie: {packages: [more], without: [busybox-static], commands: ["true"]}
"""


def load(base: Path, text: str, suite: str | None = None) -> Recipe:
    path = base / "mine.yaml"
    path.write_text(text)
    return load_recipe(path, suite=suite)


def debian() -> Recipe:
    return load_recipe(find_recipe("debian"))


def test_what_was_read_is_what_is_built(tmp_path: Path) -> None:
    """A build takes minutes, in which a recipe, one that it extends and files beside it may become others."""
    secret, beside, parent = tmp_path / "secret", tmp_path / "motd", tmp_path / "base.yaml"
    secret.write_text("secret")
    beside.write_text("hello")
    parent.write_text(GOOD)
    recipe = load(tmp_path, "extends: ./base.yaml\nfiles:\n  - {path: /etc/issue, source: motd}\n")
    before = recipe.digest()
    for path in (beside, parent, tmp_path / "mine.yaml"):
        path.unlink()
        path.symlink_to(secret)
    assert recipe.digest() == before
    assert {file.path: file.content for file in recipe.files} == {"/etc/motd": "hello", "/etc/issue": "hello"}


def test_the_shipped_recipe_is_good() -> None:
    recipe = debian()
    assert recipe.suite == "bookworm"
    assert recipe.initrd is not None
    assert len({file.path for file in recipe.files}) == len(recipe.files)
    assert len(recipe.append) < 1024


def test_a_release_can_differ(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).packages == ("linux-image-amd64", "busybox-static")
    assert load(tmp_path, GOOD).size_bytes == 2 << 30
    other = load(tmp_path, GOOD, "trixie")
    assert (other.suite, other.packages, other.commands) == ("trixie", ("linux-image-amd64", "more"), ("true",))
    assert other.digest() != load(tmp_path, GOOD).digest() == load(tmp_path, GOOD + "\n# comment").digest()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("size: 2G", "size: 2X"), "mine.yaml:6: size: '2X' is not a size"),
        (("size: 2G", "size: 1M"), "not between"),
        (("suite: bookworm", "suite: ../x"), "mine.yaml:3: suite"),
        (("busybox-static]", "Bad_Name]"), "'Bad_Name' is not a package"),
        (("/etc/motd", "etc/motd"), "not an absolute path"),
        (("/etc/motd", "/etc/../../motd"), "not an absolute path"),
        (("0600", "0999"), "not octal"),
        (("append: root=/dev/vda", ""), "missing"),
        (("size: 2G", "sise: 2G"), "unknown"),
        (("packages: [", "packages: [["), "is not YAML"),
        ((GOOD, "- a list"), "a recipe is a mapping"),
    ],
)
def test_bad_recipes_are_explained(tmp_path: Path, change: tuple[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load(tmp_path, GOOD.replace(*change))


CHILD = """
extends: ./mine.yaml
description: child
packages: [slurmd, busybox-static]
append: quiet
files:
  - {path: /etc/motd, content: other}
  - {path: /etc/issue, content: more}
commands: [echo child]
variants:
  trixie: {packages: [newer]}
"""


def load_child(base: Path, text: str = CHILD, suite: str | None = None) -> Recipe:
    (base / "mine.yaml").write_text(GOOD)
    (base / "child.yaml").write_text(text)
    return load_recipe(base / "child.yaml", suite=suite)


def test_a_recipe_says_only_what_is_more(tmp_path: Path) -> None:
    child = load_child(tmp_path)
    assert (child.description, child.suite, child.size) == ("child", "bookworm", "2G")
    assert child.packages == ("linux-image-amd64", "busybox-static", "slurmd")
    assert child.append == "root=/dev/vda quiet"
    assert [(file.path, file.content) for file in child.files] == [("/etc/motd", "other"), ("/etc/issue", "more")]
    other = load_child(tmp_path, suite="trixie")
    assert other.packages == ("linux-image-amd64", "more", "slurmd", "busybox-static", "newer")
    assert other.commands == ("true", "echo child")
    assert load_child(tmp_path, CHILD + "suite: trixie\n") == other
    assert load_child(tmp_path, "extends: ./mine.yaml\n") == load(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("./mine.yaml", "nowhere"), "child.yaml:2: extends: there is no recipe 'nowhere'"),
        (("./mine.yaml", "./nowhere.yaml"), "child.yaml:2: extends: there is no recipe /.*/nowhere.yaml"),
        (("./mine.yaml", "./child.yaml"), "child.yaml:2: extends: .*: child.yaml -> child.yaml"),
        (("./mine.yaml", "./link.yaml"), "child.yaml:2: extends: .* cannot extend itself"),
        (("./mine.yaml", "[debian]"), "child.yaml:2: extends: is not the name"),
        (("./mine.yaml", "./bad.yaml"), "bad.yaml:1: size"),
        (("slurmd", "Bad_Name"), "child.yaml:4: packages: 'Bad_Name'"),
        (("commands", "comands"), "child.yaml: .*unknown.*comands"),
        (("commands: [", "commands: [["), "child.yaml:.* is not YAML"),
    ],
)
def test_bad_relations_are_explained(tmp_path: Path, change: tuple[str, str], text: str) -> None:
    (tmp_path / "bad.yaml").write_text("size: 2X" + GOOD.replace("size: 2G", ""))
    (tmp_path / "link.yaml").symlink_to("child.yaml")
    with pytest.raises(ConfigError, match=text):
        load_child(tmp_path, CHILD.replace(*change))


def test_what_can_be_done_on_the_result_of_others_is_a_stage_of_its_own(tmp_path: Path) -> None:
    for name, count in (("debian", 1), ("cluster", 2), ("docker", 2), ("slurm", 3)):
        lineage = load_lineage(find_recipe(name))
        stages = plan_stages(lineage)
        assert stages == lineage
        assert len(stages) == count
        assert join_recipes(stages) == load_recipe(find_recipe(name))
    for more in ("exclude: [/usr/share/x/*]", "include: [/usr/share/x/*]", "components: [main, contrib]",
                 "files: [{path: /usr/lib/pvc-guest/cluster}]"):  # fmt: skip
        path = tmp_path / "child.yaml"
        path.write_text(f"extends: cluster\ndescription: x\n{more}\n")
        lineage = load_lineage(path)
        assert plan_stages(lineage) == (join_recipes(lineage),)


@pytest.mark.parametrize(("there", "done"), [((), 0), ((0,), 1), ((0, 1), 2), ((1,), 2), ((2,), 0)])
def test_the_longest_beginning_in_the_cache_is_taken(tmp_path: Path, there: tuple[int, ...], done: int) -> None:
    kept = build._Kept(tmp_path, ["a", "b", "c"], "state")
    for number in there:
        path = kept.path(number)
        assert path is not None
        path.touch()
    assert kept.find() == done
    assert build._Kept(tmp_path, ["a", "b", "c"], "other").find() == 0
    assert build._Kept(None, ["a", "b", "c"], "state").find() == 0


def test_all_shipped_recipes_build_upon_debian() -> None:
    names = sorted(path.stem for path in find_recipe("debian").parent.glob("*.yaml"))
    assert names == ["cluster", "debian", "debian-uefi", "docker", "mpi", "slurm"]
    for name in names:
        recipe = load_recipe(find_recipe(name))
        assert recipe.packages[: len(debian().packages)] == debian().packages
        assert recipe.commands[: len(debian().commands)] == debian().commands


@pytest.mark.allow_run  # sh reads what the guests will run
def test_the_shipped_scripts_are_shell() -> None:
    for name in ("cluster", "docker", "mpi", "slurm"):
        recipe = load_recipe(find_recipe(name))
        scripts = [file.content for file in recipe.files if file.content.startswith("#!/bin/busybox sh")]
        for script in (*scripts, *recipe.commands):
            done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
            assert (done.returncode, done.stderr) == (0, "")


def test_files_beside_a_recipe_are_read(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "run").write_text("#!/bin/sh\n")
    (tmp_path / "files" / "run").chmod(0o755)
    (tmp_path / "files" / "text").write_text("text")
    entries = (
        "path: /run, source: files/run",
        "path: /a, source: files/text",
        "path: /b, source: files/text, mode: 0600",
    )
    files = "".join(f"  - {{{entry}}}\n" for entry in entries)
    recipe = load(tmp_path, f"extends: debian\nfiles:\n{files}")
    found = [(each.path, each.content, each.mode) for each in recipe.files[-3:]]
    assert found == [("/run", "#!/bin/sh\n", "0755"), ("/a", "text", "0644"), ("/b", "text", "0600")]
    (tmp_path / "files" / "binary").write_bytes(b"\xff")
    for entry, text in (
        ("source: files/none", "files: cannot read .*files/none: No such file"),
        ("source: files/binary", "files/binary: it is no text"),
        ("source: files", "Is a directory"),
        ("source: files/text, content: x", "one of source, content and link"),
    ):
        with pytest.raises(ConfigError, match=text):
            load(tmp_path, f"extends: debian\nfiles: [{{path: /a, {entry}}}]\n")


def test_recipes_are_found_by_name_or_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipe 'nope' \(known: .*debian"):
        find_recipe("nope")
    with pytest.raises(UsageError, match="no recipe /nope"):
        find_recipe("/nope.yaml")


def test_files_are_packed_with_their_modes(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD.replace("commands:", "files: [{path: /a, link: b}], commands:"), "trixie")
    with tarfile.open(fileobj=BytesIO(mmdebstrap._pack_files(recipe))) as archive:
        members = {member.name: member for member in archive.getmembers()}
        script = archive.extractfile("var/tmp/pvc-build")
        assert script is not None
        assert script.read() == b"true\n"
    assert members["etc/motd"].mode == 0o600
    assert members["a"].linkname == "b"


def make_disk(work: Path, recipe: Recipe, *, mtime: float) -> bytes:
    """The disk of a small guest, one of whose files was made by the build."""
    guest = work / "guest"
    for name, content in {
        "etc/shadow": f"root:*:{int(mtime) // 86400}:0:99999:7:::\n",
        "etc/passwd-": f"{mtime}",
        "var/lib/pvc-packages": "a 1\n",
        "var/log/apt/history.log": f"{mtime}",
        "usr/bin/packaged": "#!/bin/sh\n",
        "usr/lib/made here": "made",
    }.items():
        (guest / name).parent.mkdir(parents=True, exist_ok=True)
        (guest / name).write_text(content)
    os.utime(guest / "usr/bin/packaged", (mtime, 1_600_000_000))
    os.link(guest / "usr/bin/packaged", guest / "usr/bin/linked")
    (guest / "usr/bin/pointer").symlink_to("packaged")
    (work / "begin").touch()
    os.utime(work / "begin", (mtime - 1, mtime - 1))
    for path in [*guest.rglob("*"), guest]:
        if path.name not in ("packaged", "linked"):
            os.utime(path, (mtime, mtime), follow_symlinks=False)
    members = [f"./{path.relative_to(guest)}" for path in sorted(guest.rglob("*"))]
    tar = ["tar", "-cf", work / "root.tar", "--no-recursion", "-C", guest, *members]
    subprocess.run(tar, check=True)
    build._make_file_system(recipe, work, lambda _: None)
    loaders = [work / "root" / path for path in (uefidisk.SHIM, uefidisk.GRUB)]
    for path in (*loaders, work / "result/kernel", work / "result/initrd"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    build._make_disk(recipe, work, lambda _: None)
    return (work / "result" / "disk.qcow2").read_bytes()


def check_system_partition(disk: Path, root: Path) -> Path:
    """What firmware looks for is where it looks; returns the file system of the root, cut out."""
    said = subprocess.run(["sfdisk", "--json", disk], check=True, capture_output=True, text=True).stdout
    system, last = json.loads(said)["partitiontable"]["partitions"]
    assert (system["type"], last["name"]) == ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "root")
    subprocess.run(["sfdisk", "--verify", disk], check=True, capture_output=True)
    image = f"{disk}@@{system['start'] * 512}"
    found = {}
    for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi", "EFI/debian/grub.cfg", "vmlinuz", "initrd.img"):
        argv = ["mtype", "-i", image, f"::{name}"]
        found[name] = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert found["EFI/BOOT/BOOTX64.EFI"] == "shimx64.efi.signed"
    assert found["EFI/BOOT/grubx64.efi"] == "grubx64.efi.signed"
    assert "linux /vmlinuz 'root=/dev/vda2'\n" in found["EFI/debian/grub.cfg"]
    assert (found["vmlinuz"], found["initrd.img"]) == ("kernel", "initrd")
    with disk.open("rb") as stream:
        stream.seek(last["start"] * 512)
        root.write_bytes(stream.read(last["size"] * 512))
    return root


@pytest.mark.allow_run  # tar, mke2fs and qemu-img; sfdisk and mtools
@pytest.mark.parametrize("boot", ["kernel", "uefi"])
def test_two_builds_are_equal_to_the_byte(tmp_path: Path, boot: str) -> None:
    recipe = load(tmp_path, GOOD.replace("2G", "512M") + f"boot: {boot}\n")
    disks = []
    for mtime in (1_760_000_000.25, 1_770_086_400.75):
        work = tmp_path / str(mtime)
        work.mkdir()
        disks.append(make_disk(work, recipe, mtime=mtime))
        time.sleep(1.1 if len(disks) == 1 else 0)
    assert disks[0] == disks[1]
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", work / "result" / "disk.qcow2", "-O", "raw", raw], check=True)
    assert raw.stat().st_size == 512 << 20
    if boot == "uefi":
        raw = check_system_partition(raw, tmp_path / "root.raw")
    subprocess.run(["e2fsck", "-fn", raw], check=True, capture_output=True)

    def look(command: str) -> str:
        return subprocess.run(["debugfs", "-R", command, raw], check=True, capture_output=True, text=True).stdout

    assert look("cat /etc/shadow") == f"root:*:{EPOCH // 86400}:0:99999:7:::\n"
    assert look("cat /var/log/apt/history.log") == ""
    assert "0x5f5e1000" in look("stat /usr/bin/packaged")  # what packages say stays
    assert hex(EPOCH) in look('stat "/usr/lib/made here"')


def test_what_a_user_lacks_is_said() -> None:
    good = {"/etc/subuid": "bob:1:9\nann:100000:65536\n", "/etc/subgid": "1001:100000:65536\n"}
    good |= dict.fromkeys(build._SWITCHES, "1\n")
    assert build.find_obstacles("ann", 1001, good) == []
    assert build.find_obstacles("ann", 1001, good | dict.fromkeys(build._SWITCHES, "")) == []
    assert build.find_obstacles("ann", 1001, good | {"/etc/subgid": "ann:1:9\nann:x:y\nann\n"}) == [
        "/etc/subgid gives ann no 65536 numbers"
    ]
    (off,) = build.find_obstacles("ann", 1001, good | {build._SWITCHES[1]: "0\n"})
    assert off == "/proc/sys/user/max_user_namespaces is 0, so there are no user namespaces"
    assert len(build.find_obstacles("bob", 7, good)) == 2


TARGETS = """Debian|http://mirror/debian/|bookworm|bookworm|main|
Debian|http://mirror/debian/|bookworm-updates|bookworm-updates|main|
Debian|http://mirror/debian-security/|bookworm-security|bookworm-security|main|
Debian|http://mirror/debian/|bookworm|bookworm|contrib|
Debian Backports|http://mirror/debian/|bookworm-backports|x|main|
Slurm Inc.|http://other/|bookworm|bookworm|main|
garbage
"""


def test_mirrors_are_those_of_the_host() -> None:
    found = aptsources.plan_sources(TARGETS, "trixie", ["main"], "bookworm")
    assert [source.line for source in found] == [
        "deb http://mirror/debian trixie main",
        "deb http://mirror/debian trixie-updates main",
        "deb http://mirror/debian-security trixie-security main",
    ]
    for text, codename in (("", "bookworm"), (TARGETS, "noble"), ("Ubuntu|http://u/|noble|noble|main|", "noble")):
        with pytest.raises(HostError, match="knows no mirror"):
            aptsources.plan_sources(text, "trixie", ["main"], codename)
    assert aptsources.read_codename('ID=debian\nVERSION_CODENAME=bookworm\nVERSION="12"') == "bookworm"
    assert aptsources.read_codename("ID=arch") == ""


def test_only_package_lists_decide_whether_a_mirror_changed() -> None:
    text = "Date: {}\nMD5Sum:\n x 1 main/binary-amd64/Packages\nSHA256:\n aa 1 main/binary-amd64/Packages\n"
    text += " {} 2 main/binary-arm64/Packages\n bb 3 contrib/binary-amd64/Packages\n"
    sums = [aptsources.find_list_sums(text.format(day, other), ["main"], "amd64") for day, other in ("1c", "2d")]
    assert sums == [["aa 1 main/binary-amd64/Packages"]] * 2


# --- the guest's own reader of the seed must understand what pvc writes

KEYS = ("ssh-ed25519 AAAA one", 'command="echo \\"hi\\"" ssh-ed25519 BBBB two')
NICS = (
    Nic("nat", "52:54:00:00:00:01", 1450, "10.0.0.2/16", "10.0.0.1", 0),
    Nic("lan", "52:54:00:00:00:02", 9000, None, None, 1),
    Nic("data", "52:54:00:00:00:03", 1450, "10.1.0.2/16", "10.1.0.1", 2),
)


def read_seed(base: Path, documents: dict[str, str]) -> tuple[int, dict[str, str]]:
    script = next(file.content for file in debian().files if file.path.endswith("/seed.awk"))
    disk, out = base / "disk", base / "out"
    disk.mkdir()
    out.mkdir()
    for name, text in documents.items():
        (disk / name).write_text(text)
    done = subprocess.run(["awk", script], cwd=disk, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, {path.name: path.read_text() for path in out.iterdir()}


@pytest.mark.allow_run  # awk is what the guest runs
def test_the_guest_reads_the_seed_that_pvc_writes(tmp_path: Path) -> None:
    private = "-----BEGIN KEY-----\nab+/\n-----END KEY-----\n"
    spec = SeedSpec("i-1", "vm7", NICS, KEYS, private, "ssh-ed25519 CCCC", None)
    assert read_seed(tmp_path, plan_seed(spec)) == (
        0,
        {
            "hostname": "vm7\n",
            "keys": "\n".join(KEYS) + "\n",
            "host-key": private,
            "52:54:00:00:00:01": "dhcp=yes\nmtu=1450\n",
            "52:54:00:00:00:02": "dhcp=no\nmtu=9000\n",
            "52:54:00:00:00:03": "dhcp=yes\nmtu=1450\nmetric=300\n",
        },
    )


@pytest.mark.allow_run  # awk is what the guest runs
def test_a_users_own_host_keys_are_left_to_cloud_init(tmp_path: Path) -> None:
    spec = SeedSpec("i-1", "vm7", (), KEYS, "key\n", "pub", "#cloud-config\nssh_keys: {rsa_private: x}\n")
    code, found = read_seed(tmp_path, plan_seed(spec))
    assert code == 0
    assert set(found) == {"hostname", "keys"}


@pytest.mark.allow_run  # awk is what the guest runs
@pytest.mark.parametrize(
    "text", ["", "instance-id: i-1\nlocal-hostname: vm7\n", '{"local-hostname": "vm7', '{"a" "b"}', "{a: 1}", "[}"]
)
def test_other_seeds_are_left_to_cloud_init(tmp_path: Path, text: str) -> None:
    assert read_seed(tmp_path, {"meta-data": text, "user-data": ""}) == (1, {})
