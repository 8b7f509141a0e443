"""A certificate authority of the tests' own, and certificates that it signs, as PEM files."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_VALID = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    """Where a certificate, its key, and both in one file lie."""

    certificate: Path
    key: Path
    both: Path


class CertificateAuthority:
    """Signs certificates for 127.0.0.1.

    Parameters
    ----------
    folder : Path
        Where the files go; the authority's own certificate is ``<name>.pem`` there.
    name : str
        Its common name.
    """

    def __init__(self, folder: Path, name: str = "tests-ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._name = _common_name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        built = _builder(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(_pem(built.sign(self._key, hashes.SHA256())))

    def issue(self, name: str, key_password: str | None = None) -> Certificate:
        """Return a new certificate of ``CN=name``, with an encrypted key if there is a password."""
        key = ec.generate_private_key(ec.SECP256R1())
        built = _builder(_common_name(name), self._name, key).add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if key_password is not None:
            encryption = serialization.BestAvailableEncryption(key_password.encode())
        files = Certificate(*(self._folder / f"{name}.{kind}" for kind in ("crt", "key", "pem")))
        files.certificate.write_bytes(_pem(built.sign(self._key, hashes.SHA256())))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
            )
        )
        files.both.write_bytes(files.key.read_bytes() + files.certificate.read_bytes())
        return files


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
