"""A hub served on loopback: enough of huggingface.co's HTTP for the real client to work with."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Repository:
    """One model repository, with every revision at the same commit.

    `claimed_sizes` lies about files in the listing; `cuts[name]` is how often the connection
    breaks in the middle of that file; files in `shortened` end half-way; `status` answers every
    request about the repository with an error; a `token` makes it private.
    """

    files: dict
    revisions: tuple = ("main",)
    gated: bool = False
    status: int | None = None
    token: str | None = None
    claimed_sizes: dict = field(default_factory=dict)
    cuts: dict = field(default_factory=dict)
    shortened: set = field(default_factory=set)


class FakeHub:
    """Use as a context manager; `requests` lists (method, path, Range header)."""

    def __init__(self):
        self.repositories = {}
        self.requests = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def downloads(self, name):
        """Range headers (None: from the start) of the downloads of a file."""
        return [range_ for method, path, range_ in self.requests if self._gets(method, path, name)]

    @staticmethod
    def _gets(method, path, name):
        return method == "GET" and path.endswith(f"/{name}") and "/resolve/" in path


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
                repo_id, what, revision = found.groups()
                if (repository := self._repository(repo_id, revision)) is not None:
                    self._json(_listing(repo_id, repository, what))
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                repo_id, revision, name = found.groups()
                repository = self._repository(repo_id, revision)
                if repository is None:
                    return
                if repository.gated:
                    self._error(401, "GatedRepo")
                elif name not in repository.files:
                    self._error(404, "EntryNotFound", {"X-Repo-Commit": COMMIT})
                else:
                    self._file(repository, name)
            else:
                self._error(404, "RepoNotFound")

        do_HEAD = do_GET  # noqa: N815 (the name http.server looks for)

        def _repository(self, repo_id, revision):
            repository = hub.repositories.get(repo_id)
            if repository is None:
                self._error(401, "RepoNotFound")
            elif repository.status is not None:
                self._error(repository.status)
            elif repository.token is not None and "Authorization" not in self.headers:
                self._error(401, "RepoNotFound")  # the hub does not tell what is private
            elif repository.token not in (None, self._token()):
                wrong = "Invalid credentials in Authorization header"
                self._error(401, None, {"X-Error-Message": wrong})
            elif revision not in (*repository.revisions, COMMIT):
                self._error(404, "RevisionNotFound")
            else:
                return repository
            return None

        def _token(self):
            return self.headers.get("Authorization", "").removeprefix("Bearer ")

        def _error(self, status, code=None, headers=None):
            self._answer(status, b"", {"X-Error-Code": code, **(headers or {})})

        def _json(self, document):
            self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

        def _file(self, repository, name):
            content = repository.files[name]
            start = 0
            if range_ := self.headers.get("Range"):
                start = int(range_.removeprefix("bytes=").partition("-")[0])
            headers = {
                "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}",
            }
            cut = self.command == "GET" and repository.cuts.get(name, 0) > 0
            if cut:
                repository.cuts[name] -= 1
            if self.command == "GET" and name in repository.shortened:
                content = content[: len(content) // 2]
            self._answer(206 if start else 200, content[start:], headers, cut=cut)

        def _answer(self, status, body, headers, *, cut=False):
            self.send_response(status)
            for header, value in headers.items():
                if value is not None:
                    self.send_header(header, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.wfile.flush()
                self.close_connection = True

    return Handler


def _listing(repo_id, repository, what):
    sizes = {name: len(content) for name, content in repository.files.items()}
    sizes |= repository.claimed_sizes
    if what == "tree":
        return [
            {"type": "file", "path": name, "size": size, "oid": "0" * 40}
            for name, size in sizes.items()
        ]
    return {
        "id": repo_id,
        "sha": COMMIT,
        "siblings": [{"rfilename": name, "size": size} for name, size in sizes.items()],
    }
