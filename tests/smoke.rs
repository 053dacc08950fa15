//! The first conversation.
use shmbus::{Bus, Bytes, ShmMessage, Wait};

#[derive(ShmMessage, Debug, Clone, PartialEq)]
#[shm(service = "echo", reply = Text)]
struct Text {
    id: u64,
    text: String,
}

#[derive(ShmMessage)]
#[shm(service = "bulk", reply = Text)]
struct Save {
    path: String,
    content: Bytes,
    note: String,
}

#[test]
fn two_buses_one_process() {
    let bus = Bus::open("smoke").unwrap();
    let mut server = bus.server::<Text>().unwrap();
    let t = std::thread::spawn(move || {
        while let Some(call) = server.next().unwrap() {
            let v = call.to_value().unwrap();
            call.reply(&v).unwrap();
        }
    });
    let other = Bus::open("smoke").unwrap();
    let mut client = other.client::<Text>().unwrap();
    for wait in [Wait::Adaptive, Wait::Park, Wait::Spin] {
        client.set_wait(wait);
        for id in 0..3000u64 {
            let len = [3, 30, 300, 3000, 30_000, 300_000][(id % 6) as usize];
            let text = "x".repeat(len);
            let value = Text { id, text };
            let reply = client.call(&value).unwrap();
            assert_eq!(reply.to_value().unwrap(), value);
        }
    }
    bus.close();
    t.join().unwrap();
}

#[test]
fn loans() {
    let bus = Bus::open("smoke-loan").unwrap();
    let mut server = bus.server::<Save>().unwrap();
    let t = std::thread::spawn(move || {
        while let Some(call) = server.next().unwrap() {
            let sum: u64 = call.content.iter().map(|b| u64::from(*b)).sum();
            let text = format!("{} {}", call.path, call.note);
            call.reply(&Text { id: sum, text }).unwrap();
        }
    });
    let client = bus.client::<Save>().unwrap();
    for i in 0..100u8 {
        let mut content = client.loan_bytes(512 * 1024).unwrap();
        content.fill(i);
        assert!(content.is_in_place());
        let path = format!("a path that is longer than a few bytes {i}");
        let save = Save {
            path: path.clone(),
            content,
            note: "a longer note behind the content".into(),
        };
        let reply = client.call(&save).unwrap();
        assert!(!save.content.is_in_place());
        assert_eq!(reply.id, u64::from(i) * 512 * 1024);
        assert_eq!(reply.text, format!("{path} {}", save.note));
        let reply2 = client.call(&save).unwrap();
        assert_eq!(reply.text, reply2.text);
    }
    bus.close();
    t.join().unwrap();
}
