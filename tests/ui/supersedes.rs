use shmbus::ShmMessage;

#[derive(ShmMessage)]
struct Typed;

#[derive(ShmMessage)]
#[shm(service = "type", reply = Typed, supersedes = "documents")]
struct Type {
    document: String,
}

#[derive(ShmMessage)]
#[shm(supersedes = "document")]
struct NoRequest {
    document: String,
}

fn main() {}
