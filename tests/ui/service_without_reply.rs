#[derive(shmbus::ShmMessage)]
#[shm(service = "complete")]
struct Message;

fn main() {}
