"""Certificates and tokens, made with the `openssl` command."""

import base64
import hashlib
import hmac
import json
import pathlib
import subprocess
import tempfile
import time

AUDIENCE = "ringpost"


def openssl(*arguments, **options):
    return subprocess.run(
        ["openssl", *map(str, arguments)], check=True, capture_output=True, **options
    ).stdout


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def make_certificate(directory):
    """`ca.pem`, `cert.pem` and `key.pem` for localhost and 127.0.0.1."""
    directory = pathlib.Path(directory)
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        *("req", "-x509", *curve, "-days", "30", "-subj", "/CN=Ringpost test authority"),
        *("-keyout", directory / "ca-key.pem", "-out", directory / "ca.pem"),
        *("-addext", "keyUsage=critical,keyCertSign"),
    )
    openssl(
        *("req", "-x509", *curve, "-days", "30", "-subj", "/CN=Ringpost test gateway"),
        *("-CA", directory / "ca.pem", "-CAkey", directory / "ca-key.pem"),
        *("-keyout", directory / "key.pem", "-out", directory / "cert.pem"),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
    )


class Issuer:
    """An Ed25519 key that signs tokens."""

    def __init__(self, directory, kid="test-key"):
        self._key = pathlib.Path(directory) / f"{kid}-token.pem"
        self.kid = kid
        openssl("genpkey", "-algorithm", "ed25519", "-out", self._key)
        # The last 32 bytes of the DER form are the key itself.
        self.public_key = openssl("pkey", "-in", self._key, "-pubout", "-outform", "DER")[-32:]
        self.public_pem = openssl("pkey", "-in", self._key, "-pubout")

    def jwk(self):
        return {"kty": "OKP", "crv": "Ed25519", "x": base64url(self.public_key), "kid": self.kid}

    def token(self, user, device, *, header=(), claims=()):
        """A token that is right, except for what `header` and `claims` change (None removes)."""
        return _signed(self._head("EdDSA", header), _claims(user, device, claims), self._sign)

    def unsigned_token(self, user, device):
        """`alg: none` and no signature."""
        head = self._head("none", ())
        return _signed(head, _claims(user, device, ()), lambda text: b"")

    def confused_token(self, user, device, secret):
        """HS256 whose secret is something everybody knows."""
        head = self._head("HS256", ())
        mac = lambda text: hmac.new(secret, text, hashlib.sha256).digest()  # noqa: E731
        return _signed(head, _claims(user, device, ()), mac)

    def _head(self, algorithm, changes):
        return {"typ": "JWT", "alg": algorithm, "kid": self.kid, **dict(changes)}

    def _sign(self, text):
        with tempfile.NamedTemporaryFile() as file:
            file.write(text)
            file.flush()
            return openssl("pkeyutl", "-sign", "-rawin", "-inkey", self._key, "-in", file.name)


def _claims(user, device, changes):
    claims = {"sub": user, "device": device, "aud": AUDIENCE, "exp": int(time.time()) + 3600}
    return {name: value for name, value in {**claims, **dict(changes)}.items() if value is not None}


def _signed(head, claims, sign):
    parts = (base64url(json.dumps(part).encode()) for part in (head, claims))
    text = ".".join(parts)
    return f"{text}.{base64url(sign(text.encode()))}"
