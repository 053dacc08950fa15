#[derive(shmbus::ShmMessage)]
struct Message<'a> {
    text: &'a str,
}

fn main() {}
