#[derive(shmbus::ShmMessage)]
#[shm(reply = Message)]
struct Message;

fn main() {}
