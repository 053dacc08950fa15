use shmbus::ShmMessage;

#[derive(ShmMessage)]
#[shm(key = "path")]
struct NoLatest {
    path: String,
}

#[derive(ShmMessage)]
#[shm(latest = "diagnostics", key = "paths")]
struct NoField {
    path: String,
}

#[derive(ShmMessage)]
#[shm(latest = "", key = "path")]
struct NoName {
    path: String,
}

#[derive(ShmMessage)]
#[shm(latest = "diagnostics", key = "path")]
struct Wrapped {
    #[rkyv(with = shmbus::rkyv::with::AsString)]
    path: std::path::PathBuf,
}

#[derive(ShmMessage)]
#[shm(latest = "diagnostics", key = "score")]
struct NoKey {
    score: f32,
}

fn main() {}
