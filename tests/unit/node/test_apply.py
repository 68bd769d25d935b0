# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import typing
from pathlib import Path

import pytest

from pvc.errors import ConfigError, StateError
from pvc.host import ended
from pvc.node import apply
from pvc.plan import actions
from pvc.state import membership
from pvc.state.memory import MemoryStore
from pvc.state.store import Result
from tests.unit.plan.worlds import NAT


class DeadStore(MemoryStore):
    """A store whose server is gone."""

    def transact(self, *args: object, **kwargs: object) -> Result:
        raise StateError("the state store does not answer")


def _hands(tmp_path: Path, store: MemoryStore) -> apply.Hands:
    return apply.Hands(tmp_path / "host.json", tmp_path / "switch.json", tmp_path / "lock", lambda: store)


def test_every_action_has_its_pair_of_effects() -> None:
    assert set(apply._TABLE) == set(typing.get_args(actions.Action))


def test_a_run_dir_is_made_for_its_owner_and_goes_with_all_it_holds(tmp_path: Path) -> None:
    hands = _hands(tmp_path, MemoryStore())
    step = actions.MakeRunDir(str(tmp_path / "runs" / "12"), os.getuid(), os.getgid())
    apply.create(step, hands)
    apply.create(step, hands)
    path = Path(step.path)
    assert path.stat().st_mode & 0o777 == 0o700
    (path / "vm0").mkdir()
    (path / "vm0" / "link").symlink_to(tmp_path / "lock")
    (tmp_path / "lock").touch()
    assert apply.undo([step, step], hands) == ([], [])
    assert not path.exists()
    (aside,) = (path.parent / ended.NAME).iterdir()
    assert aside.name.startswith("12-")
    assert ended.sweep(path.parent).clean
    assert [entry.name for entry in path.parent.iterdir()] == [ended.NAME]
    assert ended.is_swept(path.parent)
    assert (tmp_path / "lock").exists()


def test_a_users_cache_is_made_in_a_directory_of_roots_and_stays(tmp_path: Path) -> None:
    hands = _hands(tmp_path, MemoryStore())
    step = actions.MakeCacheDir(str(tmp_path / "images" / "1000"), os.getuid(), os.getgid())
    apply.create(step, hands)
    (Path(step.path) / "copy").touch()
    assert apply.undo([step], hands) == ([], [])
    apply.create(step, hands)
    assert [path.name for path in Path(step.path).iterdir()] == ["copy"]
    assert Path(step.path).stat().st_mode & 0o777 == 0o700
    Path(step.path).parent.chmod(0o777)
    with pytest.raises(ConfigError, match="must be a directory of root"):
        apply.create(step, hands)


def test_a_run_dir_is_not_made_where_others_may_write(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(0o777)
    step = actions.MakeRunDir(str(tmp_path / "runs" / "12"), 0, 0)
    with pytest.raises(ConfigError, match="must be a directory of root"):
        apply.create(step, _hands(tmp_path, MemoryStore()))


def test_a_run_dir_is_not_made_where_others_may_exchange_its_directory(tmp_path: Path) -> None:
    """Whoever can write above the directory of run directories puts another one, or a link, in its place."""
    (tmp_path / "scratch").mkdir()
    step = actions.MakeRunDir(str(tmp_path / "scratch" / "runs" / "12"), os.getuid(), os.getgid())
    apply.create(step, _hands(tmp_path, MemoryStore()))
    (tmp_path / "scratch").chmod(0o777)
    with pytest.raises(ConfigError, match=f"run-dir: .* of {tmp_path}/scratch: everybody can write to it") as err:
        apply.create(step, _hands(tmp_path, MemoryStore()))
    assert "pvc doctor --node" in (err.value.hint or "")
    left, errors = apply.undo([step], _hands(tmp_path, MemoryStore()))
    assert (left, [type(error) for error in errors]) == ([step], [ConfigError])
    never_made = actions.MakeRunDir(str(tmp_path / "scratch" / "runs" / "13"), os.getuid(), os.getgid())
    assert apply.undo([never_made], _hands(tmp_path, MemoryStore())) == ([], [])
    (tmp_path / "scratch").chmod(0o1777)
    apply.create(step, _hands(tmp_path, MemoryStore()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_directory_that_root_gave_to_somebody_is_not_renamed(tmp_path: Path) -> None:
    """The administrator named the wrong one, a home for example."""
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    os.chown(home, 65534, 65534)
    home.parent.chmod(0o755)
    step = actions.MakeRunDir(str(home / "12"), 65534, 65534)
    with pytest.raises(ConfigError, match="must be a directory of root"):
        apply.create(step, _hands(tmp_path, MemoryStore()))
    assert [path.name for path in home.parent.iterdir()] == ["alice"]
    home.parent.chmod(0o1777)
    apply.create(step, _hands(tmp_path, MemoryStore()))
    assert {path.name.partition(".of-uid-65534-")[0] for path in home.parent.iterdir()} == {"alice"}
    assert home.stat().st_uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_that_somebody_makes_meanwhile_is_not_followed(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, elsewhere, evict = tmp_path / "tmp" / "runs", tmp_path / "elsewhere", ended.evict
    elsewhere.mkdir()
    runs.parent.mkdir()
    runs.parent.chmod(0o1777)
    came: list[Path] = []

    def evict_and_lose(path: Path) -> None:
        evict(path)
        if not came:
            path.symlink_to(tmp_path / target)
            os.lchown(path, 65534, 65534)
            came.append(path)

    monkeypatch.setattr(ended, "evict", evict_and_lose)
    apply.create(actions.MakeRunDir(str(runs / "12"), 65534, 65534), _hands(tmp_path, MemoryStore()))
    assert came
    assert not any(elsewhere.iterdir())
    assert not runs.is_symlink()
    assert (runs / "12").stat().st_uid == 65534


def test_what_cannot_be_undone_is_kept_and_the_rest_is_undone(tmp_path: Path) -> None:
    store = DeadStore()
    claim = actions.ClaimMembership(12, "n1")
    directory = actions.MakeRunDir(str(tmp_path / "runs" / "12"), os.getuid(), os.getgid())
    apply.create(directory, _hands(tmp_path, store))
    left, errors = apply.undo([claim, directory], _hands(tmp_path, store))
    assert left == [claim]
    assert [type(error) for error in errors] == [StateError]
    assert not Path(directory.path).exists()


def test_leaving_the_cluster_frees_its_numbers(tmp_path: Path) -> None:
    store = MemoryStore()
    membership.join(store, 12, membership.Member("n1", "10.0.0.1"), [NAT])
    assert apply.undo([actions.ClaimMembership(12, "n1")], _hands(tmp_path, store)) == ([], [])
    assert store.read_prefix("") == {}
