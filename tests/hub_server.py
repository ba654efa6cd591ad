"""A stand-in of the Hugging Face hub on this machine: what huggingface_hub asks to make, fill, list and
download a model's repository, over HTTP. Large files travel as git LFS does, not by the hub's own protocol
(xet).
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKENS = {"hf_ada": "ada", "hf_ben": "ben"}
LICENCES = ("apache-2.0", "mit", "other")
"""Some of those that the hub knows."""


@dataclass
class Repository:
    owner: str
    private: bool
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by path, of every commit; the last one is main."""

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[oid] = files
        return oid

    @property
    def main(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.main]


class Refusal(Exception):
    def __init__(self, code: int, message: str, kind: str = ""):
        self.code, self.message, self.kind = code, message, kind


class Hub:
    """Serves until `close`; `repositories` by name."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.broken: str | None = None
        """Paths that begin so are answered with 500."""
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                hub.asked.append(f"{self.command} {self.path.split('?')[0]}")
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                headers = {}
                try:
                    if hub.broken and self.path.startswith(hub.broken):
                        raise Refusal(500, "out of order")
                    code, content, headers = hub.answer(self.command, self.path.split("?")[0], body, token)
                except Refusal as no:
                    code, content = (
                        no.code,
                        json.dumps({"error": no.message, "errors": [{"message": no.message}]}),
                    )
                    headers = {"X-Error-Message": no.message} | ({"X-Error-Code": no.kind} if no.kind else {})
                content = content if isinstance(content, bytes) else content.encode()
                self.send_response(code)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, str | bytes, dict]:
        user = TOKENS.get(token)
        if token and user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        if path == "/":
            return 200, "", {}
        if path == "/api/whoami-v2":
            return 200, json.dumps({"name": user, "type": "user"}), {}
        if path == "/api/repos/create":
            return self.create(json.loads(body), user)
        if path == "/api/validate-yaml":
            found = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
            licence = yaml.safe_load(found[1]).get("license", "other") if found else "other"
            if licence not in LICENCES:
                raise Refusal(400, f'"license" must be one of {", ".join(LICENCES)}')
            return 200, json.dumps({"errors": [], "warnings": []}), {}
        if path.startswith("/large/"):
            oid = path.removeprefix("/large/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.large[oid] = body
            return 200, "", {}
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self.writable(found[1], user)
            objects = [self.lfs(one) for one in json.loads(body)["objects"]]
            return 200, json.dumps({"transfer": "basic", "objects": objects}), {}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            repository = self.writable(found[1], user)
            answer = self.preupload if found[2] == "preupload" else self.commit
            return answer(found[1], repository, body)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            repository, oid, files = self.readable(found[1], user, found[3])
            if found[2] == "tree":
                listed = [
                    {"type": "file", "path": name, "size": len(content), "oid": blob(content)}
                    for name, content in files.items()
                ]
                return 200, json.dumps(listed), {}
            told = {"id": found[1], "sha": oid, "private": repository.private}
            told["siblings"] = [{"rfilename": name} for name in files]
            return 200, json.dumps(told), {}
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository, oid, files = self.readable(found[1], user, found[2])
            if repository.gated and user != repository.owner:
                raise Refusal(403, "You have to accept its conditions", "GatedRepo")
            if found[3] not in files:
                raise Refusal(404, "Entry not found", "EntryNotFound")
            content = files[found[3]]
            return 200, content, {"X-Repo-Commit": oid, "ETag": f'"{blob(content)}"'}
        raise AssertionError(f"the stand-in knows no {method} {path}")

    def create(self, told: dict, user: str | None):
        owner = told.get("organization") or user
        name = f"{owner}/{told['name']}"
        if owner != user:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner}")
        if name in self.repositories:
            return 409, json.dumps({"error": "already there", "url": f"{self.address}/{name}"}), {}
        private = told.get("private", told.get("visibility") == "private")
        self.repositories[name] = Repository(owner, private)
        self.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        return 200, json.dumps({"url": f"{self.address}/{name}"}), {}

    def readable(self, name: str, user: str | None, revision: str | None):
        repository = self.repositories.get(name)
        if repository is None or (repository.private and repository.owner != user):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        oid = repository.main if revision in (None, "main") else revision
        if oid not in repository.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, oid, repository.commits[oid]

    def writable(self, name: str, user: str | None) -> Repository:
        repository, _, _ = self.readable(name, user, None)
        if repository.owner != user:
            raise Refusal(403, "you must have write access")
        return repository

    def lfs(self, told: dict) -> dict:
        there = told["oid"] in self.large
        return told | (
            {} if there else {"actions": {"upload": {"href": f"{self.address}/large/{told['oid']}"}}}
        )

    def preupload(self, _name: str, repository: Repository, body: bytes):
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": blob(repository.files[one["path"]]) if one["path"] in repository.files else None,
            }
            for one in json.loads(body)["files"]
        ]
        return 200, json.dumps({"files": files}), {}

    def commit(self, name: str, repository: Repository, body: bytes):
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["value"].get("parentCommit", repository.main) != repository.main:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files)
        for line in lines[1:]:
            told = line["value"]
            large = line["key"] == "lfsFile"
            files[told["path"]] = self.large[told["oid"]] if large else base64.b64decode(told["content"])
        oid = repository.commit(files)
        return 200, json.dumps({"commitUrl": f"{self.address}/{name}/commit/{oid}", "commitOid": oid}), {}


def blob(content: bytes) -> str:
    """As git names it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
