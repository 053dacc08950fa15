#[derive(shmbus::ShmMessage)]
#[shm(servcie = "complete")]
struct Message;

fn main() {}
