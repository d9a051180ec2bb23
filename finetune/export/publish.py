"""Sends an exported folder to the model hub: private unless asked otherwise, in one commit, on top of what was seen."""

import os

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id

from finetune.core.errors import HubError
from finetune.core.places import AnyPath
from finetune.export.hub_errors import asking_hub
from finetune.export.upload import Upload, is_of_model, plan_upload

MAIN = "main"
"""The branch that a repository shows."""


def publish(
    model: AnyPath,
    repository: str,
    public: bool = False,
    overwrite: bool = False,
    revision: str = MAIN,
    message: str | None = None,
    witness: bool = True,
    api: HfApi | None = None,
) -> str:
    """Sends an exported folder to a repository of the model hub, in one commit.

    A repository that does not exist is made, private unless `public`. One that exists is never made public or private:
    it must be what `public` says. The files are sent as they are, and the hub's are compared with them in the end.

    Args:
        model: A finished run, of which the merged checkpoint is sent; an exported folder; or a run's adapter.
        repository: `OWNER/NAME`.
        public: Whether everybody may see it.
        overwrite: Whether a repository with files is updated: a commit puts these files in place of those of the model
            that is there, and leaves others alone. Its history keeps what was there.
        revision: The branch, which is made where there is none.
        message: What the commit says; None for a usual sentence.
        witness: Whether the held-back images and texts that prove the folder are sent.
        api: A client of the hub; None for one with the token that the hub's own tools find.

    Returns:
        The repository's address.

    Raises:
        RecipeError: If there is no such folder.
        CheckpointError: If the folder must not be sent, see `plan_upload`.
        HubError: If the hub refuses or cannot be reached; the message says what to do.
    """
    require_repository(repository)
    upload = plan_upload(os.fspath(model), witness)
    return send(upload, repository, public, overwrite, revision, message, api or HfApi())


def require_repository(repository: str) -> None:
    """Refuses what is no name of a repository, before anything is asked of the hub.

    Args:
        repository: `OWNER/NAME`.

    Raises:
        HubError: If it is none.
    """
    reason = "there is no owner"
    try:
        validate_repo_id(repository)
        if repository.count("/") == 1:
            return
    except HFValidationError as error:
        reason = str(error).rstrip(".")
    raise HubError(f"Expected OWNER/NAME, such as ann/birds, but got {repository!r}: {reason}.")


def send(
    upload: Upload, repository: str, public: bool, overwrite: bool, revision: str, message: str | None, api: HfApi
) -> str:
    """Sends files, see `publish`.

    Args:
        upload: What is sent.
        repository: See `publish`.
        public: Likewise.
        overwrite: Likewise.
        revision: Likewise.
        message: Likewise.
        api: The client.

    Raises:
        HubError: As `publish`.
    """
    with asking_hub(repository, api):
        _require_writer(api)
        before = _find_or_make(repository, public, overwrite, revision, api)
        gone = [name for name in _names(before) if is_of_model(name) and name not in upload.names]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file.path) for file in upload.files),
            *(CommitOperationDelete(path_in_repo=name) for name in gone),
        ]
        commit = api.create_commit(
            repository,
            operations,
            commit_message=message or "Model, card and proof, by align-finetune",
            revision=revision,
            parent_commit=before.sha,
        )
        _check_arrived(upload, api.model_info(repository, revision=commit.oid, files_metadata=True))
    return f"{api.endpoint}/{repository}"


def _require_writer(api: HfApi) -> None:
    """Refuses a token that may only read, before anything is made."""
    role = api.whoami().get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(
            f"Expected a token that may write, but got one that may only read. Make one at "
            f"{api.endpoint}/settings/tokens and log in with it: hf auth login"
        )


def _find_or_make(repository: str, public: bool, overwrite: bool, revision: str, api: HfApi) -> ModelInfo:
    """Returns what the branch holds, once the repository is there and is as public as it should be."""
    try:
        found = api.model_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=not public)
        found = api.model_info(repository)
    if found.private is public:
        seen, word = ("private", "public") if public else ("public", "private")
        repair = (
            "Leave out --public: it is updated and stays private. Its settings on the hub make it public."
            if public
            else "Pass --public if everybody may see the model, or name another repository."
        )
        raise HubError(f"Expected {repository} to be {word}, but it exists and is {seen}. {repair}")
    if revision != MAIN:
        api.create_branch(repository, branch=revision, exist_ok=True)
    before = api.model_info(repository, revision=revision)
    files = [name for name in _names(before) if name != ".gitattributes"]
    if files and not overwrite:
        raise HubError(
            f"Expected {repository} to be new or empty, but it holds {len(files)} files, among them {files[0]}. "
            "--overwrite adds a commit with this model in place of the one there; other files and the history stay. Or "
            "name another repository."
        )
    return before


def _names(info: ModelInfo) -> list[str]:
    return sorted(sibling.rfilename for sibling in info.siblings or ())


def _check_arrived(upload: Upload, after: ModelInfo) -> None:
    """Compares what the repository holds with what was sent; a file may be left out by its `.gitignore`."""
    held = {sibling.rfilename: sibling for sibling in after.siblings or ()}
    for file in upload.files:
        other = held.get(file.name)
        if other is None:
            found = "does not hold it"
        elif other.size != file.size:
            found = f"holds {other.size} bytes in place of {file.size}"
        elif other.lfs is not None and other.lfs.sha256 != file.sha256:
            found = f"holds SHA-256 {other.lfs.sha256} in place of {file.sha256}"
        else:
            continue
        raise HubError(
            f"Expected the commit to hold {file.name} as it is here, but the repository {found}. Look whether a "
            ".gitignore of the repository names it, and publish again with --overwrite."
        )
