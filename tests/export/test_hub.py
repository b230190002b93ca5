"""The model hub, played by a folder per commit."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_up_bundles import made_up

from polytask.bundle import Bundle
from polytask.errors import ConfigError, StateError
from polytask.export.hub import pull, push


class Hub:
    """A hub whose commits are folders below ``root``; the newest is on every branch."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commits: list[tuple[str, str | None, str]] = []
        self.made: dict[str, bool] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.made[repo_id] = private

    def upload_folder(
        self, *, repo_id: str, folder_path: str, revision: str | None, commit_message: str
    ) -> SimpleNamespace:
        oid = f"commit{len(self.commits)}"
        shutil.copytree(folder_path, self.root / oid)
        (self.root / oid / ".gitattributes").write_text("a hub adds files of its own", "utf-8")
        self.commits.append((repo_id, revision, commit_message))
        return SimpleNamespace(oid=oid)

    def snapshot_download(self, repo_id: str, *, revision: str | None, local_dir: str) -> None:
        assert repo_id in self.made
        shutil.copytree(self.root / (revision or f"commit{len(self.commits) - 1}"), local_dir, dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "hub")


def test_what_is_pushed_comes_back_the_same_and_a_commit_pins_it(tmp_path: Path, hub: Hub) -> None:
    first, second = made_up(tmp_path / "first"), made_up(tmp_path / "second", mix="like * stars")
    one, two = (push(b.folder, "me/films", client=hub) for b in (first, second))
    assert hub.made == {"me/films": True}
    assert hub.commits == [("me/films", None, f"bundle {b.version}") for b in (first, second)]
    newest, pinned = (
        pull("me/films", tmp_path / "a", client=hub),
        pull("me/films", tmp_path / "b", revision=one, client=hub),
    )
    assert (newest.version, pinned.version, one, two) == (second.version, first.version, "commit0", "commit1")
    assert pinned.recommend("u3").equals(first.recommend("u3"))
    (tmp_path / "empty").mkdir()
    assert pull("me/films", tmp_path / "empty", version=second.version, client=hub).version == second.version


def test_what_does_not_verify_is_neither_pushed_nor_kept(tmp_path: Path, hub: Hub) -> None:
    bundle = made_up(tmp_path / "bundle")
    commit = push(bundle.folder, "me/films", revision="next", private=False, client=hub)
    assert (hub.made, hub.commits[0][1]) == ({"me/films": False}, "next")
    with pytest.raises(StateError, match="not 0123456789abcdef; refused"):
        pull("me/films", tmp_path / "a", version="0123456789abcdef", client=hub)
    weights = hub.root / commit / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StateError, match="damaged"):
        pull("me/films", tmp_path / "a", client=hub)
    assert not (tmp_path / "a").exists()
    shutil.copy(weights, bundle.folder)
    with pytest.raises(StateError, match="damaged"):
        push(bundle.folder, "me/films", client=hub)
    assert len(hub.commits) == 1


def test_nothing_of_one_s_own_is_overwritten(tmp_path: Path, hub: Hub) -> None:
    push(made_up(tmp_path / "bundle").folder, "me/films", client=hub)
    with pytest.raises(ConfigError, match="not empty"):
        pull("me/films", tmp_path / "bundle", client=hub)
    assert Bundle.load(tmp_path / "bundle").name == "made-up"


def test_without_the_package_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = made_up(tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: push(bundle.folder, "me/films"), lambda: pull("me/films", tmp_path / "a")):
        with pytest.raises(ConfigError, match="pip install huggingface_hub"):
            call()
    assert not (tmp_path / "a").exists()
