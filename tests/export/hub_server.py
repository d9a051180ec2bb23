"""A model hub on this machine: it speaks the few calls that publishing makes, and keeps what it gets."""

import hashlib
import json
import re
import socket
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34
CUT = "cut"
"""In place of a status: the connection ends in the middle of what the client sends."""


@dataclass
class Commit:
    """What a branch holds."""

    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    message: str = "initial commit"

    @property
    def sha(self) -> str:
        parts = [self.message, *(f"{name} {len(content)}" for name, content in sorted(self.files.items()))]
        return hashlib.sha1("\n".join(parts).encode()).hexdigest()


@dataclass
class Repository:
    """A repository: its branches, each with its commits, the newest last."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit()]})

    def at(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((one for commits in self.branches.values() for one in commits if one.sha == revision), None)


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: By `OWNER/NAME`.
        stored: The contents that came by LFS, by SHA-256.
        requests: Method and path of each request.
        faults: What is answered in place of the usual, by a pattern of "METHOD path": a status or `CUT`, each once.
        role: What the token may do.
        before_commit: Called once with the repository, before a commit is looked at: what somebody else does meanwhile.
        ignored: Names that the repository's `.gitignore` lists.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: dict[str, list[int | str]] = {}
        self.role = "write"
        self.before_commit: Callable[[Repository], object] = lambda _: None
        self.ignored: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Says nothing of connections that were cut."""


@contextmanager
def serve() -> Iterator[Hub]:
    """Yields a hub that answers."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        fault = next(
            (left for wish, left in self.server.faults.items() if re.search(wish, self.server.requests[-1])), []
        )
        kind = fault.pop(0) if fault else None
        if kind == CUT:
            self.rfile.read(min(10, int(self.headers.get("Content-Length", 0))))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if isinstance(kind, int):
            self._say({"error": f"fault {kind}"}, kind, {"Retry-After": "0"} if kind >= 500 else {})
        elif "/lfs/" not in path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say({"error": "Invalid credentials in Authorization header"}, 401)
        else:
            for wish, answer in _ANSWERS:
                if found := re.fullmatch(wish, f"{self.command} {path}"):
                    answer(self, **found.groupdict())
                    return
            self._say({"error": "no such call"}, 404)

    def _say(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def _whoami(self) -> None:
        self._say({"type": "user", "name": "ann", "orgs": [], "auth": {"accessToken": {"role": self.server.role}}})

    def _info(self, name: str, revision: str | None = None) -> None:
        found = self.server.repositories.get(name)
        if found is None:
            self._say({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return
        commit = found.at(revision or "main")
        if commit is None:
            self._say({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [_describe(file, content) for file, content in commit.files.items()]
        self._say({"id": name, "private": found.private, "sha": commit.sha, "siblings": siblings})

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        self.server.repositories[name] = Repository(asked.get("visibility") == "private")
        self._say({"url": f"{self.server.url}/{name}"})

    def _branch(self, name: str, branch: str) -> None:
        branches = self.server.repositories[name].branches
        self._say({}, 409 if branch in branches else 200)
        branches.setdefault(branch, [branches["main"][-1]])

    def _validate(self) -> None:
        self._say({"warnings": [], "errors": []})

    def _preupload(self, name: str, revision: str) -> None:
        held = self.server.repositories[name].branches[revision][-1].files
        answers = []
        for file in json.loads(self.body)["files"]:
            path, large = file["path"], file["path"].endswith((".safetensors", ".onnx"))
            oid = _oid(held[path], large) if path in held else None
            ignored = path in self.server.ignored
            answers.append(
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": ignored, "oid": oid}
            )
        self._say({"files": answers})

    def _batch(self, name: str) -> None:
        del name
        objects = []
        for one in json.loads(self.body)["objects"]:
            href = f"{self.server.url}/lfs/{one['oid']}"
            new = {"upload": {"href": href}, "verify": {"href": f"{self.server.url}/lfs/verify"}}
            objects.append({**one, **({} if one["oid"] in self.server.stored else {"actions": new})})
        self._say({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._say({"error": "not its hash"}, 400)
            return
        self.server.stored[oid] = self.body
        self._say({})

    def _verify(self) -> None:
        one = json.loads(self.body)
        self._say({}, 200 if len(self.server.stored.get(one["oid"], b"")) == one["size"] else 422)

    def _commit(self, name: str, revision: str) -> None:
        commits = self.server.repositories[name].branches[revision]
        self.server.before_commit(self.server.repositories[name])
        head, *operations = [json.loads(line) for line in self.body.splitlines()]
        if head["value"].get("parentCommit") != commits[-1].sha:
            self._say({"error": "The parent commit is not the head of the branch"}, 412)
            return
        files = dict(commits[-1].files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            else:
                assert operation["key"] == "deletedFile"
                del files[value["path"]]
        commits.append(Commit(files, head["value"]["summary"]))
        self._say({"commitUrl": f"{self.server.url}/{name}/commit/{commits[-1].sha}", "commitOid": commits[-1].sha})


def _oid(content: bytes, large: bool) -> str:
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _describe(name: str, content: bytes) -> dict[str, Any]:
    described: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _oid(content, large=False)}
    if name.endswith((".safetensors", ".onnx")):
        lfs = {"sha256": _oid(content, large=True), "size": len(content), "pointerSize": 130}
        return described | {"lfs": lfs}
    return described


_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
_ANSWERS: tuple[tuple[str, Callable[..., None]], ...] = (
    (r"GET /api/whoami-v2", _Handler._whoami),
    (rf"GET /api/models/{_NAME}", _Handler._info),
    (rf"GET /api/models/{_NAME}/revision/(?P<revision>.+)", _Handler._info),
    (r"POST /api/repos/create", _Handler._create),
    (rf"POST /api/models/{_NAME}/branch/(?P<branch>.+)", _Handler._branch),
    (r"POST /api/validate-yaml", _Handler._validate),
    (rf"POST /api/models/{_NAME}/preupload/(?P<revision>.+)", _Handler._preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    (r"PUT /lfs/(?P<oid>\w+)", _Handler._store),
    (r"POST /lfs/verify", _Handler._verify),
    (rf"POST /api/models/{_NAME}/commit/(?P<revision>.+)", _Handler._commit),
)
