#[derive(shmbus::ShmMessage)]
struct Message {
    shared: Vec<Option<std::sync::Arc<str>>>,
}

fn main() {}
