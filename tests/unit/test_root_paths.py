# SPDX-License-Identifier: Apache-2.0
"""Where root opens, makes and removes by path: only in places that nobody else can write to, each named here.

What lies below directories of users is reached by ``pvc.beneath`` alone. A new call by path in a module that pvc-node
runs fails this test until it is clear whose place it is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.unit.test_layers import modules

CALLS = {
    *("open", "open_code", "fdopen", "read_text", "read_bytes", "write_text", "write_bytes", "touch", "mkdir"),
    *("makedirs", "chmod", "chown", "lchown", "unlink", "rmdir", "removedirs", "rmtree", "remove_tree", "rename"),
    *("link", "symlink", "symlink_to", "hardlink_to", "listdir", "scandir", "iterdir", "rglob", "glob", "walk"),
    *("mkstemp", "mkdtemp", "copyfile", "copytree", "copy", "move", "truncate", "utime", "readlink", "mknod", "mkfifo"),
    *("write_atomic", "ensure_private_dir", "locked", "NamedTemporaryFile", "TemporaryDirectory", "setxattr"),
}
# Calls of these names that are no files': pyroute2's links, parts of a message.
OTHERS = {"pvc.host.netlink": {"link"}, "pvc.config.userdata": {"walk"}}
# "caller": the path is a parameter, and its callers are those in this table.
STATE, RUNTIME, CONF, KERNEL, CALLER = "/var/lib/pvc", "/run/pvc", "/etc and /usr", "/proc, /sys, /dev", "caller"
RUN_DIR = "the directory of run directories, checked by descriptor"
PLACES = {
    "pvc.config.load": {"_user_templates": CONF},
    "pvc.config.userdata": {"read_user_data_file": CONF},
    "pvc.config.yamlmarks": {"read_document": CONF},
    "pvc.files": {
        **dict.fromkeys(("write_atomic", "locked", "_flock", "ensure_private_dir", "read_text"), CALLER),
        **dict.fromkeys(("ensure_own_dir", "open_own"), CALLER),
    },
    "pvc.host.dnsmasq": {
        "start": RUNTIME,
        "start_again": RUNTIME,
        "stop": RUNTIME,
        "find_process": RUNTIME,
        "_is_ours": KERNEL,
    },
    "pvc.host.ended": {
        "ensure_place": RUN_DIR,
        "evict": "above the directory of run directories, only to give another name to what is there",
        "sweep": RUN_DIR,
        "is_swept": RUN_DIR,
        "_move": RUN_DIR,
        "is_there": RUN_DIR,
        "_open_place": RUN_DIR,
    },
    "pvc.host.forwarding6": {"acquire": KERNEL},
    "pvc.host.hostbridge": {"_is_steady": KERNEL},
    "pvc.host.mounts": {"detach_users": RUN_DIR, "find_mount": KERNEL},
    "pvc.host.netns": {
        "open_named": RUNTIME,
        "list_names": RUNTIME,
        "ensure": RUNTIME,
        "remove": RUNTIME,
        "ensure_directory": RUNTIME,
        "_is_mount_point": KERNEL,
    },
    "pvc.host.ovs": {
        "read_datapath": RUNTIME,
        "find_process": RUNTIME,
        "_answers": RUNTIME,
        "read_jobs": STATE,
        "_write_jobs": STATE,
    },
    "pvc.host.packetsockets": {"_hold": KERNEL, "_find": KERNEL, "_inode": KERNEL},
    "pvc.host.portprogs": {"_read_object": CONF},
    "pvc.host.processes": {"read_start_ticks": KERNEL},
    "pvc.host.sysctl": {
        "acquire": KERNEL,
        "release": KERNEL,
        "read": KERNEL,
        "_read": STATE,
        "_write": KERNEL,
    },
    "pvc.host.tap": {"_attach": KERNEL},
    "pvc.host.underlay": {"_read_hosts": CONF, "_read_resolvers": CONF},
    "pvc.host.walls": {"_read_legacy": KERNEL},
    "pvc.host.vfio": {
        "_write": KERNEL,
        "_open": KERNEL,
        "Bus.is_held": KERNEL,
        "Bus.driver": KERNEL,
        "read_device": KERNEL,
        "bind": KERNEL,
        "release": KERNEL,
    },
    "pvc.node.apply": {
        "open_parent": RUN_DIR,
        **dict.fromkeys(("_add_switch_ports", "_remove_switch_ports", "_set_sysctl", "_release_sysctl"), RUNTIME),
        **dict.fromkeys(("_forward_ipv6", "_release_ipv6"), RUNTIME),
    },
    "pvc.node.configuration": {"Configuration._read_stamp": CONF},
    "pvc.node.context": {
        "Context.prepare": RUNTIME,
        "Context.job_lock": RUNTIME,
        "Context.node_lock": RUNTIME,
        "Context.forget_lock": RUNTIME,
        "read_boot_id": KERNEL,
    },
    "pvc.removal": {
        **dict.fromkeys(("Removal.run", "Removal._flatten"), "a descriptor"),
        "Removal._is_full": "below a descriptor",
        "Removal._lift": "below descriptors",
        "open_closed": "a descriptor's own",
        "remove": CALLER,
        "_remove": CALLER,
        "_names": "a descriptor",
    },
    "pvc.node.daemon": {
        "Daemon.serve": RUNTIME,
        "_guard": RUNTIME,
        "_listen": RUNTIME,
    },
    "pvc.node.setup": {"set_up": STATE, "_refuse": f"{STATE}, or {RUNTIME}"},
    "pvc.node.strays": {"_list": RUNTIME, "adopt": STATE},
    "pvc.node.switchwatch": {"SwitchWatch.find": RUNTIME, "SwitchWatch._note": RUNTIME},
    "pvc.node.scrape": {"listen": "the administrator's choice, and only a socket is removed", "remove": CALLER},
    "pvc.state.drain": {"write_drain": STATE, "read_drain": STATE, "remove_drain": STATE},
    "pvc.state.etcd": {"EtcdStore._connect": CONF},
    "pvc.state.ledger": {
        "Ledger.open": STATE,
        "Ledger.write_record": STATE,
        "Ledger.intend": STATE,
        "Ledger.read_actions": STATE,
        "Ledger.keep": STATE,
        "Ledger.write_inputs": STATE,
        "Ledger.write_upkeep": STATE,
        "Ledger.write_ready": STATE,
        "Ledger.unready": STATE,
        "Ledger.remove": STATE,
        "read_jobs": STATE,
        "_load": STATE,
    },
}


def _of_root() -> list[str]:
    """All modules that pvc-node's daemon, prolog and epilog run."""
    todo = [name for name in modules() if name.startswith("pvc.node.")]
    found = set(todo)
    while todo:
        for each in modules()[todo.pop()].imports:
            # Of the package itself root's side takes the version; what that imports in functions is the API's.
            if each.module in modules() and each.module not in found | {"pvc"}:
                found.add(each.module)
                todo.append(each.module)
    return sorted(found)


