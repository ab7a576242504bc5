"""The keys of one client in one round, and what two clients derive from them.

Keys are agreed by X25519, derived by HKDF-SHA256, and spread by ChaCha20, all from the package `cryptography`. Each use
has a label of its own, into which the digest of the roster goes: clients that were told different rosters derive
different keys.
"""

import hashlib
import secrets
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jaxtyping import UInt64

from florist.errors import BrokenSharesError, RosterError

KEY_BYTES = 32
_NONCE = bytes(12)
"""Each sealing key seals one message, and needs no nonce that differs."""


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """What a client publishes at the beginning of a round.

    Attributes:
        sealing: the X25519 key by which others seal shares for it.
        masking: the X25519 key from which it and another derive the mask that they have in common.
        commitment: the SHA-256 of its self mask's seed, by which the server sees whether shares gave the right one.
    """

    sealing: bytes
    masking: bytes
    commitment: bytes

    def __post_init__(self) -> None:
        """Check the lengths.

        Raises:
            RosterError: one is another.
        """
        if {len(self.sealing), len(self.masking), len(self.commitment)} != {KEY_BYTES}:
            raise RosterError(f"expected public keys of {KEY_BYTES} bytes each; leave the client out of the round")


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What a client draws for one round and shows to nobody.

    Attributes:
        sealing: the private key to `PublicKeys.sealing`.
        masking: the private key to `PublicKeys.masking`.
        seed: the seed of its self mask.
    """

    sealing: bytes
    masking: bytes
    seed: bytes

    @classmethod
    def drawn(cls) -> "Secrets":
        """New secrets, from the system's source of randomness."""
        return cls(*(secrets.token_bytes(KEY_BYTES) for _ in range(3)))

    @property
    def public(self) -> PublicKeys:
        """The keys to publish."""
        return PublicKeys(public_key(self.sealing), public_key(self.masking), commitment(self.seed))


def require_usable(keys: PublicKeys) -> None:
    """Check what somebody published, so that nobody else fails over it.

    Raises:
        RosterError: both keys are the same, or one gives everybody the same secret.

    Cost: two key agreements, 0.2 ms.
    """
    if keys.sealing == keys.masking:
        raise RosterError("expected two keys that differ, and they are the same; the client is left out of the round")
    for key in (keys.sealing, keys.masking):
        agreed_key(secrets.token_bytes(KEY_BYTES), key, b"trial")


def public_key(private: bytes) -> bytes:
    """The public key to an X25519 private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def commitment(seed: bytes) -> bytes:
    """What is published of a seed."""
    return hashlib.sha256(b"florist commitment " + seed).digest()


def agreed_key(private: bytes, public: bytes, label: bytes) -> bytes:
    """A key that the owner of one private key and the owner of another both derive.

    Args:
        private: the own private key.
        public: the other's public key.
        label: what the key is for; both give the same.

    Raises:
        RosterError: the public key is one of those that give everybody the same secret.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise RosterError(
            "expected public keys of X25519, and one gives a secret that everybody knows; the round is left out"
        ) from error
    return derived_key(secret, label)


def derived_key(secret: bytes, label: bytes) -> bytes:
    """A key for one purpose."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"florist " + label).derive(secret)


def sealed(key: bytes, content: bytes, belongs_to: bytes) -> bytes:
    """Content that only the other owner of a key can read, and nobody can change; 16 bytes longer.

    Args:
        key: an agreed key that seals nothing else.
        content: what to seal.
        belongs_to: what the reader has to know as well, which does not travel.
    """
    return ChaCha20Poly1305(key).encrypt(_NONCE, content, belongs_to)


def opened(key: bytes, content: bytes, belongs_to: bytes) -> bytes:
    """What was sealed.

    Raises:
        BrokenSharesError: it was changed, or sealed by another key or for another purpose.
    """
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, content, belongs_to)
    except InvalidTag as error:
        raise BrokenSharesError(
            "expected sealed shares of this round and roster, and these cannot be opened: they were changed on the "
            "way, or the server gave their sender another roster; the round is left out"
        ) from error


def keystream(key: bytes, words: int) -> UInt64[np.ndarray, " words"]:
    """So many random words of 64 bits, of which fewer are the first.

    Args:
        key: 32 bytes that are used for nothing else.
        words: how many.

    Cost: 1 to 2 ns a word.
    """
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * words))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64, copy=False)
