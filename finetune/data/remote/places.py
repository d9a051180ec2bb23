"""Places that are not on this machine: what names one, what may not stand in it, and the library that opens it."""

import re
from typing import Any

from finetune.core.errors import RecipeError, did_you_mean

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_USER = re.compile(r"(?<=://)[^/@\s'\"]*@")
_QUERY = re.compile(r"(?<=http)(s?://[^\s'\"?#)>]*)[?#][^\s'\")>]*")

_CONNECT, _SILENCE = 30.0, 60.0
"""Seconds in which a server has to answer, and after which one that sends nothing is given up."""

SCHEMES = ("gs", "hf", "http", "https", "s3")


def is_remote(place: str) -> bool:
    """Whether a place is named by a URL.

    Args:
        place: A path, a pattern or a URL.

    Example:
        >>> is_remote("s3://photos/00000.tar"), is_remote("photos/00000.tar"), is_remote("C:/photos")
        (True, False, False)
    """
    return _URL.match(place) is not None


def hide(text: str) -> str:
    """Removes from the URLs of a text what may be secret: user, password, and what follows a question mark.

    Args:
        text: A message of a library, or a URL.

    Example:
        >>> hide("HTTP 403 of https://me:secret@host/a.tar?signature=abc")
        'HTTP 403 of https://host/a.tar'
    """
    return _QUERY.sub(r"\1", _USER.sub("", text))


def check_remote(place: str, key: str) -> None:
    """Refuses a URL that no library here opens, or that holds credentials.

    Args:
        place: The URL, or a pattern of URLs.
        key: The recipe's key.

    Raises:
        RecipeError: If it cannot be used. The message shows no secret.
    """
    scheme = place.partition("://")[0]
    if scheme not in SCHEMES:
        raise RecipeError(
            f"Expected {key} to be a path or to begin with {', '.join(f'{name}://' for name in SCHEMES)}, "
            f"but got {hide(place)!r}. {did_you_mean(scheme, SCHEMES)}"
        )
    if hide(place) != place:
        raise RecipeError(
            f"Expected {key} to hold no user, password, or signature, but got some (not shown) in {hide(place)!r}. "
            "A run writes its recipe down: leave them to the environment, as docs/shards.md says."
        )


def open_files(place: str) -> Any:
    """Returns fsspec's file system for a URL; it belongs to this process and thread.

    Args:
        place: A URL that `check_remote` accepts.

    Raises:
        RecipeError: If the library is not installed. The message names the extra.
    """
    scheme = place.partition("://")[0]
    options: dict[str, Any] = {"use_listings_cache": False}
    try:
        import fsspec  # takes a tenth of a second, which local tables are spared

        if scheme in ("http", "https"):
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
            # A proxy and .netrc are read from the environment. What a server compresses has another size than it says.
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True, "auto_decompress": False}
            options["headers"] = {"Accept-Encoding": "identity"}
        elif scheme == "s3":
            options["config_kwargs"] = {"connect_timeout": _CONNECT, "read_timeout": _SILENCE}
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise RecipeError(
            f"Expected a library for {scheme}:// to be installed, but got: {error}. "
            'Install the extra: pip install "align-finetune[remote]".'
        ) from error
