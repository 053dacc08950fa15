use shmbus::{ShmMessage, schema_of};

#[derive(ShmMessage)]
struct Message {
    len: usize,
}

fn main() {
    // No second error here.
    schema_of::<Message>();
}
