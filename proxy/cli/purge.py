"""``fastpull-proxy purge``: make the running proxy forget an image or a tag."""

from __future__ import annotations

import sys

from fastpull.proxy.api.messages import Purged
from fastpull.proxy.cli.amounts import bytes_text
from fastpull.proxy.cli.connection import ProxyConnection
from fastpull.proxy.cli.status import write_json


def purge(proxy: ProxyConnection, image: str, *, tag_only: bool, as_json: bool) -> int:
    gone = proxy.delete("/v1/tags" if tag_only else "/v1/images", Purged, ref=image)
    if as_json:
        write_json(gone)
    elif tag_only:
        sys.stdout.write(f"{gone.image}: forgotten, the next pull asks the registry\n")
    else:
        sys.stdout.write(
            f"{gone.image}: {gone.images} images, {gone.layers} layers, "
            f"{bytes_text(gone.chunk_bytes)} of chunks and {bytes_text(gone.blob_bytes)} of blobs removed\n"
        )
    return 0