def _walk(node: ast.AST, inside: tuple[str, ...] = ()) -> Iterator[tuple[str, ast.Call]]:
    for child in ast.iter_child_nodes(node):
        name = (child.name,) if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else ()
        if isinstance(child, ast.Call):
            yield ".".join(inside) or "<module>", child
        yield from _walk(child, (*inside, *name))


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def test_root_opens_by_path_only_in_places_of_its_own() -> None:
    wrong = []
    met = set()
    for name in _of_root():
        if name == "pvc.beneath":
            continue
        for function, call in _walk(modules()[name].tree):
            if _called(call) not in CALLS - OTHERS.get(name, set()):
                continue
            met.add((name, function))
            if function not in PLACES.get(name, {}):
                wrong.append(f"{modules()[name].path}:{call.lineno}: {function}: {ast.unparse(call)[:80]}")
    assert not wrong, "\n".join(wrong)
    named = {(name, function) for name, functions in PLACES.items() for function in functions}
    assert not named - met - {("pvc.files", "_flock")}, "named, and not there any more"


def test_beneath_resolves_names_below_descriptors_alone() -> None:
    """Each os.open of the helper has a directory's descriptor, but that of the root directory."""
    calls = [call for _, call in _walk(modules()["pvc.beneath"].tree) if ast.unparse(call.func) == "os.open"]
    loose = [ast.unparse(call) for call in calls if not any(each.arg == "dir_fd" for each in call.keywords)]
    assert loose == ["os.open('/', _PATH_DIR)"]
    assert len(calls) >= 3
