#[derive(shmbus::ShmMessage)]
struct Message {
    path: std::path::PathBuf,
}

fn main() {}
