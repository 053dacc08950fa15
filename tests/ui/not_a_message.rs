struct NotAMessage;

fn main() {
    shmbus::schema_of::<NotAMessage>();
}
