"""What can go wrong on a node. Every error says what is true and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence


class NodeError(Exception):
    """Base of everything this package raises on purpose. ``remedy`` is a sentence for the operator."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


# -- the proxy ---------------------------------------------------------------------------------------


class ProxyError(NodeError):
    """A request to a proxy did not give what was asked for. Trying again, or elsewhere, may help."""


class ProxyUnreachableError(ProxyError):
    """No proxy answers."""

    def __init__(self, urls: Sequence[str], reason: str) -> None:
        super().__init__(
            f"no proxy answers at {', '.join(urls)}: {reason}",
            remedy="check that fastpull-proxy serve runs and that `proxies` in the settings names it",
        )
        self.urls = tuple(urls)
        self.reason = reason


class ProxyAnswerError(ProxyError):
    """A proxy answered with an error status."""

    def __init__(self, url: str, status: int, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{url} answered {status}: {message}", remedy=remedy)
        self.url = url
        self.status = status
        self.message = message


class ProxyProtocolError(ProxyError):
    """A proxy's answer was cut, stalled, or is not what this version understands."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"bad answer from {url}: {reason}")
        self.url = url
        self.reason = reason


class ChunkUnavailableError(ProxyError):
    """A chunk could not be had within ``fetch.retry_seconds``; only the read that needed it fails."""

    def __init__(self, chunk: bytes, seconds: float, reason: str) -> None:
        super().__init__(f"chunk {chunk.hex()[:12]} could not be fetched within {seconds:.0f} s: {reason}")
        self.chunk = chunk
        self.reason = reason


# -- chains ------------------------------------------------------------------------------------------


class ChainError(NodeError):
    """A chain can not be mounted, or not be unmounted."""

    def __init__(self, chain: object, message: str, *, remedy: str = "") -> None:
        super().__init__(f"chain {str(chain)[:19]}: {message}", remedy=remedy)
        self.chain = chain


class ChainUnknownError(ChainError):
    """No proxy knows the chain."""

    def __init__(self, chain: object) -> None:
        super().__init__(
            chain,
            "no proxy knows it",
            remedy="pull the image through the proxy, or run fastpull-proxy warm IMAGE",
        )


class ChainNotReadyError(ChainError):
    """The proxy is still indexing the chain's layers."""

    def __init__(self, chain: object) -> None:
        super().__init__(chain, "the proxy is still indexing its layers", remedy="try again in a moment")


class ChainFailedError(ChainError):
    """The proxy can not serve the chain lazily."""

    def __init__(self, chain: object, reason: str) -> None:
        super().__init__(chain, f"it can not be served lazily: {reason}", remedy="pull the image as always")
        self.reason = reason


class ChainDamagedError(ChainError):
    """The chain's bootstrap or chunk map does not have the digest that was promised."""

    def __init__(self, chain: object, reason: str) -> None:
        super().__init__(chain, reason, remedy="mount it again: the files are then fetched anew")


class ChainMountError(ChainError):
    """The kernel refused to mount or unmount the chain."""


class ChainInUseError(ChainError):
    """Somebody still uses the chain's files."""


# -- the program -------------------------------------------------------------------------------------


class StartUnknownError(NodeError):
    """There is no record of a start to report on."""

    def __init__(self, message: str) -> None:
        super().__init__(message, remedy="start a container from the image, then ask again; or name an image or chain")


class DaemonError(NodeError):
    """The node daemon can not be started or reached, or refused a request."""


class ImageNotFoundError(NodeError):
    """The proxy can not resolve or prepare an image."""
