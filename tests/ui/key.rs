use std::collections::{BTreeSet, HashMap};

#[derive(shmbus::ShmMessage)]
struct Key {
    id: u32,
}

#[derive(shmbus::ShmMessage)]
struct Hashed {
    map: HashMap<Key, u32>,
}

#[derive(shmbus::ShmMessage)]
struct Sorted {
    set: BTreeSet<(u8, f32)>,
}

fn main() {}
