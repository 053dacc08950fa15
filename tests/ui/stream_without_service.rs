#[derive(shmbus::ShmMessage)]
#[shm(stream = Token)]
struct Prompt {
    text: String,
}

#[derive(shmbus::ShmMessage)]
struct Token {
    text: String,
}

fn main() {}
