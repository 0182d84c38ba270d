"""A small server that speaks the protocol of the Hugging Face hub."""

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMITS = [digit * 40 for digit in "0123456789abcdef"]


class Hub:
    """Models by name. Each has commits, and each commit has the contents of its files."""

    def __init__(self) -> None:
        self.url = ""
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.refs: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.tokens: dict[str, str] = {}  # the token that a private model needs
        self.login_page = b""  # the answer to every request, if it is not empty
        self.cuts: list[int] = []  # the number of bytes after which the next downloads of large files break
        self.log: list[tuple[str, str]] = []  # the method and the path of each request

    def add(self, repo: str, files: dict[str, bytes] | Path, branch: str = "main", *, drop: str = "io|meta") -> str:
        """Adds a commit with these files, or those of a folder, and returns it. `branch` then points to it."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir() if not re.match(drop, path.name)}
        commit = COMMITS[sum(map(len, self.commits.values()))]
        self.commits.setdefault(repo, {})[commit] = files
        self.refs.setdefault(repo, {})[branch] = commit
        return commit

    def requested(self) -> set[str]:
        """Returns the names of all files of models that were requested."""
        return {path.rpartition("/")[2] for _, path in self.log if "/resolve/" in path}


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0].replace("%2F", "/")
        hub.log.append((self.command, path))
        if hub.login_page:
            return self.answer(200, {"Content-Type": "text/html"}, hub.login_page)
        if match := re.fullmatch(r"/cdn/(\w+)", path):
            return self.content(next(c for c in self.contents() if _etag(c) == match[1]))
        match = re.fullmatch(r"/(api/models/)?([^/]+/[^/]+)/(?:revision|resolve)/(.+)", path)
        if match is None or match[2] not in hub.commits:
            return self.error(401, "RepoNotFound", "Invalid username or password.")
        api, repo, rest = match.groups()
        if repo in hub.tokens and self.headers.get("Authorization") != f"Bearer {hub.tokens[repo]}":
            return self.error(401, "RepoNotFound", "Invalid username or password.")
        revision, _, name = (rest, "", "") if api else rest.rpartition("/")
        commit = hub.refs[repo].get(revision, revision)
        if commit not in hub.commits[repo]:
            return self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = hub.commits[repo][commit]
        if api:
            siblings = [{"rfilename": file} for file in files]
            info = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": [], "private": False}
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(info).encode())
        if repo in hub.gated:
            return self.error(401, "GatedRepo", f"Access to model {repo} is restricted.")
        if name not in files:
            return self.error(404, "EntryNotFound", "Entry not found")
        content, commit_header = files[name], {"X-Repo-Commit": commit}
        if name.endswith(".json"):
            return self.content(content, commit_header)
        elsewhere = f"{hub.url.replace('127.0.0.1', 'localhost')}/cdn/{_etag(content)}"  # the hub redirects large files
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{_etag(content)}"'}
        return self.answer(302, commit_header | linked | {"Location": elsewhere})

    def contents(self) -> Iterator[bytes]:
        for commits in self.hub.commits.values():
            for files in commits.values():
                yield from files.values()

    def content(self, content: bytes, headers: dict[str, str] | None = None) -> None:
        headers = {"ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"} | (headers or {})
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if start else 200, headers, content[start:])

    def error(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"X-Error-Code": code, "X-Error-Message": message}, b'{"error": "no"}')

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            cut = self.hub.cuts.pop(0) if self.hub.cuts and "/cdn/" in self.path else len(body)
            self.wfile.write(body[:cut])
            self.close_connection = cut < len(body)


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Runs the server in a thread."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
