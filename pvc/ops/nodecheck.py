# SPDX-License-Identifier: Apache-2.0
"""``pvc doctor --node``: what this machine lacks as a compute node."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from pvc import run
from pvc.beneath import why_not_own
from pvc.config.lines import add_lines
from pvc.config.load import find_site_dir, load_root_config, load_user_config
from pvc.errors import ConfigError, HostError, Problem
from pvc.host import netlink, portprogs
from pvc.host.kvm import read_kvm
from pvc.model.site import SiteConfig
from pvc.model.vm import Accel
from pvc.ops.checkup import Finding, examine, fail, ok, warn
from pvc.ops.jobdir import find_jobs_dir
from pvc.ops.servicecheck import check_firewall, check_managers
from pvc.ops.slurmcheck import check_plugin, check_srun_ports
from pvc.plan.claims import HINT, find_conflicts
from pvc.plan.names import UPLINK_GROUP
from pvc.slurm.job import read_settings

_SOCKET = "/run/pvc/node.sock"
# program -> Debian package; root's set-up starts them
_PROGRAMS = {"dnsmasq": "dnsmasq-base", "nft": "nftables", "ip": "iproute2"}
_MODULES = ("bridge", "vxlan", "nf_tables")
_QEMU_PACKAGE = "qemu-system-x86"
_LITTLE_ROOM_MIB = 2048
_STATE, _LEAST_FOR_RECORDS_MIB = Path("/var/lib/pvc"), 16


def examine_node() -> Iterator[Finding]:
    """The machine that this process runs on; root can see more than users."""
    is_root = os.geteuid() == 0
    try:
        config = load_root_config(find_site_dir()) if is_root else load_user_config()
    except ConfigError as err:
        yield fail("configuration", str(err), "correct the files; pvc config check says more")
        return
    yield ok("configuration", f"read from {find_site_dir()}")
    yield from examine("pvc-node", _check_daemon)
    if is_root:
        yield from examine("etcd", lambda: _check_etcd(config))
        yield from examine("files", lambda: check_files(config, Path(_SOCKET).parent, _STATE))
    yield from examine("programs", _check_programs)
    yield from examine("kernel", _check_kernel)
    if is_root:
        yield from examine("bpf", _check_bpf)
    yield from examine("slurm", lambda: _check_slurm(config))
    yield from examine("ranges", lambda: check_ranges(config))
    if is_root:
        yield from examine("firewall", lambda: check_firewall(config))
    yield from examine("devices", lambda: check_managers(config))
    yield from examine("qemu", lambda: _check_qemu(config))
    yield from examine("kvm", lambda: _check_kvm(config))
    yield from examine("run-dir", lambda: check_run_dir(Path(config.batch.run_dir)))
    if config.batch.image_cache_dir is not None:
        yield from examine("image-cache-dir", lambda: check_image_cache(Path(config.batch.image_cache_dir or "")))
    if not is_root:
        yield from examine("home", _check_home)


def _check_daemon() -> Iterator[Finding]:
    path = os.environ.get("PVC_NODE_SOCKET", _SOCKET)
    fix = "systemctl enable --now pvc-node (see conf/pvc-node.service)"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(path)
            # No job has the number 0: any answer shows that somebody listens and understands
            connection.sendall(b'{"op":"attach","job":0}\n')
            answer = json.loads(connection.recv(1 << 16).split(b"\n")[0])
    except FileNotFoundError:
        yield warn("pvc-node", f"does not run ({path} is not there): each job's prolog starts it, slowly", fix)
    except (OSError, ValueError) as err:
        yield fail("pvc-node", f"does not answer at {path}: {err}", fix)
    else:
        yield ok("pvc-node", f"answers at {path}" if isinstance(answer, dict) else "answers")


def _check_etcd(config: SiteConfig) -> Iterator[Finding]:
    from pvc.state.etcd import EtcdStore

    store = EtcdStore(config.batch.etcd)
    try:
        store.read_prefix("doctor")
    finally:
        store.close()
    yield ok("etcd", f"answers at {', '.join(config.batch.etcd.servers)}")


def check_files(config: SiteConfig, runtime: Path, state: Path, owner: int = 0) -> Iterator[Finding]:
    """Who may read and write what root has of pvc, and whether there is room for records."""
    wrong = []
    if config.batch.etcd.auth_type == "password":
        wrong.append(_judge_mode(Path(config.batch.etcd.password_file), 0o600, 0o077, owner))
    wrong.append(_judge_mode(state, 0o700, 0o077, owner))
    # Users come to the socket: they must get through, and not be able to put another one in its place.
    wrong.append(_judge_mode(runtime, 0o755, 0o022, owner, wanted=0o011))
    wrong.append(_judge_mode(runtime / "locks", 0o700, 0o077, owner))
    wrong.append(_judge_mode(runtime / "node.sock", 0o666, 0, owner, wanted=0o666))
    wrong.append(_judge_mode(runtime / "node.sock.root", 0o600, 0o077, owner))
    found = [each for each in wrong if each is not None]
    yield from found
    free_mib = _free_mib(state)
    if free_mib < _LEAST_FOR_RECORDS_MIB:
        text = f"{free_mib} MiB are free in {state}, where each job's record is: set-ups are refused when there is none"
        yield fail("files", text, f"make room in {state}")
    elif not found:
        yield ok("files", f"root alone has {state} and etcd's password; {free_mib} MiB are free for records")


def _judge_mode(path: Path, right: int, forbidden: int, owner: int, *, wanted: int = 0) -> Finding | None:
    """What of a file's owner or mode is not as it must be; one that is not there is made when it is needed."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    mode = stat.S_IMODE(facts.st_mode)
    if facts.st_uid != owner:
        return fail("files", f"{path} belongs to uid {facts.st_uid}, not to root", f"chown root {path}")
    if mode & forbidden:
        return fail("files", f"{path} is open to others than root (mode {mode:o})", f"chmod {right:o} {path}")
    if mode & wanted != wanted:
        return fail("files", f"users cannot reach {path} (mode {mode:o})", f"chmod {right:o} {path}")
    return None


