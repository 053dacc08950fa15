#[derive(shmbus::ShmMessage)]
#[rkyv(archived = Other)]
struct Message;

fn main() {}
