struct Plain;

#[derive(shmbus::ShmMessage)]
struct Message {
    id: u32,
    plain: Plain,
}

// What uses the message is no further error.
fn plain(bus: &shmbus::Bus, archived: &ArchivedMessage) -> u32 {
    let sender = bus.sender::<Message>("plain");
    drop(sender);
    shmbus::schema_of::<Message>();
    archived.id.to_native()
}

fn main() {}
