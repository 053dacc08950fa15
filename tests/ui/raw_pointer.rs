#[derive(shmbus::ShmMessage)]
enum Message {
    Address(*const u8),
}

fn main() {}