def _check_programs() -> Iterator[Finding]:
    missing = {name: package for name, package in _PROGRAMS.items() if shutil.which(name, path=run.PATH) is None}
    if missing:
        yield fail("programs", f"not installed: {', '.join(missing)}", f"apt install {' '.join(missing.values())}")
    else:
        yield ok("programs", ", ".join(_PROGRAMS))


def _check_kernel() -> Iterator[Finding]:
    known = Path("/lib/modules") / platform.release()
    listed = "".join(
        (known / name).read_text() for name in ("modules.builtin", "modules.order") if (known / name).is_file()
    )
    missing = [
        name
        for name in _MODULES
        if not Path("/sys/module", name).exists() and f"/{name}.ko" not in listed.replace("-", "_")
    ]
    if not missing:
        yield ok("kernel", f"has {', '.join(_MODULES)}")
    elif listed:
        yield fail("kernel", f"{platform.release()} has no module {', '.join(missing)}", "install the full kernel")
    else:
        # Without a list of modules a part that is built in cannot be told from one that is missing
        yield warn("kernel", f"cannot tell whether it has {', '.join(missing)}: {known} is not there")
    if not Path("/dev/net/tun").exists():
        yield fail("kernel", "there is no /dev/net/tun", "modprobe tun")


def _check_bpf() -> Iterator[Finding]:
    portprogs.try_loading()
    yield ok("bpf", "the kernel takes the programs for the ports of networks")


def _check_slurm(config: SiteConfig) -> Iterator[Finding]:
    settings = read_settings()
    yield from check_plugin(settings)
    yield from check_srun_ports(config.ethernets.values(), settings)


