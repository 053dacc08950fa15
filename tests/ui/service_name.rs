#[derive(shmbus::ShmMessage)]
#[shm(service = "editor/complete", reply = Slash)]
struct Slash;

#[derive(shmbus::ShmMessage)]
#[shm(service = "", reply = Empty)]
struct Empty;

fn main() {}
