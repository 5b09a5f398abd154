"""A registry in memory that does to each request what a script says.

    async with FakeRegistry() as registry:
        digest = registry.add_blob(b"...")
        registry.script("blob", CutAfter(100), Status(503))   # the first two blob requests; then it serves

Kinds of requests: ``blob``, ``manifest``, ``token``, ``storage`` (where blobs are redirected to), ``listing``.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Answer:
    """What would be sent if nothing went wrong."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


Fault = Callable[[web.Request, Answer, "FakeRegistry"], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    kind: str
    method: str
    path: str
    range: str
    authorization: str
    query: str
    headers: dict[str, str]


class FakeRegistry:
    """Listens on loopback while entered. ``url`` is its address, ``requests`` what it was asked."""

    def __init__(
        self,
        *,
        auth: str = "",
        username: str = "user",
        password: str = "pass word",
        storage: bool = False,
        bytes_per_second: float = 0.0,
    ) -> None:
        self.auth = auth  # "", "basic" or "bearer"
        self.username, self.password = username, password
        self.uses_storage = storage
        self.bytes_per_second = bytes_per_second
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.requests: list[Seen] = []
        self.body_bytes = 0
        self.token_life: float | None = 300
        self.token_field = "token"
        self.realm = ""
        self.links: dict[str, str] = {}
        self.link_generation = 0
        self.released = asyncio.Event()  # ends all stalls
        self.most_at_once = 0
        self._at_once = 0
        self._tokens: set[str] = set()
        self._token_number = 0
        self._scripts: dict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}
        self._runners: list[web.AppRunner] = []
        self.url = self.storage_url = ""

    # -- contents and script -------------------------------------------------------------------------------

    def add_blob(self, data: bytes) -> str:
        self.blobs[digest_of(data)] = data
        return digest_of(data)

    def add_manifest(self, repository: str, tag: str, body: bytes, media_type: str = OCI_MANIFEST) -> str:
        digest = digest_of(body)
        self.manifests[repository, digest] = (media_type, body)
        if tag:
            self.manifests[repository, tag] = (media_type, body)
        return digest

    def add_image(self, repository: str, tag: str, *layers: bytes) -> str:
        """An image of these layers; returns the manifest's digest."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "n": len(self.manifests)}).encode()
        body = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _descriptor(self.add_blob(config), len(config), "application/vnd.oci.image.config.v1+json"),
            "layers": [
                _descriptor(self.add_blob(data), len(data), "application/vnd.oci.image.layer.v1.tar") for data in layers
            ],
        }
        return self.add_manifest(repository, tag, json.dumps(body).encode())

    def script(self, kind: str, *faults: Fault) -> None:
        self._scripts[kind].extend(faults)

    def always(self, kind: str, fault: Fault | None) -> None:
        """Do this to each request that no script covers."""
        if fault is None:
            self._always.pop(kind, None)
        else:
            self._always[kind] = fault

    def count(self, kind: str, method: str | None = None) -> int:
        return sum(seen.kind == kind and method in (None, seen.method) for seen in self.requests)

    def revoke_tokens(self) -> None:
        self._tokens.clear()

    def expire_links(self) -> None:
        self.link_generation += 1

    # -- life ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        registry = web.Application()
        registry.router.add_route("*", "/token", self._token)
        registry.router.add_route("*", "/v2/", self._ping)
        registry.router.add_route("*", "/v2/{path:.*}", self._v2)
        self.url = await self._listen(registry)
        storage = web.Application()
        storage.router.add_route("*", "/{generation}/{digest}", self._storage)
        self.storage_url = (await self._listen(storage)).replace("127.0.0.1", "localhost")
        self.realm = self.realm or f"{self.url}/token"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.released.set()
        for runner in self._runners:
            await runner.cleanup()

    async def _listen(self, app: web.Application) -> str:
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    # -- handlers ------------------------------------------------------------------------------------------

    async def _ping(self, request: web.Request) -> web.StreamResponse:
        return self._challenge(request) or web.json_response({})

    async def _v2(self, request: web.Request) -> web.StreamResponse:
        name, _, rest = _split(request.match_info["path"])
        kind = {"manifests": "manifest", "blobs": "blob"}.get(rest.partition("/")[0], "listing")
        async with self._seen(kind, request):
            if (challenge := self._challenge(request)) is not None:
                return challenge
            answer = self._answer(kind, name, rest.partition("/")[2], request)
            return await (self._next(kind) or self._always.get(kind) or serve)(request, answer, self)

    async def _storage(self, request: web.Request) -> web.StreamResponse:
        async with self._seen("storage", request):
            if "Authorization" in request.headers:
                return web.Response(status=400, text="Only one auth mechanism allowed")
            if request.method != "GET" or request.match_info["generation"] != str(self.link_generation):
                return web.Response(status=403, text="<Error><Code>AccessDenied</Code></Error>")
            answer = _ranged(request, self.blobs[request.match_info["digest"]], {"ETag": '"storage"'})
            fault = self._next("storage") or self._always.get("storage") or serve
            return await fault(request, answer, self)

    async def _token(self, request: web.Request) -> web.StreamResponse:
        async with self._seen("token", request):
            fault = self._next("token") or self._always.get("token")
            form = await request.post() if request.method == "POST" else {}
            self._token_number += 1
            token = f"token-{self._token_number}"
            answer = Answer(200, {"Content-Type": "application/json"}, b"")
            body: dict[str, Any] = {self.token_field: token}
            if self.token_life is not None:
                body["expires_in"] = self.token_life
            answer.body = json.dumps(body).encode()
            right = form.get("refresh_token") == self.password or self._is_basic(request)
            if self.auth == "bearer-private" and not right:
                return web.Response(status=401)
            self._tokens.add(token)
            return await (fault or serve)(request, answer, self)

    def _answer(self, kind: str, name: str, reference: str, request: web.Request) -> Answer:
        if kind == "blob":
            data = self.blobs.get(reference)
            if data is None:
                return _error(404, "BLOB_UNKNOWN")
            if self.uses_storage:
                return Answer(307, {"Location": f"{self.storage_url}/{self.link_generation}/{reference}?X-Sig=a%2Bb"})
            return _ranged(request, data, {"Docker-Content-Digest": reference})
        if kind == "manifest":
            found = self.manifests.get((name, reference))
            if found is None:
                return _error(404, "MANIFEST_UNKNOWN")
            media_type, body = found
            return Answer(200, {"Content-Type": media_type, "Docker-Content-Digest": digest_of(body)}, body)
        if reference == "list":
            tags = sorted(tag for repository, tag in self.manifests if repository == name and ":" not in tag)
            return Answer(200, {"Content-Type": "application/json"}, json.dumps({"name": name, "tags": tags}).encode())
        return _error(404, "NAME_UNKNOWN")

    def _challenge(self, request: web.Request) -> web.Response | None:
        authorization = request.headers.get("Authorization", "")
        if not self.auth:
            return None
        if self.auth == "basic":
            if self._is_basic(request):
                return None
            return _unauthorized('Basic realm="fake registry"')
        if authorization.removeprefix("Bearer ") in self._tokens:
            return None
        return _unauthorized(f'Bearer realm="{self.realm}",service="fake, registry",scope="repository:user/image:pull"')

    def _is_basic(self, request: web.Request) -> bool:
        expected = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        return request.headers.get("Authorization", "") == f"Basic {expected}"

    def _next(self, kind: str) -> Fault | None:
        return self._scripts[kind].popleft() if self._scripts[kind] else None

    @asynccontextmanager
    async def _seen(self, kind: str, request: web.Request) -> AsyncIterator[None]:
        self.requests.append(
            Seen(
                kind,
                request.method,
                request.path,
                request.headers.get("Range", ""),
                request.headers.get("Authorization", ""),
                request.query_string,
                dict(request.headers),
            )
        )
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            self._at_once -= 1

    async def send(self, response: web.StreamResponse, data: bytes) -> None:
        """Write body bytes, at the registry's speed."""
        step = 64 * 1024
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            if self.bytes_per_second:
                await asyncio.sleep(len(piece) / self.bytes_per_second)
            try:
                await response.write(piece)
            except ConnectionError:
                return  # the other side has hung up, which it may
            self.body_bytes += len(piece)


