"""What the model hub refuses, and what the user can do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import logging

from finetune.core.errors import HubError


@contextmanager
def asking_hub(repository: str, api: HfApi) -> Iterator[None]:
    """Turns what the hub or the way to it refuses into what the user can do, and shows no warning of its client.

    Args:
        repository: `OWNER/NAME`.
        api: The client.

    Raises:
        HubError: If anything is refused inside.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # the hub's client lets those of its transport through
        raise HubError(_explain(error, repository, api)) from error
    finally:
        logging.set_verbosity(verbosity)


def _explain(error: Exception, repository: str, api: HfApi) -> str:
    """What the user can do about an error of the hub's client."""
    again = "Nothing was committed; run the command again, and what has arrived is not sent twice."
    if isinstance(error, LocalTokenNotFoundError):
        return (
            "Expected a token of the hub, but got none. Log in by `hf auth login`, or set HF_TOKEN, and run it again."
        )
    if isinstance(error, OfflineModeIsEnabled):
        return (
            "Expected to reach the hub, but HF_HUB_OFFLINE forbids it. Unset it, or try --dry_run, which needs no hub."
        )
    refused = _find_refusal(error)
    if refused is None:
        cause = _root(error)
        said = " ".join(str(cause).split()) or type(cause).__name__
        return (
            f"Expected {api.endpoint} to take the files, but got: {said.rstrip('.')}. Check the connection and run the "
            f"command again; if the files show at {api.endpoint}/{repository} already, with --overwrite."
        )
    status = refused.response.status_code
    said = " ".join((refused.server_message or str(refused)).split()).rstrip(".")
    expected = f"Expected the hub to take {repository}, but it answered {status}: {said}."
    if status == 401:
        return f"{expected} Your token is not valid, or not any more: log in again by `hf auth login`, or set HF_TOKEN."
    if status == 403:
        owner = repository.split("/")[0]
        return f"{expected} Use a token that may write to repositories of {owner}, or name a repository of your own."
    if status in (409, 412):
        return f"{expected} Somebody else changed it meanwhile: look at what is there, and run the command again."
    if status == 429 or status >= 500:
        return f"{expected} Wait a little. {again}"
    return f"{expected} Nothing was committed."


def _find_refusal(error: BaseException | None) -> HfHubHTTPError | None:
    """The answer of the hub that lies behind an error."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _root(error: BaseException) -> BaseException:
    """The first of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
