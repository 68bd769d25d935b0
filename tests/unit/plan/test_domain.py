# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from pvc.errors import GuestError
from pvc.model.vm import Accel, Mount, find_libvirt_problems
from pvc.plan.domain import DomainPlaces, DomainSpec, Inherited, plan_domain
from pvc.plan.domaindevices import find_cpu
from pvc.plan.qemu import QemuSpec
from tests.unit import filenames
from tests.unit.plan.test_qemu import GOLDEN, SCENARIOS, make_spec

IMPOSSIBLE = {
    "microvm": "no microvm",
    "microvm-tcg": "no microvm",
    "custom-args": "sandbox and monitors are libvirt's own",
    "uefi-secure-hugepages": "no firmware in format qcow2",
    "virtiofs-microvm": "no microvm",
}


def as_domain(spec: QemuSpec, display: str | None = None) -> DomainSpec:
    """The same VM through libvirt."""
    channels = tuple((name, f"/run/12/vm3/{name}.sock") for name in spec.hardware.ports)
    return DomainSpec(
        name=spec.name,
        uuid="6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        hardware=spec.hardware,
        template=spec.template,
        paths=spec.paths,
        places=DomainPlaces(
            emulator="/run/12/virt/bin/qemu-system-x86_64",
            console="/run/12/vm3/console.sock",
            cpus=(2, 3),
            taps=tuple(f"vm3.{i}" for i in range(len(spec.hardware.nics))),
            channels=channels,
            display=display,
            inherited=Inherited(spec.fds.drives, spec.fds.tpm, spec.fds.shares, spec.fds.images),
        ),
    )


@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - IMPOSSIBLE.keys()))
def test_xml_equals_golden(name: str) -> None:
    path = GOLDEN / f"domain-{name}.xml"
    text = plan_domain(as_domain(SCENARIOS[name]))
    if os.environ.get("PVC_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", sorted(IMPOSSIBLE))
def test_what_libvirt_cannot_do_is_said(name: str) -> None:
    with pytest.raises(GuestError, match=IMPOSSIBLE[name]):
        plan_domain(as_domain(SCENARIOS[name]))


@pytest.mark.parametrize("protocol", ["vnc", "spice"])
def test_screens(protocol: str) -> None:
    domain = Xml.fromstring(plan_domain(as_domain(make_spec({"remote_display": protocol}), "/run/12/vm3/display.sock")))
    (graphics,) = domain.iter("graphics")
    assert graphics.get("type") == protocol
    assert [each.attrib for each in graphics] == [{"type": "socket", "socket": "/run/12/vm3/display.sock"}]


def test_no_text_breaks_out_of_its_element() -> None:
    nasty = """</name><devices/>&amp;'"<x>"""
    spec = make_spec({"custom_args": (nasty,), "boot": SCENARIOS["tcg-direct-boot"].template.boot})
    domain = Xml.fromstring(plan_domain(as_domain(spec)))
    assert [each.get("value") for each in domain.iter() if each.tag.endswith("}arg")] == [nasty]
    assert len(list(domain.iter("devices"))) == 1


@pytest.mark.parametrize(
    ("model", "mode", "features"),
    [
        ("auto", "maximum", {"erms": False, "fsrm": False}),
        ("host", "host-passthrough", {}),
        ("EPYC,+avx2,-svm,pcid=off,x2apic=on", "custom", {"avx2": True, "svm": False, "pcid": False, "x2apic": True}),
    ],
)
def test_cpu_models(model: str, mode: str, features: dict[str, bool]) -> None:
    assert not find_libvirt_problems(machine_type="q35", cpu_model=model, custom_args=())
    cpu = find_cpu(make_spec({"cpu_model": model}, accel=Accel.TCG).hardware)
    assert cpu.get("mode") == mode
    assert {each.get("name"): each.get("policy") == "require" for each in cpu.iter("feature")} == features


def place_of_argument(word: str) -> tuple[int, str, str]:
    """Of an argument of QEMU's: the slot, what is there, and which of these."""
    driver, *pairs = word.split(",")
    found = dict(pair.split("=", 1) for pair in pairs)
    return int(found["addr"], 16), driver, found.get("mount_tag") or found.get("host") or found["id"]


def places_of_elements(domain: Xml.Element) -> Iterator[tuple[int, str, str]]:
    """The same of libvirt's elements, in QEMU's words."""
    for device in domain.iterfind("devices/*"):
        slot = device.find("address[@type='pci']")
        if slot is None:
            continue
        driver, which = DRIVERS[device.tag, device.get("type") if device.tag == "controller" else None]
        if (alias := device.find("alias")) is not None:
            which = str(alias.get("name")).removeprefix("ua-")
        elif device.tag == "filesystem":
            which = device.find("target").get("dir")
        elif device.tag == "hostdev":
            parts = [device.find("source/address").get(key)[2:] for key in ("domain", "bus", "slot", "function")]
            which = "{}:{}:{}.{}".format(*parts)
        if device.tag == "interface":
            driver = DRIVERS["model", device.find("model").get("type")][0]
        yield int(str(slot.get("slot")), 16), driver, which


# What QEMU calls an element of this type, and its id where there is one alone.
DRIVERS = {
    ("disk", None): ("virtio-blk-pci", ""),
    ("rng", None): ("virtio-rng-pci", "rng"),
    ("interface", None): ("", ""),
    ("model", "virtio"): ("virtio-net-pci", ""),
    ("model", "e1000"): ("e1000", ""),
    ("controller", "scsi"): ("virtio-scsi-pci", "scsi0"),
    ("controller", "virtio-serial"): ("virtio-serial-pci", "channels"),
    ("filesystem", None): ("virtio-9p-pci", ""),
    ("hostdev", None): ("vfio-pci", ""),
}


def test_every_slot_has_what_it_has_with_the_other_driver() -> None:
    for name in sorted(SCENARIOS.keys() - IMPOSSIBLE.keys()):
        argv = (Path(GOLDEN) / f"qemu-{name}.argv").read_text().splitlines()
        theirs = sorted(place_of_argument(word) for word in argv if "addr=" in word)
        domain = Xml.fromstring(plan_domain(as_domain(SCENARIOS[name])))
        words = [str(each.get("value")) for each in domain.iter() if each.tag.endswith("}arg")]
        ours = [*places_of_elements(domain), *(place_of_argument(word) for word in words if "addr=" in word)]
        assert sorted(ours) == theirs, name
        assert len({slot for slot, *_ in ours}) == len(ours), name


def sharing(name: str) -> DomainSpec:
    return as_domain(make_spec({"mounts": (Mount(f"/d/{name}", "/mnt/a", tag="a"),)}))


def is_text(name: str) -> bool:
    return not any((char < " " and char not in "\t\r\n") or "\ud800" <= char <= "\udfff" for char in name)


@pytest.mark.parametrize("name", [name for name in filenames.SEEN if is_text(name)])
def test_every_name_of_a_directory(name: str) -> None:
    found = Xml.fromstring(plan_domain(sharing(name))).find("devices/filesystem/source")
    assert found is not None
    assert found.get("dir") == f"/d/{name}"


@pytest.mark.parametrize("name", [name for name in filenames.SEEN if not is_text(name)])
def test_names_that_xml_cannot_say(name: str) -> None:
    with pytest.raises(GuestError, match=r"<source dir=.* has a character that XML"):
        plan_domain(sharing(name))
