"""The part of the hub's HTTP interface that pushes and downloads use, in memory, on the loopback interface.

huggingface_hub uses it like the hub, over plain LFS: tests disable Xet, which it would prefer (`HF_HUB_DISABLE_XET`).
Binary files count as large. Faults are queued by kind of request, and each happens once.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import yaml

TOKEN = "hf_standinstandinstandinstandin"
Tree = dict[str, bytes]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(path: str, start: bytes) -> bool:
    return path.endswith((".safetensors", ".png")) or b"\0" in start


@dataclass
class Repo:
    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: Tree, message: str) -> str:
        self.messages.append(message)
        oid = hashlib.sha1(repr((len(self.messages), message, sorted(tree))).encode()).hexdigest()
        self.commits[oid] = tree
        self.branches[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        found = self.branches.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)


@dataclass
class Hub:
    """The hub's contents, and the requests it received."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    puts: Counter[str] = field(default_factory=Counter)
    """Complete uploads of large files, by sha256."""
    requests: list[str] = field(default_factory=list)
    """Kinds of the requests, in order; unknown requests are answered with 404 and not listed."""
    faults: defaultdict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque))
    """By kind: a status such as `503`, `drop` (reads half of the body), `lose` (acts but never answers), `hang`."""
    token_sent_to_storage: bool = False
    hanging: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def files(self, repo: str, revision: str = "main") -> Tree:
        oid = self.repos[repo].resolve(revision)
        assert oid is not None
        return self.repos[repo].commits[oid]


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


