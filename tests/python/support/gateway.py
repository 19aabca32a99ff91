"""A gateway of one's own: the real binary on free ports of the loopback interface."""

import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile

from . import keys

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
START_SECONDS_MAX = 30


def binary():
    """RINGPOST_BINARY, or else the newest that was built in the repository's `target`."""
    named = os.environ.get("RINGPOST_BINARY")
    if named:
        return named
    built = [REPOSITORY / "target" / profile / "ringpost" for profile in ("release", "debug")]
    built = [path for path in built if path.exists()]
    if not built:
        raise FileNotFoundError("no gateway: run `cargo build`, or set RINGPOST_BINARY")
    return str(max(built, key=lambda path: path.stat().st_mtime))


class Place:
    """A directory with everything a configuration names: certificate, key set, store."""

    def __init__(self):
        self._directory = tempfile.TemporaryDirectory(prefix="ringpost-python-")
        self.path = pathlib.Path(self._directory.name)
        keys.make_certificate(self.path)
        self.issuer = keys.Issuer(self.path)
        (self.path / "jwks.json").write_text(json.dumps({"keys": [self.issuer.jwk()]}))

    def configuration(self, *, limits=(), drain=(), name="ringpost.toml", **changes):
        """Writes a configuration and returns its path; `changes` are top-level keys."""
        top = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "data_dir": "store"}
        certificate = changes.pop("certificate_path", "cert.pem")
        key_path = changes.pop("key_path", "key.pem")
        jwks = changes.pop("jwks_path", "jwks.json")
        lines = [f"{key} = {json.dumps(value)}" for key, value in {**top, **changes}.items()]
        lines += ["[tls]", f'certificate_path = "{certificate}"', f'key_path = "{key_path}"']
        lines += ["[auth]", f'jwks_path = "{jwks}"']
        for section, values in (("limits", limits), ("drain", drain)):
            lines += [f"[{section}]", *(f"{key} = {value}" for key, value in dict(values).items())]
        path = self.path / name
        path.write_text("\n".join(lines) + "\n")
        return path

    def close(self):
        self._directory.cleanup()


class Gateway:
    """A gateway that serves until `stop`."""

    def __init__(self, *arguments, preexec=None):
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [binary(), *map(str, arguments)],
            preexec_fn=preexec,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        first = self._process.stdout.readline()
        match = re.fullmatch(r"listening on (.+):(\d+), admin on (\S+)\n", first)
        if match is None:
            self._log.seek(0)
            errors = self._log.read()
            self.kill()
            raise RuntimeError(f"no gateway: {first!r} {errors}")
        self.host, self.port, self.admin = match[1], int(match[2]), match[3]

    def stop(self):
        """Drains; returns the exit code."""
        self.terminate()
        return self._end()

    def terminate(self):
        """Begins to drain."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self):
        """As a crash would."""
        self._process.kill()
        return self._end()

    def _end(self):
        code = self._process.wait(START_SECONDS_MAX)
        self._process.stdout.close()
        self._log.close()
        return code
