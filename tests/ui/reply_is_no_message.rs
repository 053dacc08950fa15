#[derive(shmbus::ShmMessage)]
#[shm(service = "complete", reply = String)]
struct Message;

fn main() {}
