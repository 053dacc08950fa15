#[derive(shmbus::ShmMessage)]
struct Message {
    #[shm(name = "other")]
    field: u8,
}

fn main() {}
