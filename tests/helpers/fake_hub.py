"""A hub on this machine that speaks as much of Hugging Face's protocol as downloads and uploads of small files need."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_test"


@dataclass
class FakeHub:
    """Repositories by name, each of files by name.

    asked    method and path of each request
    private  repositories that only `TOKEN` sees
    """

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def commit(self, name: str) -> str:
        """Another one whenever a file is another."""
        files = self.repositories[name]
        return hashlib.sha1(b"".join(key.encode() + files[key] for key in sorted(files))).hexdigest()

    def upload(self, name: str, lines: list[dict[str, Any]]) -> None:
        """What a commit's lines say."""
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.repositories[name][value["path"]]


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def json(self, content: object, status: int = 200, **headers: str) -> None:
            self.answer(json.dumps(content).encode(), status, Content_Type="application/json", **headers)

        def missing(self, code: str) -> None:
            self.json({"error": code}, 404, X_Error_Code=code, X_Error_Message=code)

        def may_see(self, name: str) -> bool:
            allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            return name in hub.repositories and (allowed or name not in hub.private)

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self.describe("/".join(parts[2:4]), parts[4:])
            elif len(parts) > 4 and parts[2] == "resolve":
                self.file("/".join(parts[:2]), "/".join(parts[4:]))
            else:
                self.missing("EntryNotFound")

        do_HEAD = do_GET  # noqa: N815

        def describe(self, name: str, rest: list[str]) -> None:
            if not self.may_see(name):
                self.missing("RepoNotFound")
                return
            if rest[:1] == ["revision"] and rest[1] not in ("main", hub.commit(name)):
                self.missing("RevisionNotFound")
                return
            files = hub.repositories[name]
            if rest[:1] == ["tree"]:
                self.json([{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files.items()])
                return
            siblings = [{"rfilename": path} for path in files]
            self.json({"id": name, "sha": hub.commit(name), "siblings": siblings, "private": name in hub.private})

        def file(self, name: str, path: str) -> None:
            if not self.may_see(name):
                self.missing("RepoNotFound")
            elif path not in hub.repositories[name]:
                self.missing("EntryNotFound")
            else:
                content = hub.repositories[name][path]
                self.answer(content, ETag=f'"{_oid(content)}"', X_Repo_Commit=hub.commit(name))

        def do_POST(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.asked.append(f"POST {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.json({"error": "who are you?"}, 401)
                return
            if path == "/api/repos/create":
                wanted = json.loads(body)
                name = "/".join(part for part in (wanted.get("organization"), wanted["name"]) if part)
                hub.repositories.setdefault(name, {".gitattributes": b""})
                if wanted.get("private") or wanted.get("visibility") == "private":
                    hub.private.add(name)
                self.json({"url": f"{hub.address}/{name}", "name": name, "id": name})
                return
            name = "/".join(path.strip("/").split("/")[2:4])
            if "/preupload/" in path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]
                self.json({"files": files})
            elif "/commit/" in path:
                hub.upload(name, [json.loads(line) for line in body.splitlines()])
                commit = hub.commit(name)
                self.json({"commitUrl": f"{hub.address}/{name}/commit/{commit}", "commitOid": commit, "success": True})
            else:
                self.json({"valid": True})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
