"""Certificates and keys for a Flower federation on one machine.

A federation between sites takes its server certificate from the organisation's own authority; every SuperNode makes its
key pair itself and sends only the public half to whoever registers it.
"""

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = datetime.timedelta(days=30)
# A server whose clock runs a little behind must not find the certificate of the future.
CLOCK_SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True)
class ServerCertificate:
    """Files of the SuperLink's TLS certificate.

    Attributes:
        authority: The certificate of the authority, PEM: the only file that clients need.
        certificate: The server's certificate, PEM, signed by the authority.
        private_key: The server's private key, PEM, readable by the owner only.
    """

    authority: Path
    certificate: Path
    private_key: Path


@dataclass(frozen=True)
class NodeKeys:
    """Files of one SuperNode's key pair in OpenSSH's format, as Flower reads them; ``private`` for the owner only."""

    private: Path
    public: Path


def issue_server_certificate(directory: Path) -> ServerCertificate:
    """Make an authority and a server certificate for ``localhost`` and ``127.0.0.1``, valid for 30 days.

    The authority's private key is never written: nothing else can be signed by it afterwards.

    Args:
        directory: Where the three files go; it exists.

    Returns:
        The paths of the files.
    """
    authority_key = ec.generate_private_key(ec.SECP384R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Loopback authority")])
    authority = (
        _unsigned(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .sign(authority_key, hashes.SHA384())
    )
    server_key = ec.generate_private_key(ec.SECP384R1())
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    server = (
        _unsigned(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]),
            authority_name,
            server_key.public_key(),
        )
        # Python and gRPC look at the alternative names alone, never at the common name.
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    files = ServerCertificate(directory / "ca.crt", directory / "server.pem", directory / "server.key")
    files.authority.write_bytes(authority.public_bytes(Encoding.PEM))
    files.certificate.write_bytes(server.public_bytes(Encoding.PEM))
    write_private(
        files.private_key,
        server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    return files


def make_node_keys(directory: Path, name: str) -> NodeKeys:
    """Make the key pair ``name`` and ``name.pub`` of a SuperNode, on the NIST curve P-384 that Flower asks for.

    Args:
        directory: Where both files go; it exists.
        name: The SuperNode's name.

    Returns:
        The paths of the files.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    files = NodeKeys(directory / name, directory / f"{name}.pub")
    write_private(files.private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    files.public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return files


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner may read, at no moment anyone else.

    Raises:
        FileExistsError: There is such a file: a key is never replaced.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _unsigned(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
