#[derive(shmbus::ShmMessage)]
struct Message {
    offsets: std::collections::HashMap<String, Vec<isize>>,
}

fn main() {}
