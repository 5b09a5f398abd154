"""All parsers of the mirror, the errors that each may raise, and right input for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from yarl import URL

from fastpull.cache.digest import Digest
from fastpull.cache.errors import MalformedDigestError
from fastpull.proxy.errors import MalformedNameError, MirrorError, RangeNotSatisfiableError, UpstreamInvalidError
from fastpull.proxy.mirror.blob_request import read_answer
from fastpull.proxy.mirror.fast_lane import parse_simple_get
from fastpull.proxy.mirror.listings import next_query
from fastpull.proxy.mirror.manifest_types import decoded, manifest_type
from fastpull.proxy.mirror.naming import parse_target
from fastpull.proxy.ranges import ByteRange, parse_content_range, parse_range
from fastpull.proxy.references import Platform, parse_image, parse_manifest_reference
from fastpull.proxy.upstream.challenges import parse_challenges
from fastpull.proxy.upstream.error_detail import read_detail
from fastpull.proxy.upstream.realms import check_realm
from fastpull.proxy.upstream.redirects import follow, good_for_seconds
from fastpull.proxy.upstream.retry_after import parse_retry_after

HEX = "0123456789abcdef" * 4
_MANIFEST = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {}, "layers": []}
_REGISTRY = URL("https://registry.example.org/v2/a/blobs/x")


@dataclass(frozen=True)
class Parser:
    """``parse`` may raise ``errors`` and nothing else, whatever the text."""

    parse: Callable[[str], Any]
    errors: tuple[type[Exception], ...]
    corpus: Sequence[str]


def _range(text: str) -> None:
    requested = parse_range(text)
    if requested is not None:
        span = requested.resolve(1000)
        assert 0 <= span.start < span.stop <= 1000


def _manifest(text: str) -> None:
    data = text.encode(errors="surrogatepass")
    manifest_type(decoded(data, "gzip"), text[:80])


def _answer(text: str) -> None:
    status, _, rest = text.partition(" ")
    content_range, _, length = rest.partition("|")
    headers = {"Content-Range": content_range, "Content-Length": length}
    body = read_answer(206 if status == "206" else 200, headers, ByteRange(10, 20), 100)
    assert 0 <= body.start <= body.stop <= body.size == 100


PARSERS: dict[str, Parser] = {
    "image": Parser(
        parse_image,
        (MalformedNameError,),
        ["debian:12", f"ghcr.io/a/b:c@sha256:{HEX}", "localhost:5000/x", "[::1]:1/a"],
    ),
    "manifest reference": Parser(parse_manifest_reference, (MalformedNameError,), ["v1", f"sha256:{HEX}"]),
    "digest": Parser(Digest.parse, (MalformedDigestError,), [f"sha256:{HEX}"]),
    "platform": Parser(Platform.parse, (MalformedNameError,), ["linux/amd64", "linux/arm/v7"]),
    "path": Parser(
        lambda text: parse_target(text, None, "docker.io"),
        (MalformedNameError,),
        ["library/debian/manifests/12", f"ghcr.io/a/b/blobs/sha256:{HEX}", "a/tags/list", "localhost:5/a/referrers/x"],
    ),
    "namespace": Parser(
        lambda text: parse_target("a/b/manifests/x", text, "docker.io"), (MalformedNameError,), ["ghcr.io", "a.b:5000"]
    ),
    "range": Parser(_range, (RangeNotSatisfiableError,), ["bytes=0-", "bytes=5-10", "bytes=-5", "bytes=0-1,3-4"]),
    "content range": Parser(parse_content_range, (), ["bytes 0-9/100", "bytes */5", "bytes 0-9/*"]),
    "challenge": Parser(
        lambda text: parse_challenges([text]),
        (),
        ['Bearer realm="https://a.b/t",service="c, d",scope="x:y:pull"', "Basic realm=a, Negotiate ab==", 'B a="\\""'],
    ),
    "realm": Parser(
        lambda text: check_realm(text, _REGISTRY.origin(), ("auth.example.net",)),
        (MirrorError,),
        ["https://registry.example.org/token", "https://auth.example.net:1/t?a=b", "http://x/"],
    ),
    "location": Parser(
        lambda text: good_for_seconds(follow(_REGISTRY, text), 1e9),
        (MirrorError,),
        [
            "https://cdn.example/x?X-Amz-Date=20260301T115900Z&X-Amz-Expires=60",
            "/x?se=2026-03-01T12:00:00Z",
            "?Expires=1",
        ],
    ),
    "retry-after": Parser(parse_retry_after, (), ["5", "Fri, 31 Dec 1999 23:59:59 GMT"]),
    "manifest": Parser(
        _manifest,
        (UpstreamInvalidError,),
        [json.dumps(_MANIFEST), '{"schemaVersion":2,"manifests":[]}', "[[[[", "\x1f\x8b"],
    ),
    "error body": Parser(
        lambda text: read_detail(text.encode(errors="surrogatepass")), (), ['{"errors":[{"code":"A","message":"b"}]}']
    ),
    "blob answer": Parser(
        _answer, (UpstreamInvalidError,), ["206 bytes 10-19/100|10", "200 |100", "206 bytes 10-15/*|6"]
    ),
    "link": Parser(next_query, (), ['</v2/a/tags/list?n=5&last=x>; rel="next"', "<x>"]),
    "request": Parser(
        lambda text: parse_simple_get(text.encode("latin-1", errors="replace")),
        (),
        ["GET /v2/a/blobs/b?ns=c HTTP/1.1\r\nHost: x\r\nRange: bytes=0-5\r\nAccept: */*\r\n\r\n"],
    ),
}
