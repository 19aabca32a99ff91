"""What keeps a gateway from starting: the exit code, and a message that names the fix."""

import errno
import pathlib
import resource
import shutil
import socket
import subprocess
import tempfile
import unittest

from support import keys, sandbox
from support.gateway import Gateway, Place, binary

CONFIGURATION, HOST = 2, 1
BLOCKED = (
    "io_uring is blocked for this process",
    "fix: ",
    "tuning/seccomp.json (--security-opt seccomp=...)",
)
OPEN_FILES = "fix: raise the hard limit: LimitNOFILE= in the service, or `ulimit -Hn`"


class Refusals(unittest.TestCase):
    def setUp(self):
        self.place = Place()
        self.addCleanup(self.place.close)

    def refused(self, exit_code, *words, preexec=None, **configuration):
        """The gateway does not start, and says all the words."""
        config = self.place.configuration(name="refused.toml", **configuration)
        done = subprocess.run(
            [binary(), "serve", "--config", config],
            preexec_fn=preexec,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        self.assertEqual((done.returncode, done.stdout), (exit_code, ""), done.stderr)
        for word in ("error: ", "fix: ", *words):
            self.assertIn(word, done.stderr)
        self.assertNotIn("panicked", done.stderr)

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = "%s:%d" % taken.getsockname()
            fix = "fix: stop what listens there, or set %s to another address"
            self.refused(HOST, address, "in use", fix % "listen", listen=address)
            self.refused(HOST, address, "in use", fix % "admin_listen", admin_listen=address)

    def test_data_directory_locked(self):
        gateway = Gateway("serve", "--config", self.place.configuration())
        self.addCleanup(gateway.stop)
        store = str(self.place.path / "store")
        fix = "fix: stop the other process, or give this one a data_dir of its own"
        self.refused(HOST, store, "is in use by another gateway", fix)

    def test_certificate_missing(self):
        fix = "fix: point tls.certificate_path at a file that this user can read"
        self.refused(CONFIGURATION, "none.pem", fix, certificate_path="none.pem")
        fix = "fix: point tls.key_path at a file that this user can read"
        self.refused(CONFIGURATION, "none.pem", fix, key_path="none.pem")

    def test_certificate_not_matching_its_key(self):
        with tempfile.TemporaryDirectory() as other:
            keys.make_certificate(other)
            shutil.copy(pathlib.Path(other) / "key.pem", self.place.path / "other-key.pem")
        fix = "fix: use the key that the certificate was issued for"
        words = ("other-key.pem does not belong to the certificate", "cert.pem", fix)
        self.refused(CONFIGURATION, *words, key_path="other-key.pem")

    def test_io_uring_refused(self):
        for call in (
            sandbox.IO_URING_SETUP,
            sandbox.IO_URING_REGISTER,
            sandbox.IO_URING_ENTER,
        ):
            with self.subTest(call=call):
                denied = sandbox.deny_syscall(call, errno.EPERM)
                self.refused(HOST, *BLOCKED, preexec=denied)
        missing = sandbox.deny_syscall(sandbox.IO_URING_SETUP, errno.ENOSYS)
        words = ("this kernel has no io_uring", "fix: ", "Linux 6.1")
        self.refused(HOST, *words, preexec=missing)

    def test_open_files_too_low(self):
        for hard in (4, 16, 200):
            with self.subTest(hard=hard):
                few = sandbox.limit_open_files(hard, hard)
                self.refused(HOST, f"only {hard} files may be open", OPEN_FILES, preexec=few)

    def test_a_low_soft_limit_of_open_files_is_raised(self):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        config = self.place.configuration()
        few = sandbox.limit_open_files(4, hard)
        gateway = Gateway("serve", "--config", config, preexec=few)
        self.assertEqual(gateway.stop(), 0)

    def test_disk_full(self):
        with SmallDisk() as disk:
            disk.fill()
            data_dir = str(disk.path / "data")
            words = (data_dir, "No space left on device", "fix: free disk space")
            self.refused(HOST, *words, data_dir=data_dir)

    def test_a_gateway_whose_disk_is_full_can_be_stopped(self):
        with SmallDisk() as disk:
            # Too small for a segment, so it is full when the gateway serves.
            config = self.place.configuration(
                data_dir=str(disk.path / "data"), drain={"drain_ms_max": 500}
            )
            gateway = Gateway("serve", "--config", config)
            self.assertEqual(gateway.stop(), 0)

    def test_disk_read_only(self):
        with SmallDisk() as disk:
            disk.remount_read_only()
            data_dir = str(disk.path / "data")
            words = (data_dir, "Read-only file system", "fix: ", "writable")
            self.refused(HOST, *words, data_dir=data_dir)


class SmallDisk:
    """An ext4 of 4 MiB in a file, mounted while the block runs. Needs root."""

    def __enter__(self):
        self._directory = tempfile.TemporaryDirectory(prefix="ringpost-disk-")
        directory = pathlib.Path(self._directory.name)
        self.path = directory / "mounted"
        self.path.mkdir()
        image = directory / "image"
        image.write_bytes(bytes(4 << 20))
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, self.path], check=True)
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", self.path], check=True)
        self._directory.cleanup()

    def fill(self):
        with open(self.path / "ballast", "wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def remount_read_only(self):
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)


if __name__ == "__main__":
    unittest.main()