async def serve(request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
    """The right answer."""
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    if request.method != "HEAD":
        await registry.send(response, answer.body)
    return response


def _split(path: str) -> tuple[str, str, str]:
    parts = path.split("/")
    at = next((i for i, part in enumerate(parts) if i and part in ("manifests", "blobs", "tags", "referrers")), 1)
    return "/".join(parts[:at]), "/", "/".join(parts[at:])


def _ranged(request: web.Request, data: bytes, headers: dict[str, str]) -> Answer:
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    wanted = request.headers.get("Range", "")
    if not wanted.startswith("bytes="):
        return Answer(200, headers, data)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, stop = int(first), min(len(data), int(last) + 1) if last else len(data)
    if start >= len(data):
        return Answer(416, {"Content-Range": f"bytes */{len(data)}"})
    return Answer(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop])


def _error(status: int, code: str) -> Answer:
    body = json.dumps({"errors": [{"code": code, "message": "the fake says so"}]}).encode()
    return Answer(status, {"Content-Type": "application/json"}, body)


def _unauthorized(challenge: str) -> web.Response:
    return web.json_response(
        {"errors": [{"code": "UNAUTHORIZED"}]}, status=401, headers={"WWW-Authenticate": challenge}
    )


def _descriptor(digest: str, size: int, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}
