"""TLS for whoever asks, and with a CA only for those whom it knows."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fastpull.config.proxy import ListenSettings
from fastpull.proxy.server import ListenError, tls_context

Key = ec.EllipticCurvePrivateKey


class Authority:
    """A CA of the test, in ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        self.ca = self._write("ca.crt", self._sign(self._name, self._key, is_ca=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._write(f"{name}.crt", self._sign(subject, key))
        key_path = self.root / f"{name}.key"
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate, key_path

    def _sign(self, subject: x509.Name, key: Key, *, is_ca: bool = False) -> x509.Certificate:
        import ipaddress

        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )

    def _write(self, name: str, certificate: x509.Certificate) -> Path:
        path = self.root / name
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def status_over(settings: ListenSettings, client: ssl.SSLContext) -> int:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls_context(settings)).start()
        connector = aiohttp.TCPConnector(ssl=client)
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get(f"https://127.0.0.1:{runner.addresses[0][1]}/") as answer:
                return answer.status
    finally:
        await runner.cleanup()


async def test_a_certificate_makes_it_https(authority: Authority) -> None:
    certificate, key = authority.issue("proxy")
    settings = ListenSettings(tls_certificate=certificate, tls_key=key)

    assert await status_over(settings, ssl.create_default_context(cafile=str(authority.ca))) == 200


async def test_with_a_client_ca_only_its_clients_get_in(authority: Authority) -> None:
    certificate, key = authority.issue("proxy")
    settings = ListenSettings(tls_certificate=certificate, tls_key=key, tls_client_ca=authority.ca)
    stranger = ssl.create_default_context(cafile=str(authority.ca))
    node = ssl.create_default_context(cafile=str(authority.ca))
    node.load_cert_chain(*authority.issue("node"))

    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await status_over(settings, stranger)
    assert await status_over(settings, node) == 200


def test_without_a_certificate_there_is_no_tls() -> None:
    assert tls_context(ListenSettings()) is None


@pytest.mark.parametrize(
    "settings",
    [
        ListenSettings(tls_certificate=Path("/nonexistent.crt")),
        ListenSettings(tls_client_ca=Path("/nonexistent.crt")),
    ],
)
def test_tls_files_that_can_not_be_used_are_told_with_what_to_do(settings: ListenSettings) -> None:
    with pytest.raises(ListenError) as failure:
        tls_context(settings)

    assert "tls_certificate" in failure.value.remedy
