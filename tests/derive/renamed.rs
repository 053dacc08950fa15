//! The derive finds shmbus under another name.

extern crate shmbus as bus;

use std::fs;
use std::path::Path;
use std::process::Command;

#[derive(bus::ShmMessage)]
#[shm(crate = bus, service = "told", reply = Told)]
struct Told {
    #[rkyv(with = bus::rkyv::with::AsString)]
    path: std::path::PathBuf,
}

#[test]
fn told_by_the_attribute() {
    let told = Told { path: "/x".into() };
    let bytes = bus::__private::to_bytes(&told).unwrap();
    assert_eq!(bus::__private::access::<Told>(&bytes).unwrap().path, "/x");
}

/// A crate that depends on shmbus alone, and calls it `bus`.
#[test]
fn found_in_the_manifest() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let user = Path::new(env!("CARGO_TARGET_TMPDIR")).join("renamed");
    fs::create_dir_all(&user).unwrap();
    let manifest = format!(
        "[package]\nname = \"user\"\nedition = \"2024\"\n\n\
         [lib]\npath = {:?}\n\n\
         [dependencies]\nbus = {{ package = \"shmbus\", path = {root:?} }}\n\n\
         [workspace]\n",
        root.join("tests/fixtures/renamed.rs"),
    );
    fs::write(user.join("Cargo.toml"), manifest).unwrap();
    // The versions that are built here, so that nothing is fetched.
    fs::copy(root.join("Cargo.lock"), user.join("Cargo.lock")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["check", "--quiet", "--offline", "--manifest-path"])
        .arg(user.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(user.join("target"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
