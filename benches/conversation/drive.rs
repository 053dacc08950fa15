//! Tasks that are woken by their own runtime, rather than by a thread of the bus.
//!
//! Unsafe code is needed to hand tokio a descriptor: this is what the feature `tokio` does, too.
#![allow(unsafe_code)]

use std::io;

use shmbus::Driver;
use tokio::io::unix::AsyncFd;

/// Wakes the tasks of a bus until it is gone.
pub async fn drive(driver: Driver) -> io::Result<()> {
    // SAFETY: a driver has one descriptor, which stays open as long as it lives.
    let driver = unsafe { AsyncFd::register(driver) }?;
    while driver.get_ref().dispatch() {
        driver.readable().await?.clear_ready();
    }
    Ok(())
}
