struct Plain;

#[derive(shmbus::ShmMessage)]
struct Generic<T> {
    item: T,
}

#[derive(shmbus::ShmMessage)]
struct Message {
    generic: Generic<Plain>,
}

fn main() {}
