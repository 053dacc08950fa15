//! Memory files that only their maker can write.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What every arena segment carries: its size is fixed, no new writable mapping can be made, and
/// no seal can be added any more (Linux 5.1).
pub(crate) const SEALS: libc::c_int =
    libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;

/// `memfd_create`: a file of `len` bytes in memory, its pages allocated now, so that a full system
/// is an error here and never a fault later.
pub(crate) fn create(name: &CStr, len: u64) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // Known since Linux 6.3; an older kernel refuses the unknown flag and is asked without it.
    let fd = memfd(name, flags | libc::MFD_NOEXEC_SEAL).or_else(|_| memfd(name, flags))?;
    let size = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is owned and open.
    check_retry(|| unsafe { libc::ftruncate(fd.as_raw_fd(), size) })?;
    allocate(fd.as_fd(), 0, 0, len)?;
    Ok(fd)
}

/// `fallocate`.
pub(crate) fn allocate(
    fd: BorrowedFd<'_>,
    mode: libc::c_int,
    from: u64,
    len: u64,
) -> io::Result<()> {
    let range = (from as libc::off_t, len as libc::off_t);
    // SAFETY: plain integers on an open descriptor.
    check_retry(|| unsafe { libc::fallocate(fd.as_raw_fd(), mode, range.0, range.1) })
}

fn memfd(name: &CStr, flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string that outlives the call.
    let fd = super::check(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
    // SAFETY: the kernel just gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check_retry(mut call: impl FnMut() -> libc::c_int) -> io::Result<()> {
    loop {
        match super::check(call()) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// `fcntl(F_ADD_SEALS)`: adds [`SEALS`]. Called once the owner's writable mapping stands.
pub(crate) fn seal(fd: BorrowedFd<'_>) -> io::Result<()> {
    add_seals(fd, SEALS)
}

/// `fcntl(F_ADD_SEALS)`.
pub(crate) fn add_seals(fd: BorrowedFd<'_>, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: plain integers on an open descriptor.
    super::check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

/// `fcntl(F_GET_SEALS)`: fails with `EINVAL` where the descriptor is no memory file.
pub(crate) fn seals(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    // SAFETY: plain integers on an open descriptor.
    super::check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) })
}

/// `pread`: fills the buffer. Takes no further descriptor.
#[cfg(all(feature = "json", not(loom)))]
pub(crate) fn read_at(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    // SAFETY: it is open as long as `fd`, and is never closed by this.
    let file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(fd.as_raw_fd()) });
    file.read_exact_at(buffer, offset)
}

/// `fstat`: the size of the file, and how much of it is allocated, in bytes. Takes no further descriptor: there may
/// be none left.
pub(crate) fn size(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    // SAFETY: all zeros is a valid `stat`: integers only.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor, and a local that outlives the call.
    super::check(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) })?;
    // Blocks of `stat` have 512 bytes on Linux, whatever the file system.
    Ok((stat.st_size as u64, stat.st_blocks as u64 * 512))
}
