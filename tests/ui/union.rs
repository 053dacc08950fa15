#[derive(shmbus::ShmMessage)]
union Message {
    number: u32,
    bytes: [u8; 4],
}

fn main() {}