def check_ranges(config: SiteConfig) -> Iterator[Finding]:
    """What of networks.yaml and batch.yaml this node would refuse to each job."""
    networks = list(config.ethernets.values())
    device = config.batch.underlay_device
    with netlink.opened("read the node's routes") as links:
        problems = find_conflicts(networks, links.claims(but=UPLINK_GROUP))
        if device is not None and links.find(device) is None:
            text = f"this node has no network device {device}"
            problems += (Problem("batch.yaml", 0, "settings.underlay-device", text),)
    for each in add_lines(ConfigError(problems), find_site_dir()).problems:
        yield fail("ranges", str(each), HINT)
    if not problems:
        yield ok("ranges", f"those of {len(networks)} networks are free on this node")


def _check_qemu(config: SiteConfig) -> Iterator[Finding]:
    binaries = sorted({template.qemu_bin for template in config.templates.values()} or {"qemu-system-x86_64"})
    for binary in binaries:
        if shutil.which(binary) is None:
            yield fail("qemu", f"{binary} is not installed", f"apt install {_QEMU_PACKAGE}")
            continue
        said = run.run([binary, "--version"], timeout_s=20).splitlines()
        yield ok("qemu", said[0] if said else binary)


def _check_kvm(config: SiteConfig) -> Iterator[Finding]:
    wanted = config.batch.accel
    if wanted is Accel.TCG:
        yield warn("kvm", "not used, since batch.yaml says accel: tcg; guests are emulated and slow")
        return
    try:
        facts = read_kvm("qemu-system-x86_64", None)
    except HostError as err:
        yield fail("kvm", str(err))
        return
    if facts.accel is Accel.KVM:
        yield ok("kvm", facts.reason)
        return
    fix = "enable virtualisation in the firmware, load kvm_intel or kvm_amd, and let users open /dev/kvm"
    if wanted is Accel.KVM:
        yield fail("kvm", f"batch.yaml demands it, but {facts.reason}", fix)
    else:
        yield warn("kvm", f"guests are emulated and slow: {facts.reason}", fix)


def check_image_cache(path: Path, owners: Collection[int] = (0,)) -> Iterator[Finding]:
    """The parent of users' copies of images: what pvc-node would refuse, and how much room there is."""
    if (found := _check_own("image-cache-dir", path, owners)) is not None:
        yield found
    else:
        yield ok("image-cache-dir", f"{_free_mib(path)} MiB are free for copies of images in {path}")


def check_run_dir(path: Path, owners: Collection[int] = (0,)) -> Iterator[Finding]:
    """The parent of the jobs' directories: the same."""
    if (found := _check_own("run-dir", path, owners)) is not None:
        yield found
    free_mib = _free_mib(path)
    text = f"{free_mib} MiB are free for the VMs' disks in {path}"
    if free_mib < 64:
        yield fail("run-dir", text, "make room, or set run-dir in batch.yaml")
    elif free_mib < _LITTLE_ROOM_MIB:
        yield warn("run-dir", text, "make room, or set run-dir in batch.yaml")
    else:
        yield ok("run-dir", text)


def _check_own(key: str, path: Path, owners: Collection[int]) -> Finding | None:
    """Why pvc-node makes nothing for users there: somebody else could put another directory in its place."""
    real = Path(os.path.realpath(path))
    for each in (*reversed(real.parents), real):
        try:
            facts = each.stat()
        except FileNotFoundError:
            return None  # the rest will be made
        if not stat.S_ISDIR(facts.st_mode):
            return fail(key, f"{each} is not a directory", f"name another one as {key} in batch.yaml")
        if why := why_not_own(facts, owners, last=each == real):
            text = f"{path} must be a directory of root that only root can write to, but of {each}: {why}"
            fix = f"chown root {each}; chmod go-w {each}; or name another directory as {key} in batch.yaml"
            return fail(key, text, fix)
    return None


def _free_mib(path: Path) -> int:
    place = next(each for each in (path, *path.parents) if each.exists())
    return shutil.disk_usage(place).free >> 20


def _check_home() -> Iterator[Finding]:
    place = find_jobs_dir()
    if place.is_dir():
        yield ok("home", f"{place} is seen from here")
    elif Path.home().is_dir():
        yield warn("home", f"there is no {place} on this node", "fine before the first cluster; else share the home")
    else:
        yield fail("home", f"there is no {Path.home()} on this node", "the home must be shared by all nodes")
