# SPDX-License-Identifier: Apache-2.0
"""How values may be written: user-data, numbers without quotes, paths from the home."""

from __future__ import annotations

import os
from pathlib import Path

from pvc.model.site import Repository
from tests.unit.config.sites import EXPANSION, load_site, problems_of, write_site


def test_user_data(tmp_path: Path) -> None:
    (tmp_path / "ud.yaml").write_text("#cloud-config\nruncmd: [ls]\n")
    text = "a: {user-data: ud.yaml}\nb: {user-data: {packages: [vim], hostname: é}}\n"
    templates = load_site(write_site(tmp_path, templates=text)).templates
    assert templates["a"].user_data == "#cloud-config\nruncmd: [ls]\n"
    assert templates["b"].user_data == '#cloud-config\npackages:\n- vim\nhostname: "\\xE9"\n'
    inline = "c:\n  user-data: |\n    #!/bin/sh\n    date\nd: {user-data: '#cloud-config'}\n"
    templates = load_site(write_site(tmp_path, templates=inline)).templates
    assert templates["c"].user_data == "#!/bin/sh\ndate\n"
    assert templates["d"].user_data == "#cloud-config"
    (tmp_path / "ud.yaml").write_bytes(b"\xff")
    write_site(tmp_path, templates="a: {user-data: ud.yaml}\nb: {user-data: none.yaml}\nc: {user-data: .}\n")
    texts = problems_of(tmp_path)
    assert [text.partition(": cannot read")[0] for text in texts[1:]] == [
        "templates.yaml:2: b.user-data",
        "templates.yaml:3: c.user-data",
    ]
    assert texts[0].endswith("ud.yaml:1: is not UTF-8 text")


def test_user_data_that_cloud_init_would_pass_over(tmp_path: Path) -> None:
    """The same is refused as on the command line."""
    (tmp_path / "ud.yaml").write_text("---\n#cloud-config\n")
    (tmp_path / "large").write_text("#!/bin/sh\n" + os.urandom(200 << 10).hex())
    text = "a: {user-data: ud.yaml}\nb: {user-data: large}\nc:\n  user-data: |\n    packages: [vim]\n"
    first, second, third = problems_of(write_site(tmp_path, templates=text))
    assert first.endswith("/ud.yaml:2: '#cloud-config' has to be the first line, and '---' is before it (line 1)")
    assert second.startswith(f"templates.yaml:2: b.user-data: {tmp_path}/large has ")
    assert second.endswith(" KiB packed, and 120 KiB fit: let the guest fetch large files itself")
    assert third.startswith("templates.yaml:4: c.user-data: line 1: 'packages: [vim]' is none of #cloud-config, #!, ")


def test_numbers_are_text_as_they_are_written(tmp_path: Path) -> None:
    """YAML makes numbers of them; 22.10 must not become 22.1."""
    text = """
a: {image: 22.10, memory: 2048, disk-size: 20, description: 0x1F, cpu-model: 486, gres: 1_0, resource-set: nat}
b: {<<: &more {image: 1.50}, memory: 64}
c: {inherits: a, memory: 0512}
d: {image: 3.0, <<: *more}
"""
    templates = load_site(write_site(tmp_path, templates=text)).templates
    a = templates["a"]
    assert (a.image, a.memory, a.disk_size, a.description) == ("22.10", 2048, 20 << 30, "0x1F")
    assert (a.cpu_model, a.gres) == ("486", ("1_0",))
    assert [templates[name].image for name in "bcd"] == ["1.50", "22.10", "3.0"]
    assert templates["c"].memory == 512
    # Truth values and dates are none.
    write_site(tmp_path, templates="a: {image: yes}\nb: {memory: [1]}\nc: {memory: -5}\n")
    assert problems_of(tmp_path) == [
        "templates.yaml:1: a.image: yes is not an image's name",
        "templates.yaml:2: b.memory: a list is not a size such as 2G",
        "templates.yaml:3: c.memory: '-5' is not a size such as 512M or 4G",
    ]


def test_paths_may_begin_with_the_home(tmp_path: Path) -> None:
    home = Path(EXPANSION.homedir)
    text = """
a:
  mount-points: {data: ~/data, more: {path: '~'}}
  persistent-drives: [~/disk.raw, {'~/%{vm_rank}.raw': {mmp: no}}]
  qemu-bin: ~/bin/qemu
  hooks: {before-start: [~/hook, ~/argument, 5, a~/b]}
  user-data: ~/ud
"""
    repos = "repos: [{name: own, path: ~/images}]\n"
    site = write_site(tmp_path, templates=text, repos=repos)
    told = problems_of(site)
    assert told == [f"templates.yaml:7: a.user-data: cannot read {home}/ud: No such file or directory"]
    write_site(tmp_path, templates=text.replace("  user-data: ~/ud\n", ""), repos=repos)
    config = load_site(site)
    found = config.templates["a"]
    assert [each.source for each in found.mount_points] == [f"{home}/data", f"{home}"]
    assert [each.path for each in found.persistent_drives] == [f"{home}/disk.raw", f"{home}/%{{vm_rank}}.raw"]
    assert found.qemu_bin == f"{home}/bin/qemu"
    assert found.hooks.before_start == (f"{home}/hook", f"{home}/argument", "5", "a~/b")
    assert config.repositories == (Repository("own", f"{home}/images"),)
    write_site(tmp_path, templates="a: {mount-points: {data: ~bob/data}}\n")
    assert problems_of(tmp_path) == ["templates.yaml:1: a.mount-points.data: '~bob/data' is not an absolute path"]
