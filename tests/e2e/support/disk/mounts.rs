//! Mount points of this test run, and a small ext4 in a file.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use tempfile::TempDir;

/// A directory to mount on, named for this process.
pub fn mount_point() -> TempDir {
    static LEFTOVERS: Once = Once::new();
    LEFTOVERS.call_once(unmount_leftovers);
    let prefix = format!("{MOUNT_PREFIX}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().unwrap()
}

/// Fails with what to do about it.
pub fn require(path: &str, fix: &str) {
    assert!(Path::new(path).exists(), "this test needs {path}; {fix}");
}

/// Lazily: whoever still has a file open keeps it, nobody else sees it.
pub fn unmount(path: &Path) {
    let status = Command::new("umount").arg("--lazy").arg(path).status();
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        eprintln!("umount {}: {status:?}", path.display());
    }
}

/// What a run left behind that was killed before it could unmount.
fn unmount_leftovers() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let owner = Path::new(mount)
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(MOUNT_PREFIX)?.split('-').next());
        if let Some(owner) = owner
            && !Path::new("/proc").join(owner).exists()
        {
            unmount(Path::new(mount));
            // Empty now, unless something is mounted there twice.
            let _ = fs::remove_dir(mount);
        }
    }
}

/// An ext4 of its own on a loop device: a disk that can be full without harm to the real one.
pub struct SmallDisk {
    mount_point: TempDir,
    /// Holds the image; after the mount point, because fields drop in order.
    _image_directory: TempDir,
}

impl SmallDisk {
    /// Name of the file that [`Self::fill`] makes.
    pub const BALLAST: &str = "ballast";

    pub fn mount(size_bytes: u64) -> Self {
        require("/dev/loop-control", "load the kernel module: modprobe loop");
        let image_directory = tempfile::tempdir().unwrap();
        let image = image_directory.path().join("image");
        File::create(&image).unwrap().set_len(size_bytes).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image));
        let mount_point = mount_point();
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(mount_point.path()));
        Self { mount_point, _image_directory: image_directory }
    }

    pub fn path(&self) -> &Path {
        self.mount_point.path()
    }

    /// A directory on it that does not exist yet.
    pub fn data_dir(&self) -> PathBuf {
        self.path().join("store")
    }

    /// Takes all room that is left; gives the file that has it.
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join(Self::BALLAST);
        let mut ballast = File::create(&path).unwrap();
        // The last blocks go in small pieces.
        for piece_bytes in [1 << 20, 4096, 1] {
            let piece = vec![0xff; piece_bytes];
            while ballast.write_all(&piece).is_ok() {}
        }
        // Says that the disk is full, which is what was wanted.
        let _ = ballast.sync_all();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.mount_point.path());
    }
}

/// Fails with what the command said, or with the package that brings it.
fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; install the packages e2fsprogs and mount")
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} (this test needs root): {errors}");
}

const MOUNT_PREFIX: &str = "ringpost-mount-";
