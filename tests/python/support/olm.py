"""X3DH and the Double Ratchet from the packages `x3dh` and `doubleratchet`, which nobody here wrote,
set up as client/src/e2ee describes: the names of the key derivations, and messages as Olm's."""

import asyncio
import struct

import doubleratchet
import x3dh
from cryptography.hazmat.primitives import hashes, hmac, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from doubleratchet.recommended import HashFunction, diffie_hellman_ratchet_curve25519
from doubleratchet.recommended import kdf_hkdf, kdf_separate_hmacs

SKIPPED_MAX = 2000
FIRST, NORMAL = 0x11, 0x12


def hkdf(salt, material, info, length):
    return HKDF(hashes.SHA256(), length, salt, info).derive(material)


def text(value):
    return bytes([len(value)]) + value


def context(initiator, responder):
    """Both are (user, device)."""
    return b"Ringpost pair 1\0" + b"".join(text(part) for part in (*initiator, *responder))


class KeyAgreement(x3dh.BaseState):
    @staticmethod
    def _encode_public_key(key_format, pub):
        # What is signed is a prekey; identities go into the binding as they are.
        if key_format is x3dh.IdentityKeyFormat.CURVE_25519:
            return b"Ringpost signed prekey 1\0" + pub
        return pub


class RootKdf(kdf_hkdf.KDF):
    @staticmethod
    def _get_hash_function():
        return HashFunction.SHA_256

    @staticmethod
    def _get_info():
        return b"OLM_RATCHET"


class ChainKdf(kdf_separate_hmacs.KDF):
    @staticmethod
    def _get_hash_function():
        return HashFunction.SHA_256


class Aead(doubleratchet.AEAD):
    """AES-256-CBC and a truncated HMAC over the whole message; the header is the associated data."""

    @staticmethod
    def _keys(key):
        expanded = hkdf(b"\0", key, b"OLM_KEYS", 80)
        return Cipher(algorithms.AES(expanded[:32]), modes.CBC(expanded[64:])), expanded[32:64]

    @staticmethod
    def _mac(key, data):
        mac = hmac.HMAC(key, hashes.SHA256())
        mac.update(data)
        return mac.finalize()[:8]

    @classmethod
    async def encrypt(cls, plaintext, key, associated_data):
        cipher, mac_key = cls._keys(key)
        padder = padding.PKCS7(128).padder()
        encryptor = cipher.encryptor()
        body = encryptor.update(padder.update(plaintext) + padder.finalize()) + encryptor.finalize()
        message = associated_data + b"\x22" + varint(len(body)) + body
        return message + cls._mac(mac_key, message)

    @classmethod
    async def decrypt(cls, ciphertext, key, associated_data):
        cipher, mac_key = cls._keys(key)
        message, mac = ciphertext[:-8], ciphertext[-8:]
        if cls._mac(mac_key, message) != mac or not message.startswith(associated_data + b"\x22"):
            raise doubleratchet.AuthenticationFailedException("MAC")
        _, start = unvarint(message, len(associated_data) + 1)
        decryptor, unpadder = cipher.decryptor(), padding.PKCS7(128).unpadder()
        body = unpadder.update(decryptor.update(message[start:]) + decryptor.finalize())
        return body + unpadder.finalize()


class Ratchet(doubleratchet.DoubleRatchet):
    @staticmethod
    def _build_associated_data(associated_data, header):
        return b"\x03\x0a\x20" + header.ratchet_pub + b"\x10" + varint(header.sending_chain_length)


PARAMETERS = {
    "diffie_hellman_ratchet_class": diffie_hellman_ratchet_curve25519.DiffieHellmanRatchet,
    "root_chain_kdf": RootKdf,
    "message_chain_kdf": ChainKdf,
    "message_chain_constant": b"\x02\x01",
    "dos_protection_threshold": SKIPPED_MAX,
    "max_num_skipped_message_keys": SKIPPED_MAX,
    "aead": Aead,
}


