"""A checkpoint on the Hugging Face hub, as ``push_to_hub`` of transformers puts it there: by the hub's own client."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def require_pushable(repo_id: str | None, token: str | None = None) -> str:
    """The id, before anything is trained or written for it.

    Raises:
        ValueError: for no id or one that the hub does not take, no login, or a hub that is switched off.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, and not in its __all__

    if not repo_id:
        raise ValueError("push_to_hub needs the id of a repository on the hub: repo_id='owner/name'")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id is owner/name of a repository on the hub, not {repo_id!r}: {error}") from error
    if flag := next((one for one in _OFFLINE if os.environ.get(one, "0").upper() in ("1", "TRUE", "YES", "ON")), None):
        raise ValueError(f"cannot push to {repo_id!r}: the hub is switched off ({flag})")
    if token is None and get_token() is None:
        raise ValueError(
            f"cannot push to {repo_id!r}: nobody is logged in to the hub; run `hf auth login`, set HF_TOKEN, or pass "
            "token= (one that may write)"
        )
    return repo_id


def push(
    folder: Path,
    files: Iterable[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload files of a folder as one commit, into a repository that is made if it is not there; returns its address.

    Raises:
        ValueError: if the hub does not take it; the folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token)
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=sorted(files),
            commit_message=commit_message or "Upload model",
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ValueError(
            f"{str(folder)!r} is written, but the hub did not take it as {repo_id!r}: {' '.join(str(error).split())}; "
            f"upload it later with `hf upload {repo_id} {folder}`"
        ) from error
    return str(made)
