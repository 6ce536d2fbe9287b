"""A small Hub on the loopback, so that pushing and pulling are tested for real, by the real client.

It holds model repositories in memory: commits, branches, LFS files, private ones, and who may do what. Statuses and
`X-Error-Code` are the Hub's own, for the client tells a missing repository, revision or file apart by them. The client
reads its environment once, when it is imported: give a subprocess `environment(...)`.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

OWNER, STRANGER = "hf_owner", "hf_stranger"  # tokens
USERS = {OWNER: "owner", STRANGER: "stranger"}
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png")


class HubError(Exception):
    """An answer other than 200; `headers` and `body` go with it."""

    def __init__(self, status: int, message: str, code: str | None = None, headers=None, body=None):
        super().__init__(message)
        self.status, self.body = status, {"error": message, **(body or {})}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


@dataclass
class Commit:
    """What a repository held: file contents by path."""

    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Commits, oldest first, and branches, a commit each."""

    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, Commit] = field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        sha = hashlib.sha1(f"{self.name} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append(Commit(sha, message, files))
        self.branches[branch] = self.commits[-1]
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        """The commit that a branch or a hash names."""
        if revision in self.branches:
            return self.branches[revision]
        for commit in self.commits:
            if commit.sha == revision:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class HubStub:
    """The server: `with HubStub() as hub: ...`.

    Args:
        repositories: by `namespace/name`; tests read what was pushed from here.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS contents by SHA-256
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "HubStub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = OWNER) -> dict[str, str]:
        """The variables of a process that takes this for the Hub."""
        given = {} if token is None else {"HF_TOKEN": token}
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **given,
        }  # fmt: skip

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        return self.repositories[name].at(revision).files


class _Handler(BaseHTTPRequestHandler):
    """One request: the first route that fits, or 404."""

    protocol_version = "HTTP/1.1"
    hub: HubStub
    model = r"/api/models/([^/]+/[^/]+)"
    routes = (
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", model + r"/branch/([^/]+)", "create_branch"),
        ("POST", model + r"/preupload/([^/]+)", "preupload"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/([0-9a-f]{64})", "lfs_put"),
        ("POST", model + r"/commit/([^/]+)", "commit"),
        ("GET", model + r"(?:/revision/([^/]+))?", "info"),
        ("GET", model + r"/tree/([^/]+)(?:/(.*))?", "tree"),
        ("GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    )

    def answer(self) -> None:
        address = urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        method = "GET" if self.command == "HEAD" else self.command
        try:
            for verb, pattern, name in self.routes:
                match = re.fullmatch(pattern, address.path)
                if match and verb == method:
                    groups = [None if group is None else unquote(group) for group in match.groups()]
                    with self.hub.lock:
                        return self.reply(200, *getattr(self, name)(*groups, content=content))
            raise HubError(404, f"no such endpoint: {self.command} {address.path}")
        except HubError as error:
            self.reply(error.status, error.body, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def reply(self, status: int, content, headers: dict[str, str] | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        """Nothing on the terminal."""

    def user(self) -> str | None:
        """Who asks, `None` for nobody in particular."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def repository(self, name: str, write: bool = False) -> Repository:
        """A repository that the user may see, or write; a private one of others does not exist for them."""
        user, found = self.user(), self.hub.repositories.get(name)
        owned = user == name.split("/")[0]
        if found is None or (found.private and not owned):
            if user is None:
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        if write and not owned:
            raise HubError(401 if user is None else 403, f"You don't have the rights to write to {name}")
        return found

    def validate_yaml(self, content: bytes) -> tuple:
        text = json.loads(content)["content"]
        block = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        if block is None:
            return ({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]},)
        if not isinstance(yaml.safe_load(block[1]), dict):
            raise HubError(400, "invalid metadata", body={"errors": [{"message": "the metadata is no mapping"}]})
        return ({"errors": [], "warnings": []},)

    def create(self, content: bytes) -> tuple:
        wanted = json.loads(content)
        namespace = wanted.get("organization") or self.user()
        name = f"{namespace}/{wanted['name']}"
        if self.user() is None:
            raise HubError(401, "Invalid username or password.")
        if namespace != self.user():
            raise HubError(403, f"You don't have the rights to create a model under the namespace {namespace}")
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repositories:
            raise HubError(409, "You already created this model repo", body={"url": url})
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        created = self.hub.repositories[name] = Repository(name, private)
        created.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return ({"url": url, "name": name},)

    def create_branch(self, name: str, branch: str, content: bytes) -> tuple:
        found = self.repository(name, write=True)
        if branch in found.branches:
            raise HubError(409, f"Reference {branch} exists already")
        found.branches[branch] = found.at(json.loads(content or b"{}").get("startingPoint") or "main")
        return ({},)

    def preupload(self, name: str, revision: str, content: bytes) -> tuple:
        files = self.repository(name, write=True).at(revision).files
        answers = []
        for file in json.loads(content)["files"]:
            path = file["path"]
            known = {"oid": _oid(path, files[path])} if path in files else {}
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return ({"files": answers},)

    def lfs_batch(self, name: str, content: bytes) -> tuple:
        self.repository(name, write=True)
        answers = []
        for wanted in json.loads(content)["objects"]:
            upload = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}
            answers.append(wanted if wanted["oid"] in self.hub.objects else {**wanted, "actions": upload})
        return ({"transfer": "basic", "objects": answers},)

    def lfs_put(self, oid: str, content: bytes) -> tuple:
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, "the content is not what was announced")
        self.hub.objects[oid] = content
        return ({},)

    def commit(self, name: str, branch: str, content: bytes) -> tuple:
        found = self.repository(name, write=True)
        if branch not in found.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        files, message = dict(found.branches[branch].files), ""
        for line in content.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise HubError(400, f"unknown operation {key}")
        sha = found.commit(branch, message, files).sha
        return ({"commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}"},)

    def info(self, name: str, revision: str | None, content: bytes) -> tuple:
        found = self.repository(name)
        commit = found.at(revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        return ({"id": name, "sha": commit.sha, "private": found.private, "siblings": siblings, "tags": []},)

    def tree(self, name: str, revision: str, folder: str | None, content: bytes) -> tuple:
        files = self.repository(name).at(revision).files
        inside = {path: data for path, data in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        entries = [{"type": "file", "path": p, "size": len(d), "oid": _oid(p, d)} for p, d in inside.items()]
        return (entries,)

    def resolve(self, name: str, revision: str, path: str, content: bytes) -> tuple:
        commit = self.repository(name).at(revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        headers["ETag"] = f'"{_oid(path, commit.files[path])}"'
        return commit.files[path], {**headers, "Content-Type": "application/octet-stream"}


def _oid(path: str, content: bytes) -> str:
    """SHA-256 of an LFS file, git's SHA-1 of another."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
