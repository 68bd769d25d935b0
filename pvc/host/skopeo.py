# SPDX-License-Identifier: Apache-2.0
"""Thin use of skopeo(1), which speaks with registries of OCI images.

It finds credentials itself (containers-auth.json(5): what ``skopeo login``, ``podman login`` or ``docker login``
wrote), certificates, proxies and the site's registries.conf(5) and policy.json(5). No credential passes through pvc.
"""

from __future__ import annotations

import os
import re
import select
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pvc import run
from pvc.errors import CommandError, HostError
from pvc.host.exitcodes import explain

_ANSWER_TIMEOUT_S = 300.0
# How often a person sees that something moves.
_WATCH_S = 0.25
_KEPT = (
    "HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "CONTAINERS_REGISTRIES_CONF",
)  # fmt: skip
_NOT_THERE = 2  # exitcodes.py
_MESSAGE = re.compile(r'level=(?:fatal|error) msg="((?:[^"\\]|\\.)*)"')


def read_manifest(reference: str, *, plain: bool) -> str:
    """The manifest or index that ``docker://HOST/REPOSITORY:TAG`` names, as it is; ``plain``: without TLS.

    :raise HostError: there is no skopeo, or the registry does not answer, or has nothing of that name.
    """
    argv = ["skopeo", "inspect", "--raw", *(["--tls-verify=false"] if plain else []), reference]
    try:
        return run.run(argv, env=_environment(), timeout_s=_ANSWER_TIMEOUT_S)
    except CommandError as err:
        raise _explain(reference, err.stderr, err.returncode) from None
    except HostError as err:
        raise HostError("pvc talks to registries by skopeo", hint="apt install skopeo") from err


def copy(
    source: str, target: str, *, plain: bool, most: int, progress: Callable[[int], None], inside: Path | None = None
) -> None:
    """Copy an image as it is, byte for byte; ``most``: bytes of the largest file that may be written.

    ``progress`` gets the bytes done: those in files below ``inside``, or those that skopeo has read of files.

    :raise HostError: it failed; what is in the target then is skopeo's affair.
    """
    switches = ["--src-tls-verify=false", "--dest-tls-verify=false"] if plain else []
    argv = ["prlimit", f"--fsize={most}", "--core=0", "--"]
    argv += ["skopeo", "copy", "--quiet", "--preserve-digests", *switches, source, target]
    meter = _Meter(inside)
    with tempfile.TemporaryFile() as errors:
        process = run.spawn(run.bound(argv), env=_environment(), stdout=run.DEVNULL, stderr=errors)
        try:
            ended = os.pidfd_open(process.pid)
            try:
                while not select.select([ended], [], [], _WATCH_S)[0]:
                    progress(meter.read(process.pid))
            finally:
                os.close(ended)
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        said = errors.read(65536).decode(errors="replace")
    if code == -signal.SIGXFSZ:
        raise HostError(f"{source} sends more than its manifest says")
    if code:
        raise _explain(source if target.startswith(("oci:", "dir:")) else target, said, code)


class _Meter:
    """Bytes that skopeo has moved."""

    def __init__(self, inside: Path | None) -> None:
        self._inside = inside
        self._seen: dict[str, int] = {}

    def read(self, pid: int) -> int:
        """How many so far."""
        return self._written(self._inside) if self._inside else self._read(pid)

    def _written(self, inside: Path) -> int:
        total = 0
        for base, _, names in os.walk(inside):
            for name in names:
                with suppress(OSError):
                    total += os.lstat(os.path.join(base, name)).st_size
        return total

    def _read(self, pid: int) -> int:
        """Files that it has open, up to where it is in them, and those that it has closed since."""
        now: dict[str, int] = {}
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError, ValueError, IndexError):
                    path = os.readlink(f"/proc/{pid}/fd/{name}")
                    if re.search(r"/[0-9a-f]{64}$", path):
                        first = Path(f"/proc/{pid}/fdinfo/{name}").read_text().splitlines()[0]
                        now[path] = int(first.split()[1])
        for path in self._seen.keys() - now.keys():
            with suppress(OSError):
                now[path] = os.stat(path).st_size
        self._seen = self._seen | now
        return sum(self._seen.values())


def _environment() -> dict[str, str]:
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    proxies = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    # Programs that keep credentials (credHelpers of auth.json) are where their owner has them.
    return {**run.BASE_ENV, "PATH": f"{run.PATH}:{os.environ.get('PATH', '')}".rstrip(":"), **kept, **proxies}


def _explain(reference: str, said: str, code: int) -> HostError:
    messages = _MESSAGE.findall(said)
    text = (
        messages[-1].replace('\\"', '"') if messages else (said.strip().splitlines() or [explain("skopeo", code)])[-1]
    )
    text = re.sub(r'^Error parsing image name "[^"]*": ', "", text)
    host = reference.removeprefix("docker://").partition("/")[0]
    hint = None
    if "x509: " in text:
        hint = f"put the certificate of who signed it at ~/.config/containers/certs.d/{host}/ca.crt, if you trust them"
    elif "error getting credentials" in text:
        hint = f"credHelpers in auth.json or config.json name a program for {host}: see that it works and is in PATH"
    elif "unauthorized" in text.lower() or "authentication required" in text.lower() or "denied" in text.lower():
        hint = f"log in first: skopeo login {host}"
    elif "server gave HTTP response to HTTPS client" in text:
        hint = "the registry has no TLS: say so in /etc/containers/registries.conf.d (insecure = true)"
    elif code == _NOT_THERE:
        hint = "see whether its name and tag are written so"
    return HostError(f"{reference}: skopeo says: {text[:1000]}", hint=hint)
