"""Blobs over TLS, where nothing can be sent without copying."""

import datetime
import random
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fakes.mirror import running_mirror, settings_for, until
from fakes.registry import FakeRegistry

from fastpull.cache.digest import Digest

BLOB = random.Random(31).randbytes(1_500_001)


def server_context(root: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = root / "server.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_cold_and_complete_blobs_over_tls(tmp_path: Path) -> None:
    """The same bytes, whole and in ranges."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        path = f"app/blobs/{digest}?ns=r.test"
        settings = settings_for(tmp_path, {"r.test": registry}, range_bytes=256 * 1024)
        async with running_mirror(settings, tls=server_context(tmp_path)) as mirror:
            for _ in range(2):
                assert (await mirror.get(path, ssl=False)).body == BLOB
                got = await mirror.get(path, ssl=False, headers={"Range": "bytes=100000-900000"})
                assert (got.status, got.body) == (206, BLOB[100000:900001])
                await until(lambda: mirror.mirror.blobs.has(Digest.parse(digest)))
