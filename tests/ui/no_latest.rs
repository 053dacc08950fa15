use shmbus::{Bus, ShmMessage};

#[derive(ShmMessage)]
struct Progress {
    percent: u8,
}

fn main() {
    let bus = Bus::open("bus").unwrap();
    let _ = bus.latest::<Progress>();
}
