#[derive(shmbus::ShmMessage)]
#[rkyv(compare(PartialEq))]
struct Message;

fn main() {}
