"""Names of images and platforms. Pure.

Grammar: distribution-spec, "Pulling manifests" (``<name>``, ``<reference>``); the short forms of
Docker Hub as the reference grammar of distribution/reference has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from fastpull.cache.digest import Digest
from fastpull.cache.errors import MalformedDigestError
from fastpull.proxy.errors import MalformedNameError

DOCKER_HUB = "docker.io"
_DOCKER_HUB_ALIASES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})

MAX_NAME = 255  # host and repository together; what distribution/reference enforces

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*"
    r"|\[[0-9a-fA-F:.]{2,45}\])(?::[0-9]{1,5})?"
)


def is_repository(text: str) -> bool:
    return len(text) <= MAX_NAME and _REPOSITORY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    return _TAG.fullmatch(text) is not None


def is_host(text: str) -> bool:
    return len(text) <= MAX_NAME and _HOST.fullmatch(text) is not None


def looks_like_host(component: str) -> bool:
    """Is the first component of a name a registry? Docker's rule: it holds a dot or a port, or is localhost."""
    return ("." in component or ":" in component or component == "localhost") and is_host(component)


def canonical_upstream(host: str) -> str:
    """Lower case, and one name for Docker Hub's many."""
    host = host.lower()
    return DOCKER_HUB if host in _DOCKER_HUB_ALIASES else host


def canonical_repository(upstream: str, repository: str) -> str:
    """Docker Hub's official images live under ``library/``."""
    return f"library/{repository}" if upstream == DOCKER_HUB and "/" not in repository else repository


def parse_manifest_reference(text: str) -> str | Digest:
    """A tag or a digest, as it stands behind ``/manifests/``. Raise ``MalformedNameError``."""
    if ":" in text:
        try:
            return Digest.parse(text)
        except MalformedDigestError as exc:
            raise MalformedNameError(str(exc)) from exc
    if not is_tag(text):
        raise MalformedNameError(f"{text[:140]!r} is no tag; expected up to 128 of letters, digits, '_', '.' and '-'")
    return text


@dataclass(frozen=True, slots=True)
class ImageReference:
    """A normalised image name. With both, the digest counts and the tag is for people."""

    upstream: str
    repository: str
    tag: str | None
    digest: Digest | None

    @property
    def reference(self) -> str | Digest:
        """What to ask the registry for."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.upstream}/{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


def parse_image(text: str, default_upstream: str = DOCKER_HUB) -> ImageReference:
    """Read an image name as ``docker pull`` does. Raise ``MalformedNameError``.

    Without tag and digest the tag is ``latest``. ``debian`` is ``docker.io/library/debian:latest``.
    """
    name, at, digest_text = text.strip().partition("@")
    try:
        digest = Digest.parse(digest_text) if at else None
    except MalformedDigestError as exc:
        raise MalformedNameError(f"image {text[:300]!r}: {exc}") from exc
    head, slash, rest = name.partition("/")
    if slash and looks_like_host(head):
        upstream, path = head, rest
    else:
        upstream, path = default_upstream, name
    upstream = canonical_upstream(upstream)
    path, colon, tag = path.partition(":")
    repository = canonical_repository(upstream, path)
    if not is_repository(repository) or len(upstream) + len(repository) >= MAX_NAME:
        raise MalformedNameError(
            f"image {text[:300]!r}: {path[:200]!r} is no repository; expected lower-case components between slashes"
        )
    if colon and not is_tag(tag):
        raise MalformedNameError(f"image {text[:300]!r}: {tag[:140]!r} is no tag")
    return ImageReference(upstream, repository, tag if colon else (None if digest else "latest"), digest)


_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_PLATFORM_PART = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Platform:
    """Operating system, architecture and variant, normalised as containerd's ``platforms`` does."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """``os/arch[/variant]``. Raise ``MalformedNameError``."""
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(_PLATFORM_PART.fullmatch(part) for part in parts):
            raise MalformedNameError(f"{text[:80]!r} is no platform; expected os/arch or os/arch/variant")
        return cls(*parts).normalised()

    def normalised(self) -> Self:
        os = self.os.lower()
        architecture, variant = self.architecture.lower(), self.variant.lower()
        architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
        variant = variant or implied
        if variant.isdigit():
            variant = f"v{variant}"
        if (architecture, variant) in {("arm64", "v8"), ("amd64", "v1")}:
            variant = ""
        elif (architecture, variant) == ("arm", ""):
            variant = "v7"
        return replace(self, os="darwin" if os == "macos" else os, architecture=architecture, variant=variant)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def runnable_on(platform: Platform) -> Iterator[Platform]:
    """What a machine can run, best first (containerd platforms, ``platformVector``)."""
    wanted = platform.normalised()
    yield wanted
    match wanted.architecture:
        case "amd64":
            for version in range(_version(wanted.variant) - 1, 0, -1):
                yield Platform(wanted.os, "amd64", f"v{version}").normalised()
            yield Platform(wanted.os, "386")
        case "arm":
            for version in range(_version(wanted.variant) - 1, 4, -1):
                yield Platform(wanted.os, "arm", f"v{version}")
        case "arm64":
            if wanted.variant:  # v9 runs v8, whose variant is left out
                yield Platform(wanted.os, "arm64")
            yield from runnable_on(Platform(wanted.os, "arm", "v8"))
        case _:
            return


def choose_platform(wanted: Platform, offered: Sequence[Platform]) -> int | None:
    """The place of the best match in ``offered``, as containerd's ``Only`` picks it; ``None`` = nothing fits."""
    normalised = [platform.normalised() for platform in offered]
    return next((normalised.index(candidate) for candidate in runnable_on(wanted) if candidate in normalised), None)


def _version(variant: str) -> int:
    digits = variant.removeprefix("v")
    return min(int(digits), 64) if digits.isascii() and digits.isdigit() else 0
