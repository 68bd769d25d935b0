from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from pvc.errors import GuestError
from pvc.model.vm import find_libvirt_problems
from pvc.plan.domain import DomainPlaces, DomainSpec, Inherited, plan_domain
from pvc.plan.domaindevices import find_cpu
from pvc.plan.qemu import QemuSpec
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
    channels = tuple((name, f"/run/12/vm3/{name}.sock") for name, _ in spec.fds.channels)
    return DomainSpec(
        name=spec.name,
        uuid="6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        template=spec.template,
        nics=spec.nics,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        accel=spec.accel,
        paths=spec.paths,
        places=DomainPlaces(
            emulator="/run/12/virt/bin/qemu-system-x86_64",
            console="/run/12/vm3/console.sock",
            cpus=(2, 3),
            taps=tuple(f"vm3.{i}" for i in range(len(spec.nics))),
            channels=channels,
            display=display,
            inherited=Inherited(spec.fds.drives, spec.fds.tpm, spec.fds.shares),
        ),
        devices=spec.devices,
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
    cpu = find_cpu(make_spec({"cpu_model": model}).template, kvm=False, cpus=2)
    assert cpu.get("mode") == mode
    assert {each.get("name"): each.get("policy") == "require" for each in cpu.iter("feature")} == features


def test_every_slot_is_the_one_of_the_other_driver() -> None:
    for name in sorted(SCENARIOS.keys() - IMPOSSIBLE.keys()):
        argv = (Path(GOLDEN) / f"qemu-{name}.argv").read_text().splitlines()
        theirs = {int(word.partition("addr=")[2].partition(",")[0], 16) for word in argv if "addr=" in word}
        domain = Xml.fromstring(plan_domain(as_domain(SCENARIOS[name])))
        ours = {
            int(str(address.get("slot")), 16)
            for device in domain.iterfind("devices/*")
            for address in device.iterfind("address")
            if address.get("type") == "pci"
        }
        words = [str(each.get("value")) for each in domain.iter() if each.tag.endswith("}arg")]
        ours |= {int(word.partition("addr=")[2].partition(",")[0], 16) for word in words if "addr=" in word}
        assert ours == theirs, name
