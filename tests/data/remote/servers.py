"""Real servers on this machine: nginx, an S3 server, and one that cuts transfers off."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")

_CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        location / {{ autoindex on; }}
        location /slow/ {{ alias {root}/; limit_rate {rate}; }}
        location /private/ {{ return 403; }}
        location /broken/ {{ return 503; }}
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Nginx:
    """A running nginx, and what it was asked."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def requests(self) -> list[str]:
        """Method, path and state of each request so far."""
        parts = [line.split('"') for line in self._log.read_text().splitlines()]
        return [f"{asked.rpartition(' ')[0]} {answer.split()[0]}" for _, asked, answer, *_ in parts]


@contextmanager
def run_nginx(root: Path, folder: Path, rate: str = "1m") -> Iterator[Nginx]:
    """Serves a folder with byte ranges and a page of links; below `slow/` at so many bytes a second."""
    assert NGINX is not None
    folder.mkdir(exist_ok=True)
    port = free_port()
    configuration = folder / "nginx.conf"
    user = "user root;\n" if Path("/root").is_dir() and folder.owner() == "root" else ""
    configuration.write_text(user + _CONFIGURATION.format(folder=folder, root=root, port=port, rate=rate))
    with subprocess.Popen(
        [NGINX, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(configuration)]
    ) as server:
        try:
            _wait_for(port)
            yield Nginx(f"http://127.0.0.1:{port}", folder / "access.log")
        finally:
            server.terminate()


def _wait_for(port: int) -> None:
    for _ in range(200):
        with socket.socket() as caller:
            if caller.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("the server did not start")


class Cutter:
    """Serves one file at any path, and closes the connection after some bytes of an answer.

    Attributes:
        content: The file.
        cuts: How many answers are still to be cut.
        after: Bytes of a body after which they are.
        ranges: Whether parts can be asked for.
        status: What every request is answered with, if it is not 200.
        recovers: After how many requests it is 200 again; None for never.
        location: Where a request for anything else is sent; empty for nowhere.
        asked: The first byte that each GET asked for.
        looks: How many HEADs came.
    """

    def __init__(self, content: bytes, cuts: int = 0, after: int = 0, ranges: bool = True) -> None:
        self.content, self.cuts, self.after, self.ranges = content, cuts, after, ranges
        self.status, self.version, self.asked, self.looks = 200, "1", list[int](), 0
        self.recovers: int | None = None
        self.url = self.location = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.looks += request.command == "HEAD"
        if self.location and not self.location.endswith(request.path):
            request.send_response(302)
            request.send_header("Location", self.location)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if self.recovers is not None:
            self.recovers -= 1
            self.status = self.status if self.recovers > 0 else 200
        start, end = 0, len(self.content)
        if self.ranges and (wanted := request.headers.get("Range", "")).startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(end, int(last) + 1)
        body = self.content[start:end]
        if self.status != 200:
            request.send_error(self.status)
            return
        request.send_response(206 if end - start < len(self.content) else 200)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", f'"{self.version}"')
        request.end_headers()
        if request.command == "HEAD":
            return
        self.asked.append(start)
        if self.cuts and len(body) > self.after:
            self.cuts -= 1
            request.wfile.write(body[: self.after])
            request.close_connection = True
            return
        request.wfile.write(body)


@contextmanager
def run_cutter(cutter: Cutter) -> Iterator[Cutter]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cutter.answer(self)

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    cutter.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield cutter
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def run_s3(bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves the files of a folder below `set/` in a bucket of an S3 server, which the environment names."""
    pytest.importorskip("moto.server", reason="moto is not installed: pip install -e .[dev]")
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -e .[remote]")
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    settings = {
        "ENDPOINT_URL": url,
        "ACCESS_KEY_ID": "anybody",
        "SECRET_ACCESS_KEY": "any",
        "DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()  # what asks the server of an earlier test
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket=bucket)
        for path in filter(Path.is_file, folder.iterdir()):
            client.upload_file(str(path), bucket, f"set/{path.name}")
        yield url
    finally:
        server.stop()
