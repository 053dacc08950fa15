use shmbus::ShmMessage;

#[derive(ShmMessage)]
struct Answer {
    text: String,
}

#[derive(ShmMessage)]
#[shm(topic = "news", idempotent)]
struct Topic {
    text: String,
}

#[derive(ShmMessage)]
#[shm(service = "ask", reply = Answer, stream = Answer, idempotent)]
struct Stream {
    text: String,
}

#[derive(ShmMessage)]
#[shm(service = "ask", reply = Answer, idempotent, idempotent)]
struct Twice {
    text: String,
}

fn main() {}