class Dropped(Exception):
    """Raised to drop the connection."""


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Make it the hub of this process, with an empty cache and a logged-in user."""
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "cache"),
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(home / "token"),
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    # Functions such as `file_exists` are bound to an object created at import.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@contextlib.contextmanager
def standing_in() -> Iterator[Hub]:
    hub = Hub()

    class Bound(Handler):
        pass

    Bound.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self.handle_one()

    do_POST = do_PUT = do_HEAD = do_GET

    def handle_one(self) -> None:
        """Route the request, inject a queued fault, answer."""
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        kind, act = self.route(parts)
        with self.hub.lock:
            if kind != "unknown":
                self.hub.requests.append(kind)
            queue = self.hub.faults[kind]
            fault = queue.popleft() if queue else ""
        try:
            body = self.body(fault)
            if fault.isdigit():
                raise Refused(int(fault), "injected")
            if kind == "put":
                self.hub.token_sent_to_storage |= "Authorization" in self.headers
            elif self.headers["Authorization"] != f"Bearer {TOKEN}":
                raise Refused(401, "Invalid username or password.")
            with self.hub.lock:
                answer = act(body)
            if fault == "lose":
                raise Dropped
            self.answer(200, answer)
        except Refused as refused:
            self.answer(refused.status, {"error": str(refused), **refused.more}, refused.code)
        except Dropped:
            self.close_connection = True
            self.connection.close()

    def body(self, fault: str) -> bytes:
        length = int(self.headers.get("Content-Length", 0))
        if fault in ("drop", "hang"):
            self.rfile.read(length // 2)
            if fault == "hang":
                self.hub.hanging.set()
                self.rfile.read(length)  # returns when the client has closed the connection
            raise Dropped
        assert "Transfer-Encoding" not in self.headers
        return self.rfile.read(length)

    def answer(self, status: int, content: Any, code: str = "") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if isinstance(content, bytes):
            self.send_header("ETag", f'"{sha256(content)}"')
            self.send_header("X-Repo-Commit", self.commit_oid)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self, parts: list[str]) -> tuple[str, Callable[[bytes], Any]]:
        """(kind of request, function that answers it)."""
        match self.command, parts:
            case "POST", ["api", "repos", "create"]:
                return "create", self.create
            case "POST", ["api", "validate-yaml"]:
                return "validate", self.validate
            case "PUT", ["lfs", oid]:
                return "put", lambda body: self.put(oid, body)
            case "POST", [user, name, "info", "lfs", "objects", "batch"]:
                return "batch", self.batch
            case _, ["api", "models", user, name, *rest]:
                return self.route_model(f"{user}/{name}", rest)
            case _, [user, name, "resolve", revision, *path]:
                return "resolve", lambda body: self.resolve(f"{user}/{name}", revision, "/".join(path))
        return "unknown", self.unknown

    def route_model(self, repo: str, rest: list[str]) -> tuple[str, Callable[[bytes], Any]]:
        match self.command, rest:
            case "GET", [] | ["revision", _]:
                return "info", lambda body: self.info(repo, rest[1] if rest else "main")
            case "GET", ["refs"]:
                return "refs", lambda body: self.refs(repo)
            case "GET", ["tree", revision]:
                return "tree", lambda body: self.tree(repo, revision)
            case "POST", ["preupload", revision]:
                return "preupload", lambda body: self.preupload(repo, revision, body)
            case "POST", ["commit", revision]:
                return "commit", lambda body: self.commit(repo, revision, body)
            case "POST", ["tag", revision]:
                return "tag", lambda body: self.tag(repo, revision, body)
            case "POST", ["branch", branch]:
                return "branch", lambda body: self.branch(repo, branch)
        return "unknown", self.unknown

    def unknown(self, body: bytes) -> Any:
        raise Refused(404, f"the stand-in does not know {self.command} {self.path}")

    def repo(self, name: str) -> Repo:
        if name not in self.hub.repos:
            raise Refused(404, "Repository not found", "RepoNotFound")
        return self.hub.repos[name]

    def at(self, name: str, revision: str) -> Tree:
        oid = self.repo(name).resolve(revision)
        if oid is None:
            raise Refused(404, "Revision not found", "RevisionNotFound")
        self.commit_oid = oid
        return self.repo(name).commits[oid]

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            raise Refused(409, "You already created this model repo", url=f"{self.hub.url}/{name}")
        repo = self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return {"url": f"{self.hub.url}/{name}"}

    def validate(self, body: bytes) -> Any:
        metadata = yaml.safe_load(json.loads(body)["content"].split("---")[1])
        wrong = [] if isinstance(metadata, dict) else [{"message": "metadata is not a mapping"}]
        return {"errors": wrong, "warnings": []}

    def info(self, name: str, revision: str) -> Any:
        tree = self.at(name, revision)
        return {
            "id": name,
            "private": self.repo(name).private,
            "sha": self.commit_oid,
            "siblings": [{"rfilename": path} for path in tree],
            "cardData": yaml.safe_load(tree["README.md"].decode().split("---")[1]) if "README.md" in tree else None,
        }

    def refs(self, name: str) -> Any:
        repo = self.repo(name)

        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": ref, "ref": f"refs/{kind}/{ref}", "targetCommit": oid} for ref, oid in refs.items()]

        return {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}

    def tree(self, name: str, revision: str) -> Any:
        entries: list[dict[str, Any]] = []
        for path, content in self.at(name, revision).items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            if is_large(path, content[:512]):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries

    def preupload(self, name: str, revision: str, body: bytes) -> Any:
        tree = self.at(name, revision)
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            large = is_large(path, base64.b64decode(file["sample"]))
            there = tree.get(path)
            oid = None if there is None else sha256(there) if large else git_oid(there)
            mode = "lfs" if large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def batch(self, body: bytes) -> Any:
        answers = []
        for asked in json.loads(body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"}}
            answers.append(answer)
        return {"transfer": "basic", "objects": answers}

    def put(self, oid: str, body: bytes) -> Any:
        if sha256(body) != oid:
            raise Refused(400, "the content is not what its name says")
        self.hub.objects[oid] = body
        self.hub.puts[oid] += 1
        return {}

    def commit(self, name: str, branch: str, body: bytes) -> Any:
        tree = dict(self.at(name, branch))
        message = ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise Refused(400, f"{value['path']} was not uploaded")
                    tree[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    del tree[value["path"]]
        oid = self.repo(name).commit(branch, tree, message)
        return {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid}

    def tag(self, name: str, revision: str, body: bytes) -> Any:
        self.at(name, revision)
        tag = json.loads(body)["tag"]
        if tag in self.repo(name).tags:
            raise Refused(409, "Tag already exists")
        self.repo(name).tags[tag] = self.commit_oid
        return {}

    def branch(self, name: str, branch: str) -> Any:
        repo = self.repo(name)
        repo.branches[branch] = repo.branches["main"]
        return {}

    def resolve(self, name: str, revision: str, path: str) -> bytes:
        tree = self.at(name, revision)
        if path not in tree:
            raise Refused(404, "Entry not found", "EntryNotFound")
        return tree[path]
