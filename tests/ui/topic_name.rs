use shmbus::ShmMessage;

#[derive(ShmMessage)]
#[shm(topic = "editor/progress")]
struct Progress {
    percent: u8,
}

fn main() {}
