"""Certified networks on the Hugging Face Hub: what ``sharing`` writes, sent there and fetched."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .extras import extra
from .sharing import FILES, Pretrained, Shareable, from_pretrained


def push_to_hub(
    result: Shareable,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    message: str = "A network with its proof",
    **more: Any,
) -> str:
    """Save a result and upload the folder; returns the address of the commit.

    Args:
        result: a training, a projection, or a network that was loaded.
        repo_id: ``"owner/name"``; made where it is missing.
        private: of a repository that is made.
        token: of the account; ``None`` takes the one that is logged in.
        message: of the commit.
        more: for :meth:`~admm_lip.sharing.Shareable.save_pretrained`.

    Raises:
        MissingExtra: where huggingface_hub is not installed.
    """
    with extra():
        from huggingface_hub import HfApi
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch:
        name = more.pop("name", "") or repo_id.rpartition("/")[2]
        folder = result.save_pretrained(Path(scratch) / "network", name=name, **more)
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return str(done.commit_url)


def from_hub(
    repo_id: str, *, revision: str | None = None, token: str | None = None, verify: bool = True
) -> Pretrained:
    """Fetch a network with its proof, and check it; no other file of the repository is fetched.

    Args:
        repo_id: ``"owner/name"``.
        revision: a commit, branch or tag.
        token: of an account.
        verify: prove the certificate again.

    Raises:
        MissingExtra: where huggingface_hub is not installed.
        NetworkError, CertificateError, UnitsError: as :func:`admm_lip.from_pretrained`.
    """
    with extra():
        from huggingface_hub import snapshot_download
    fetched = snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(FILES))
    return from_pretrained(str(fetched), verify=verify)