class Device:
    """The phone of bob; its only partner is the phone of alice."""

    ALICE, BOB = (b"alice", b"phone"), (b"bob", b"phone")

    def __init__(self):
        self.keys = KeyAgreement.create(
            x3dh.IdentityKeyFormat.ED_25519, x3dh.HashFunction.SHA_256, b"Ringpost X3DH 1"
        )
        self.keys.generate_pre_keys(5)
        self.one_time = sorted(self.keys.bundle.pre_keys)
        self.ratchet = None
        self.tag = self.opening = None
        # Olm does not send the length of the previous chain; the last index seen stands for it.
        self.chain_lengths = {}
        self.chain = None

    @property
    def identity(self):
        return self.keys.bundle.identity_key

    def bundle(self, one_time):
        keys = self.keys.bundle
        end = b"\1" + struct.pack(">I", 1) + self.one_time[0] if one_time else b"\0"
        signed = struct.pack(">I", 7) + keys.signed_pre_key + keys.signed_pre_key_sig
        return b"\1" + keys.identity_key + signed + end

    def begin(self, bundle):
        """Takes Alice's keys; the session begins with the first message."""
        has_one_time = bundle[133] == 1
        identity, signed_id = bundle[1:33], bundle[33:37]
        one_time_id = bundle[134:138] if has_one_time else bytes(4)
        keys = x3dh.Bundle(
            identity, bundle[37:69], bundle[69:133],
            frozenset([bundle[138:170]] if has_one_time else []),
        )
        secret, _, header = asyncio.run(
            self.keys.get_shared_secret_active(keys, require_pre_key=False)
        )
        self.root = hkdf(
            secret, self.identity + identity + context(self.BOB, self.ALICE),
            b"Ringpost root 1", 32,
        )
        self.signed = header.signed_pre_key
        self.opening = header.identity_key + header.ephemeral_key + signed_id + one_time_id
        self.tag = self.session_tag(self.opening, identity)

    @staticmethod
    def session_tag(opening, responder):
        digest = hashes.Hash(hashes.SHA256())
        digest.update(b"Ringpost session 1\0" + opening + responder)
        return digest.finalize()[:8]

    def encrypt(self, plaintext):
        if self.ratchet is None:
            self.ratchet, sent = asyncio.run(Ratchet.encrypt_initial_message(
                shared_secret=self.root, recipient_ratchet_pub=self.signed, message=plaintext,
                associated_data=b"", **PARAMETERS,
            ))
        else:
            sent = asyncio.run(self.ratchet.encrypt_message(plaintext, b""))
        start = bytes([FIRST]) + self.opening if self.opening else bytes([NORMAL]) + self.tag
        return start + sent.ciphertext

    def decrypt(self, envelope):
        if envelope[0] == FIRST:
            opening, message = envelope[1:73], envelope[73:]
        else:
            assert envelope[0] == NORMAL and envelope[1:9] == self.tag
            opening, message = None, envelope[9:]
        sent = doubleratchet.EncryptedMessage(self.header(message), message)
        if self.ratchet is None:
            plaintext = self.accept(opening, sent)
        else:
            plaintext = asyncio.run(self.ratchet.decrypt_message(sent, b""))
        self.opening = None
        return plaintext

    def accept(self, opening, sent):
        identity, ephemeral = opening[:32], opening[32:64]
        one_time = self.one_time[0] if opening[68:72] != bytes(4) else None
        header = x3dh.Header(
            identity, ephemeral, self.keys.bundle.signed_pre_key, one_time
        )
        secret, _, signed = asyncio.run(
            self.keys.get_shared_secret_passive(header, require_pre_key=False)
        )
        root = hkdf(
            secret, identity + self.identity + context(self.ALICE, self.BOB),
            b"Ringpost root 1", 32,
        )
        self.ratchet, plaintext = asyncio.run(Ratchet.decrypt_initial_message(
            shared_secret=root, own_ratchet_priv=signed.priv, message=sent,
            associated_data=b"", **PARAMETERS,
        ))
        self.tag = self.session_tag(opening, self.identity)
        return plaintext

    def sees(self, envelope):
        """Tells how long the other side's chains are; not part of a message of Olm."""
        message = envelope[73:] if envelope[0] == FIRST else envelope[9:]
        key, (index, _) = message[3:35], unvarint(message, 36)
        if key not in self.chain_lengths:
            self.chain_lengths[key] = (0, self.chain)
            self.chain = key
        length, previous = self.chain_lengths[key]
        self.chain_lengths[key] = (max(length, index + 1), previous)

    def header(self, message):
        assert message[:3] == b"\x03\x0a\x20" and message[35] == 0x10
        key, (index, _) = message[3:35], unvarint(message, 36)
        _, previous = self.chain_lengths[key]
        before = self.chain_lengths[previous][0] if previous else 0
        return doubleratchet.Header(key, before, index)


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def unvarint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
