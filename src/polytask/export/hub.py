"""Bundles on a model hub: the folder is pushed as it is, and what is pulled is verified as any other bundle."""

import shutil
from pathlib import Path
from typing import Any, Protocol

from polytask.bundle import Bundle
from polytask.errors import ConfigError, StateError


class Client(Protocol):
    """What is asked of a hub: the methods of huggingface_hub.HfApi by these names."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make the repository, unless it is there."""

    def upload_folder(self, *, repo_id: str, folder_path: str, revision: str | None, commit_message: str) -> Any:
        """Put all files of a folder into the repository as one commit, whose hash the result holds as ``oid``."""

    def snapshot_download(self, repo_id: str, *, revision: str | None, local_dir: str) -> Any:
        """Fetch all files of a revision into a folder."""


def push(
    path: str | Path, repo: str, *, revision: str | None = None, private: bool = True, client: Client | None = None
) -> str:
    """Push the bundle at ``path`` to ``repo`` (``owner/name``) and return the hash of the commit, to pin it by.

    It is verified first. ``revision`` is a branch, by default the main one. Without ``client`` that of the package
    huggingface_hub, with the login it finds.
    """
    bundle, hub = Bundle.load(path), client or _client()
    hub.create_repo(repo, private=private, exist_ok=True)
    message = f"bundle {bundle.version}"
    made = hub.upload_folder(repo_id=repo, folder_path=str(path), revision=revision, commit_message=message)
    return str(made.oid)


def pull(
    repo: str,
    to: str | Path,
    *,
    revision: str | None = None,
    version: str | None = None,
    client: Client | None = None,
) -> Bundle:
    """Fetch the bundle in ``repo`` into the new folder ``to``, verify and return it.

    ``revision`` is a branch, tag or commit; ``version`` that of the bundle itself, which holds whoever keeps the
    repository to its very files. What does not verify is removed again, and a :class:`StateError`.
    """
    folder, hub = Path(to), client or _client()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is not empty; choose a new folder for what is pulled")
    try:
        hub.snapshot_download(repo, revision=revision, local_dir=str(folder))
        bundle = Bundle.load(folder)
        if version is not None and bundle.version != version:
            raise StateError(f"{repo} holds bundle {bundle.version}, not {version}; refused")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return bundle


def _client() -> Client:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ConfigError("the model hub needs a package that is not here; pip install huggingface_hub") from None
    return HfApi()  # type: ignore[no-any-return]
