#[derive(shmbus::ShmMessage)]
struct Message {
    text: &'static str,
}

fn main() {}
