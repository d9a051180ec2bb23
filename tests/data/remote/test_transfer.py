"""Files from servers that work, fail for a while, fail for good, cut transfers off, or know no ranges."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from finetune.core.errors import RecipeError
from finetune.data.remote import transfer as transfers
from finetune.data.remote.patterns import expand_numbers, find_remote
from finetune.data.remote.places import check_remote, hide
from finetune.data.remote.transfer import RemoteError, Transfer

from .servers import Cutter, Nginx, needs_nginx, run_cutter

CONTENT = np.random.default_rng(0).bytes(3_000_000)


def fetch(cutter: Cutter, transfer: Transfer) -> bytes:
    target = BytesIO()
    transfer.fetch(transfer.look(f"{cutter.url}/a.tar"), target)
    return target.getvalue()


def test_a_transfer_that_is_cut_goes_on_where_it_was(quick: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_PIECE", 1 << 20)
    with run_cutter(Cutter(CONTENT, after=600_000)) as cutter:
        cutter.cuts = 3
        assert fetch(cutter, quick) == CONTENT
    assert cutter.asked == [0, 0, 0, 0, 1 << 20, 2 << 20]


def test_a_transfer_that_is_cut_each_time_is_given_up(quick: Transfer) -> None:
    with (
        run_cutter(Cutter(CONTENT, cuts=99, after=600_000)) as cutter,
        pytest.raises(
            RemoteError, match=r"a\.tar to be fetched whole, but got .* after 0 of 3,000,000 bytes\. "
        ) as error,
    ):
        fetch(cutter, quick)
    assert "received 600000 of" in str(error.value)
    assert "Tried 5 times: check the network and the server, and start again." in str(error.value)
    assert len(cutter.asked) == 5


def test_a_server_without_ranges_sends_all_again(quick: Transfer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_PIECE", 1 << 20)
    with run_cutter(Cutter(CONTENT, after=2_000_000, ranges=False)) as cutter:
        assert fetch(cutter, quick) == CONTENT
        cutter.cuts = 2
        assert fetch(cutter, quick) == CONTENT


def test_a_file_that_changes_on_the_way_is_refused(quick: Transfer) -> None:
    with run_cutter(Cutter(CONTENT)) as cutter:
        file = quick.look(f"{cutter.url}/a.tar")
        cutter.version = "2"
        with pytest.raises(
            RemoteError, match=r'to stay as it is .* got 3,000,000 bytes ETag="2" now, .* ETag="1" before'
        ):
            quick.fetch(file, BytesIO())


@pytest.mark.parametrize(
    ("status", "asked", "said"),
    [
        (404, 1, "HTTP status 404. Put it back, or correct the address."),
        (403, 1, "HTTP status 403. Give this machine access to it"),
        (503, 5, "HTTP status 503. Tried 5 times: check the network and the server"),
        (429, 5, "HTTP status 429. Tried 5 times"),
    ],
)
def test_only_what_may_pass_is_asked_again(quick: Transfer, status: int, asked: int, said: str) -> None:
    with run_cutter(Cutter(CONTENT)) as cutter:
        cutter.status = status
        with pytest.raises(RemoteError, match=r"/a\.tar to be there, but got ") as error:
            quick.look(f"{cutter.url}/a.tar")
    assert said in str(error.value)
    assert cutter.looks == asked


def test_a_server_that_recovers_is_waited_for(quick: Transfer) -> None:
    with run_cutter(Cutter(CONTENT)) as cutter:
        cutter.status, cutter.recovers = 503, 3
        assert quick.look(f"{cutter.url}/a.tar").size == len(CONTENT)


def test_nobody_answers(quick: Transfer) -> None:
    with run_cutter(Cutter(CONTENT)) as cutter:
        pass
    with pytest.raises(RemoteError, match="to be there, but got ConnectionRefusedError: .* Tried 5 times"):
        quick.look(f"{cutter.url}/a.tar")


@needs_nginx
def test_patterns_name_files_of_a_server(served: tuple[Nginx, Path], quick: Transfer) -> None:
    nginx, root = served
    folder = root / "patterns"
    folder.mkdir()
    for name in ("00008.tar", "00009.tar", "00010.tar", "00010.csv"):
        (folder / name).write_bytes(name.encode())
    url = f"{nginx.url}/patterns"
    listed = find_remote(f"{url}/*.tar", quick)
    assert [file.url for file in listed] == [f"{url}/{name}.tar" for name in ("00008", "00009", "00010")]
    assert find_remote(f"{url}/{{00008..00010}}.tar", quick) == listed
    assert [file.size for file in listed] == [9, 9, 9]
    with pytest.raises(RemoteError, match=r"\*\.parquet to match files, but got none\. .* as in \{00000\.\.00099\}"):
        find_remote(f"{url}/*.parquet", quick)
    with pytest.raises(RemoteError, match=r"00011\.tar to be there, but got HTTP status 404"):
        find_remote(f"{url}/{{00009..00011}}.tar", quick)


def test_numbers_are_written_out() -> None:
    assert expand_numbers("s3://b/{1..2}/{8..11}.tar")[3:6] == ["s3://b/1/11.tar", "s3://b/2/8.tar", "s3://b/2/9.tar"]
    for wrong in ("{5..2}", "{0..99999999}"):
        with pytest.raises(RemoteError, match="numbers that run upwards"):
            expand_numbers(f"s3://b/{wrong}.tar")


@pytest.mark.parametrize(
    "place",
    ["https://me:hush@host/a.tar", "https://hush@host/a.tar", "https://host/a.tar?sig=hush", "s3://me:hush@b/a"],
)
def test_credentials_are_refused_and_never_shown(place: str) -> None:
    with pytest.raises(RecipeError, match="to hold no user, password, or signature") as error:
        check_remote(place, "data.table.path")
    assert "hush" not in str(error.value)


def test_messages_of_libraries_lose_their_secrets() -> None:
    said = "403, message='Forbidden', url='https://cdn.host/a/b.tar?X-Amz-Signature=hush&x=1' (http://me:hush@host/x)"
    assert hide(said) == "403, message='Forbidden', url='https://cdn.host/a/b.tar' (http://host/x)"
    assert hide("s3://photos/0?.tar") == "s3://photos/0?.tar"


def test_a_redirect_with_a_signature_is_not_shown(quick: Transfer) -> None:
    with run_cutter(Cutter(CONTENT)) as cutter:
        cutter.location = f"{cutter.url}/signed.tar?signature=hush"
        cutter.status = 403
        with pytest.raises(RemoteError, match="to be there, but got HTTP status 403") as error:
            quick.look(f"{cutter.url}/a.tar")
    assert "hush" not in str(error.value)


def test_a_misspelt_scheme() -> None:
    with pytest.raises(
        RecipeError, match=r"to begin with gs://, .*, but got 'htps://a/b\.csv'\. Did you mean 'https'\?"
    ):
        check_remote("htps://a/b.csv", "data.table.path")
