"""Publishing to a hub on this machine: what arrives is what lies in the folder, and what fails says why."""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from finetune.commands.cli import main
from finetune.core.errors import CheckpointError, HubError, RecipeError
from finetune.export.publish import publish
from finetune.export.upload import plan_upload
from finetune.run.folder import RunFolder

from .hub_server import CUT, TOKEN, Commit, Hub, Repository, serve

REPOSITORY = "ann/birds"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with serve() as server:
        yield server


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def folder(two_towers, tmp_path) -> Path:
    """A merged folder of a finished run, to be changed."""
    return Path(shutil.copytree(two_towers.path / "merged", tmp_path / "merged"))


def read_files(folder: Path, without: tuple[str, ...] = ("measurement",)) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        name: content for name, content in files.items() if name not in without and name.split("/")[0] not in without
    }


def held(hub: Hub, branch: str = "main") -> dict[str, bytes]:
    """What the repository holds, without what the hub itself put there."""
    files = hub.repositories[REPOSITORY].branches[branch][-1].files
    return {name: content for name, content in files.items() if name != ".gitattributes"}


def run_command(hub: Hub, cwd: Path, *words: object, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """`finetune publish` in a process of its own, with the settings of the hub in its environment alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cwd / "home")}
    package = str(Path(__file__).parents[2])
    found = {} if token is None else {"HF_TOKEN": token}
    return subprocess.run(
        [sys.executable, "-m", "finetune", "publish", *map(str, words)],
        cwd=cwd,
        env={**kept, **settings, **found, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_arrives_whole_and_private_and_nothing_else_is_sent(hub, two_towers, tmp_path):
    done = run_command(hub, tmp_path, two_towers.path, REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"{hub.url}/{REPOSITORY}"
    assert held(hub) == read_files(two_towers.path / "merged")
    assert {"model.safetensors", "README.md", "merge_proof.json", "witness.safetensors"} <= held(hub).keys()
    assert hub.repositories[REPOSITORY].private is True
    assert "leaves out measurement" in done.stdout
    assert TOKEN not in done.stdout + "".join(hub.requests)


def test_a_dry_run_lists_all_that_would_be_sent_and_reaches_no_network(two_towers, monkeypatch, capsys):
    def refuse(*_: object) -> None:
        raise AssertionError("a dry run reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["publish", str(two_towers.path), REPOSITORY, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    files = read_files(two_towers.path / "merged")
    listed = re.findall(r"(?m)^  ([0-9a-f]{64}) +([\d,]+)  (\S+)$", shown)
    assert {name: (sha256, size) for sha256, size, name in listed} == {
        name: (hashlib.sha256(content).hexdigest(), f"{len(content):,}") for name, content in files.items()
    }
    assert f"to {REPOSITORY}, private: {len(files)} files" in shown
    assert "  library_name: transformers\n" in shown
    assert "--no_witness leaves them out" in shown
    assert "the card states no licence" in shown
    assert "has a head" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", [".", "merged", "classifier"])
def test_of_a_run_with_a_head_the_command_says_where_its_classifier_is(with_head, capsys, name):
    hint = f"the run has a head: its classifier is {with_head.path / 'classifier'}\n"
    assert main(["publish", str(with_head.path / name), REPOSITORY, "--dry_run"]) == 0
    assert (hint in capsys.readouterr().out) is (name == ".")


def test_a_command_that_fails_says_so_in_one_line(hub, two_towers, tmp_path):
    hub.faults["POST .*/commit/"] = [503]
    done = run_command(hub, tmp_path, two_towers.path, REPOSITORY)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: Expected the hub to take {REPOSITORY}, but it answered 503: ")
    assert "run the command again" in done.stderr


@pytest.mark.slow
def test_without_a_token_a_command_says_how_to_log_in(hub, two_towers, tmp_path):
    done = run_command(hub, tmp_path, two_towers.path, REPOSITORY, token=None)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Expected a token of the hub, but got none. Log in by `hf auth login`")
    assert hub.repositories == {}


@pytest.mark.parametrize("name", ["merged", "classifier", "adapter"])
def test_every_folder_of_a_run_can_be_published(hub, api, with_head, name):
    folder = with_head.path / name
    assert publish(folder, REPOSITORY, public=True, api=api) == f"{hub.url}/{REPOSITORY}"
    assert held(hub) == read_files(folder)
    assert hub.repositories[REPOSITORY].private is False


def test_witness_can_be_left_out(hub, api, two_towers):
    publish(two_towers.path, REPOSITORY, witness=False, api=api)
    assert held(hub) == read_files(two_towers.path / "merged", without=("measurement", "witness.safetensors"))


def test_files_that_the_hub_has_are_not_sent_again(hub, api, folder):
    publish(folder, REPOSITORY, api=api)
    hub.requests.clear()
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMore.\n")
    publish(folder, REPOSITORY, overwrite=True, message="A better card", api=api)
    assert not [request for request in hub.requests if request.startswith("PUT")]
    assert held(hub) == read_files(folder)
    assert [one.message for one in hub.repositories[REPOSITORY].branches["main"]][-1] == "A better card"


def test_an_update_replaces_the_model_and_leaves_other_files_and_the_history(hub, api, with_head):
    others = {"LICENSE": b"terms", "onnx/image.onnx": b"old", "model-00001-of-00002.safetensors": b"old"}
    hub.repositories[REPOSITORY] = Repository(True, {"main": [Commit(others)]})
    with pytest.raises(HubError, match=r"new or empty, but it holds 3 files, among them LICENSE\. --overwrite adds"):
        publish(with_head.path, REPOSITORY, api=api)
    assert held(hub) == others
    publish(with_head.path, REPOSITORY, overwrite=True, api=api)
    assert held(hub) == read_files(with_head.path / "merged") | {"LICENSE": b"terms"}
    assert len(hub.repositories[REPOSITORY].branches["main"]) == 2


def test_a_branch_is_made_where_there_is_none(hub, api, two_towers):
    publish(two_towers.path, REPOSITORY, revision="v2", api=api)
    assert held(hub) == {}
    assert held(hub, "v2") == read_files(two_towers.path / "merged")
    publish(two_towers.path, REPOSITORY, revision="v2", overwrite=True, api=api)


@pytest.mark.parametrize(("private", "seen"), [(False, "private, but it exists and is public"), (True, "public, but")])
def test_a_repository_that_exists_is_as_public_as_was_asked_for(hub, api, two_towers, private, seen):
    hub.repositories[REPOSITORY] = Repository(private)
    with pytest.raises(HubError, match=f"Expected {REPOSITORY} to be {seen}"):
        publish(two_towers.path, REPOSITORY, public=private, overwrite=True, api=api)
    assert held(hub) == {}
    assert hub.repositories[REPOSITORY].private is private


def test_nobody_elses_change_is_overwritten(hub, api, two_towers):
    hub.before_commit = lambda found: found.branches["main"].append(Commit({"theirs.txt": b"theirs"}, "theirs"))
    with pytest.raises(HubError, match=r"answered 412: .* Somebody else changed it meanwhile"):
        publish(two_towers.path, REPOSITORY, api=api)
    assert held(hub) == {"theirs.txt": b"theirs"}


def test_a_file_that_the_repository_ignores_is_missed(hub, api, two_towers):
    hub.ignored = ("tokenizer.json",)
    with pytest.raises(HubError, match=r"to hold tokenizer\.json as it is here, but the repository does not hold it"):
        publish(two_towers.path, REPOSITORY, api=api)


@pytest.mark.parametrize(
    ("call", "fault", "message"),
    [
        ("GET /api/whoami", 401, "answered 401: .* log in again by `hf auth login`"),
        ("GET /api/whoami", 503, "answered 503: .* Wait a little"),
        ("POST /api/repos/create", 403, "answered 403: .* may write to repositories of ann"),
        ("POST /api/repos/create", 409, "answered 409: .* run the command again"),
        ("POST .*/preupload/", 403, "answered 403"),
        ("POST .*/commit/", 401, "answered 401"),
        ("POST .*/commit/", 413, "answered 413: .* Nothing was committed"),
        ("POST .*/commit/", 500, "answered 500"),
        ("POST .*/commit/", CUT, "to take the files, but got: .* Check the connection and run the command again"),
        ("PUT /lfs/", 403, "answered 403"),
    ],
)
def test_what_the_hub_refuses_is_a_line_with_its_repair(hub, api, two_towers, call, fault, message):
    hub.faults[call] = [fault] * 9
    with pytest.raises(HubError, match=message) as refused:
        publish(two_towers.path, REPOSITORY, api=api)
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)
    assert REPOSITORY not in hub.repositories or held(hub) == {}


def test_a_command_that_failed_can_be_repeated(hub, api, two_towers):
    hub.faults["POST .*/commit/"] = [CUT]
    with pytest.raises(HubError):
        publish(two_towers.path, REPOSITORY, api=api)
    hub.requests.clear()
    publish(two_towers.path, REPOSITORY, api=api)
    assert held(hub) == read_files(two_towers.path / "merged")
    assert not [request for request in hub.requests if request.startswith("PUT")]


def test_an_upload_that_is_cut_once_goes_on_by_itself(hub, api, two_towers):
    hub.faults["PUT /lfs/"] = [CUT]
    publish(two_towers.path, REPOSITORY, api=api)
    assert held(hub) == read_files(two_towers.path / "merged")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [CUT, 503])
def test_an_upload_that_is_always_cut_ends_and_can_be_repeated(hub, api, two_towers, fault):
    hub.faults["PUT /lfs/"] = [fault] * 99
    with pytest.raises(HubError, match="again"):
        publish(two_towers.path, REPOSITORY, api=api)
    assert held(hub) == {}


def test_a_hub_that_cannot_be_reached_is_a_line(two_towers):
    with serve() as gone:
        address = gone.url
    with pytest.raises(HubError, match=f"Expected {address} to take the files, but got: .*Check the connection"):
        publish(two_towers.path, REPOSITORY, api=HfApi(endpoint=address, token=TOKEN))


def test_an_offline_client_says_so(hub, api, two_towers, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(HubError, match="HF_HUB_OFFLINE forbids it. Unset it, or try --dry_run"):
        publish(two_towers.path, REPOSITORY, api=api)
    assert hub.requests == []


def test_a_token_that_may_only_read_makes_nothing(hub, api, two_towers):
    hub.role = "read"
    with pytest.raises(HubError, match="may only read"):
        publish(two_towers.path, REPOSITORY, api=api)
    assert hub.repositories == {}


@pytest.mark.parametrize(
    "name", ["birds", "ann/my birds", "ann/birds/x", "-ann/birds", "ann/a..b", "ann/birds.git", ""]
)
def test_what_is_no_name_of_a_repository_is_refused_first(tmp_path, name):
    with pytest.raises(HubError, match="Expected OWNER/NAME, such as ann/birds, but got"):
        publish(tmp_path / "absent", name)


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"!")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: change(folder / "model.safetensors"), "Expected the model of .* to have SHA-256"),
        (
            lambda folder: change(folder / "tokenizer.json"),
            "Expected the tokenizer.json of .* changed after it was proven",
        ),
        (lambda folder: (folder / "witness.safetensors").unlink(), "witness.safetensors is missing"),
        (lambda folder: (folder / "README.md").unlink(), "to have a model card, but README.md is missing"),
        (lambda folder: (folder / "last.ckpt").write_text("x"), r"nothing but what was exported, but got last\.ckpt\."),
        (lambda folder: (folder / "vocab.txt").write_text("x"), "Expected the vocab.txt of .* to have SHA-256 none"),
    ],
)
def test_what_was_not_proven_is_not_sent(folder, spoil, message):
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        plan_upload(folder)


@pytest.mark.parametrize("of_what", ["home", "working directory", "folder"])
def test_a_card_that_names_a_place_of_this_machine_is_not_sent(folder, of_what):
    place = {"home": Path.home(), "working directory": Path.cwd(), "folder": folder.parent}[of_what] / "birds.csv"
    card = folder / "README.md"
    lines = card.read_text().count("\n")
    card.write_text(card.read_text() + f"Trained on `{place}`\n")
    with pytest.raises(
        CheckpointError, match=f"name no place of this machine, but line {lines + 1} names '{place}'\\. "
    ):
        plan_upload(folder)


@pytest.mark.parametrize(
    ("text", "is_place"),
    [
        ("https://github.com/me{place}/blob/main", False),
        ("see ..{place}", False),
        ("file://{place}", True),
        ('{{"text": "a\\n{place}"}}', True),
        ("images={place}/a.png", True),
    ],
)
def test_a_link_is_no_place_of_this_machine(folder, monkeypatch, text, is_place):
    place = folder.parent.parent
    monkeypatch.chdir(place)
    (folder / "README.md").write_text((folder / "README.md").read_text() + text.format(place=place) + "\n")
    if is_place:
        with pytest.raises(CheckpointError, match="name no place of this machine"):
            plan_upload(folder)
    else:
        assert "README.md" in plan_upload(folder).names


def test_a_card_with_a_token_is_not_sent(folder):
    card = folder / "README.md"
    card.write_text(card.read_text() + f"token={TOKEN}\n")
    with pytest.raises(CheckpointError, match="to hold no secret, but got a token") as refused:
        plan_upload(folder)
    assert TOKEN not in str(refused.value)


def test_hidden_files_are_left_out(folder):
    (folder / ".DS_Store").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "part").write_text("x")
    upload = plan_upload(folder)
    assert upload.left_out == (".DS_Store", ".cache", "measurement")
    assert upload.names == read_files(folder, without=("measurement", ".DS_Store", ".cache")).keys()


def test_an_adapter_that_was_changed_or_asks_for_more_is_not_sent(two_towers, tmp_path):
    shutil.copytree(two_towers.path, tmp_path / "run")
    adapter = tmp_path / "run" / "adapter"
    (adapter / "optimizer.pt").write_text("x")
    with pytest.raises(CheckpointError, match=r"nothing but what was exported, but got optimizer\.pt"):
        plan_upload(adapter)
    (adapter / "optimizer.pt").unlink()
    change(adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="as the proof of the merged checkpoint says"):
        plan_upload(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/home/ann/base"}))
    with pytest.raises(CheckpointError, match="to be a hub id or null"):
        plan_upload(adapter)


def test_runs_that_have_nothing_to_publish_are_refused(two_towers, with_head, tmp_path):
    with pytest.raises(RecipeError, match="to be a run or an exported folder, but it is no folder. Did you mean"):
        plan_upload(two_towers.path.with_name("colour"))
    with pytest.raises(CheckpointError, match="merge_proof.json is missing"):
        plan_upload(tmp_path)
    run = RunFolder(Path(shutil.copytree(with_head.path, tmp_path / "run")))
    shutil.rmtree(run.merged)
    with pytest.raises(CheckpointError, match=f"trained a head alone. Publish its image classifier: {run.classifier}"):
        plan_upload(run.path)
    run.finished.unlink()
    with pytest.raises(CheckpointError, match="unfinished"):
        plan_upload(run.path)
