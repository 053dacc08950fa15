use shmbus::rkyv;

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct OnlyRkyv {
    id: u32,
}

#[derive(shmbus::ShmMessage)]
struct Message {
    part: OnlyRkyv,
}

fn main() {}
