//! The large content: 512 KiB of which one byte of each page differs from message to message, is
//! read, and is checked.

/// Bytes of the large content.
pub const LARGE: usize = 512 * 1024;
/// Bytes between two that are read.
pub const PAGE: usize = 4096;

/// Content to copy from.
pub fn content() -> Vec<u8> {
    (0..LARGE).map(|index| (index % 251) as u8).collect()
}

/// Writes what message `id` carries in each page.
pub fn mark(content: &mut [u8], id: u64) {
    for (page, byte) in content.iter_mut().step_by(PAGE).enumerate() {
        *byte = (id as u8).wrapping_mul(31).wrapping_add(page as u8);
    }
}

/// The sum of one byte of each page.
pub fn sum(content: &[u8]) -> u64 {
    content.iter().step_by(PAGE).map(|&b| u64::from(b)).sum()
}

/// The sum for message `id`, without its content.
pub fn expected(id: u64) -> u64 {
    let mut bytes = [0; LARGE / PAGE];
    for (page, byte) in bytes.iter_mut().enumerate() {
        *byte = (id as u8).wrapping_mul(31).wrapping_add(page as u8);
    }
    bytes.iter().map(|&b| u64::from(b)).sum()
}
