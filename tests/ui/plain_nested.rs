use std::collections::HashMap;

struct Plain;

#[derive(shmbus::ShmMessage)]
struct InVec {
    list: Vec<Plain>,
}

#[derive(shmbus::ShmMessage)]
struct InOption(Option<Box<Plain>>);

#[derive(shmbus::ShmMessage)]
struct InTuple {
    pair: (u8, [Plain; 4]),
}

#[derive(shmbus::ShmMessage)]
enum InVariant {
    Nothing,
    Tuple(u8, Plain),
    Named { list: Vec<InVec> },
}

#[derive(shmbus::ShmMessage)]
struct InMap {
    map: HashMap<String, Plain>,
}

#[derive(shmbus::ShmMessage)]
struct InTree {
    children: Vec<InTree>,
    value: Plain,
}

#[derive(shmbus::ShmMessage)]
struct BesideGeneric<T> {
    item: T,
    plain: Plain,
}

#[derive(shmbus::ShmMessage)]
#[shm(service = "ask", reply = InVec)]
struct Request {
    tree: InTree,
    generic: BesideGeneric<u8>,
}

fn main() {}
