"""Certificates and keys of a federation on one machine."""

import datetime
import ipaddress
import stat
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="cryptography comes with the flower extra")

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from examples.flower.loopback.certificates import issue_server_certificate, make_node_keys


def verify(server: Path, authority: Path, name: x509.GeneralName) -> None:
    store = Store([x509.load_pem_x509_certificate(authority.read_bytes())])
    verifier = PolicyBuilder().store(store).build_server_verifier(name)
    verifier.verify(x509.load_pem_x509_certificate(server.read_bytes()), [])


@pytest.mark.parametrize("name", [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
def test_the_server_is_who_it_says(tmp_path: Path, name: x509.GeneralName) -> None:
    files = issue_server_certificate(tmp_path)
    verify(files.certificate, files.authority, name)


def test_another_name_is_refused(tmp_path: Path) -> None:
    files = issue_server_certificate(tmp_path)
    with pytest.raises(VerificationError, match="subject"):
        verify(files.certificate, files.authority, x509.DNSName("example.org"))


def test_another_authority_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files, other = issue_server_certificate(tmp_path), issue_server_certificate(tmp_path / "other")
    with pytest.raises(VerificationError, match=r"issuer|signature|candidates"):
        verify(files.certificate, other.authority, x509.DNSName("localhost"))


def test_the_certificate_is_short_lived_and_belongs_to_the_private_key(tmp_path: Path) -> None:
    files = issue_server_certificate(tmp_path)
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    key = serialization.load_pem_private_key(files.private_key.read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    assert certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < datetime.timedelta(days=31)


def test_node_keys_are_pairs_and_unlike(tmp_path: Path) -> None:
    first, second = make_node_keys(tmp_path, "first"), make_node_keys(tmp_path, "second")
    private = serialization.load_ssh_private_key(first.private.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.public_key() == serialization.load_ssh_public_key(first.public.read_bytes())
    assert first.public.read_bytes() != second.public.read_bytes()


def test_private_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    server, node = issue_server_certificate(tmp_path), make_node_keys(tmp_path, "node")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (server.private_key, node.private)}
    assert modes == {0o600}
    # The authority's private key must not be anywhere.
    assert {path.name for path in tmp_path.iterdir()} == {"ca.crt", "server.pem", "server.key", "node", "node.pub"}


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    before = make_node_keys(tmp_path, "node").private.read_bytes()
    with pytest.raises(FileExistsError):
        make_node_keys(tmp_path, "node")
    assert (tmp_path / "node").read_bytes() == before
