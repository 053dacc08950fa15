use std::rc::Rc;

#[derive(shmbus::ShmMessage)]
struct Message {
    shared: Rc<String>,
}

fn main() {}
