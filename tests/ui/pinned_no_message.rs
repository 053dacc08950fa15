struct Document;

#[derive(shmbus::ShmMessage)]
struct Refer {
    document: shmbus::Pinned<Document>,
}

fn main() {}
