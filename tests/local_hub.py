"""A hub on this machine that answers what huggingface_hub asks of the real one when it sends and fetches files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_of_a_test"
COMMIT = "c0ffee" + "0" * 34


class Hub:
    """What the hub knows.

    Attributes:
        role: of the token; `orgs` for which its user may write.
        repos: repository → path → content; `private` those that were made private; `commits` the messages.
        asked: method and path of every request.
        refuse: paths that begin so are answered with 500.
    """

    def __init__(self) -> None:
        self.role, self.orgs = "write", ["lab"]
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits: list[str] = []
        self.asked: list[str] = []
        self.large: dict[str, bytes] = {}
        self.refuse: tuple[str, ...] = ()
        self.url = ""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub while it lasts; `hub.url` is what HF_ENDPOINT is to be."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        asked = f"{self.command} {path}"
        self.hub.asked.append(asked)
        if path.startswith(self.hub.refuse or ("//",)):
            return self._send(500, {"error": "out of order"})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/large/"):
            return self._send(401, {"error": "Invalid credentials in Authorization header"})
        for pattern, answer in _ROUTES:
            if (found := re.fullmatch(pattern, asked)) is not None:
                return answer(self, body, **found.groupdict())
        return self._send(404, {"error": f"{asked}: nothing here"})

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _send(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _who(self, body: bytes) -> None:
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.hub.role}}
        self._send(200, {"name": "someone", "orgs": [{"name": name} for name in self.hub.orgs], "auth": auth})

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if repo in self.hub.repos:
            return self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"})
        self.hub.repos[repo] = {}
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(repo)
        return self._send(200, {"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})

    def _validate(self, body: bytes) -> None:
        """As the hub looks at a card: its front matter must be YAML."""
        asked = json.loads(body)
        yaml.safe_load(asked["content"].split("---")[1])
        self._send(200, {"errors": [], "warnings": []})

    def _preupload(self, body: bytes, repo: str) -> None:
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
             "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]  # fmt: skip
        self._send(200, {"files": files})

    def _batch(self, body: bytes, repo: str) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _large(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send(400, {"error": "not what was announced"})
        self.hub.large[oid] = body
        return self._send(200, {})

    def _commit(self, body: bytes, repo: str) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif entry["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.repos[repo][value["path"]] = self.hub.large[value["oid"]]
        self._send(200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}"})

    def _resolve(self, body: bytes, repo: str, file: str) -> None:
        content = self.hub.repos.get(repo, {}).get(file)
        if content is None:
            return self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        return self._send(200, content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=COMMIT)


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = (
    (r"GET /api/whoami-v2", _Handler._who),
    (r"POST /api/repos/create", _Handler._create),
    (r"POST /api/validate-yaml", _Handler._validate),
    (rf"POST /api/models/{_REPO}/preupload/main", _Handler._preupload),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler._batch),
    (r"PUT /large/(?P<oid>[0-9a-f]{64})", _Handler._large),
    (rf"POST /api/models/{_REPO}/commit/main", _Handler._commit),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/[\w.-]+/(?P<file>.+)", _Handler._resolve),
)
