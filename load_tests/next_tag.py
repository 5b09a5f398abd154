"""The demo's next tag, as people build one: a package and the program change, what is below stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from build_image import PACKAGES, build

NEXT_PACKAGES = (PACKAGES[0], "transformers==5.23.0")
CHANGED_LAYERS = 2  # of the demo's image: what is neither CUDA nor PyTorch, and the program


def next_demo(cache: Path, first: Path) -> Path:
    """An OCI layout with the lower layers of ``first`` as they are, and the upper ones of another build on them."""
    rebuilt = build(cache, packages=NEXT_PACKAGES, tag="v2")
    target = cache / f"next-{first.name}-{rebuilt.name}"
    if (target / "index.json").exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True)
    (manifest, config), (upper, upper_config) = _documents(first), _documents(rebuilt)
    keep = len(manifest["layers"]) - CHANGED_LAYERS
    manifest["layers"][keep:] = upper["layers"][-CHANGED_LAYERS:]
    config["rootfs"]["diff_ids"][keep:] = upper_config["rootfs"]["diff_ids"][-CHANGED_LAYERS:]
    for layer in manifest["layers"]:
        name = layer["digest"].removeprefix("sha256:")
        source = next(at for at in (first, rebuilt) if (at / "blobs/sha256" / name).exists())
        os.link(source / "blobs/sha256" / name, blobs / name)
    manifest["config"] |= _put(blobs, config)
    entry = {"mediaType": manifest["mediaType"], **_put(blobs, manifest)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "v2"}
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return target


def _documents(layout: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and config."""

    def blob(descriptor: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads((layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()))

    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    manifest = blob(entry)
    return manifest, blob(manifest["config"])


def _put(blobs: Path, document: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(document, sort_keys=True).encode()
    digest = hashlib.sha256(body).hexdigest()
    (blobs / digest).write_bytes(body)
    return {"digest": f"sha256:{digest}", "size": len(body)}
