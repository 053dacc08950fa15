#[derive(shmbus::ShmMessage)]
struct Document {
    text: String,
}

#[derive(shmbus::ShmMessage)]
struct Refer {
    document: shmbus::Pinned<Document>,
}

fn main() {
    let bus = shmbus::Bus::open("outlives").unwrap();
    let mut receiver = bus.receiver::<Refer>("refer").unwrap();
    let refer = receiver.next().unwrap().unwrap();
    let document = refer.document.open(&refer).unwrap();
    drop(refer);
    println!("{}", document.text);
}
