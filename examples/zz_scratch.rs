//! scratch
use shmbus::{Bus, ShmMessage};
#[derive(ShmMessage)]
struct Line {
    id: u64,
    line: u32,
    col: u32,
    kind: u8,
}
#[derive(ShmMessage)]
struct Small {
    id: u64,
    line: u32,
    col: u32,
    kind: u8,
    text: String,
}
#[derive(ShmMessage)]
struct Item {
    label: String,
    detail: String,
    score: f32,
}
#[derive(ShmMessage)]
struct Items {
    items: Vec<Item>,
}
fn main() {
    let bus = Bus::open("scratch").unwrap();
    let n = 5_000_000u64;
    {
        let mut rx = bus.receiver::<Line>("line").unwrap();
        let mut tx = bus.sender::<Line>("line").unwrap();
        tx.send(&Line {
            id: 1,
            line: 1,
            col: 1,
            kind: 1,
        })
        .unwrap();
        rx.next().unwrap().unwrap();
        let t = std::time::Instant::now();
        for id in 0..n {
            tx.send(&Line {
                id,
                line: 1,
                col: 1,
                kind: 1,
            })
            .unwrap();
            let v = rx.next().unwrap().unwrap();
            assert!(v.id == id);
        }
        println!("line {} ns", t.elapsed().as_nanos() as f64 / n as f64);
    }
    {
        let mut rx = bus.receiver::<Line>("line2").unwrap();
        let mut tx = bus.sender::<Line>("line2").unwrap();
        let (mut best_tx, mut best_rx) = (u128::MAX, u128::MAX);
        for _ in 0..200_000u64 {
            let t = std::time::Instant::now();
            for id in 0..48 { tx.send(&Line { id, line: 1, col: 1, kind: 1 }).unwrap(); }
            best_tx = best_tx.min(t.elapsed().as_nanos());
            let t = std::time::Instant::now();
            for id in 0..48 { let v = rx.next().unwrap().unwrap(); assert!(v.id == id); }
            best_rx = best_rx.min(t.elapsed().as_nanos());
        }
        println!("line batch: tx {} rx {}", best_tx as f64/48., best_rx as f64/48.);
    }
    {
        let mut rx = bus.receiver::<Small>("small2").unwrap();
        let mut tx = bus.sender::<Small>("small2").unwrap();
        let (mut best_tx, mut best_rx) = (u128::MAX, u128::MAX);
        let m = Small { id: 1, line: 1, col: 1, kind: 1, text: "x".repeat(24) };
        for _ in 0..200_000u64 {
            let t = std::time::Instant::now();
            for _ in 0..48 { tx.send(&m).unwrap(); }
            best_tx = best_tx.min(t.elapsed().as_nanos());
            let t = std::time::Instant::now();
            for _ in 0..48 { let v = rx.next().unwrap().unwrap(); assert!(v.id == 1); }
            best_rx = best_rx.min(t.elapsed().as_nanos());
        }
        println!("small batch: tx {} rx {}", best_tx as f64/48., best_rx as f64/48.);
    }
    {
        let mut rx = bus.receiver::<Small>("small").unwrap();
        let mut tx = bus.sender::<Small>("small").unwrap();
        let mut m = Small {
            id: 1,
            line: 1,
            col: 1,
            kind: 1,
            text: "x".repeat(24),
        };
        tx.send(&m).unwrap();
        rx.next().unwrap().unwrap();
        let t = std::time::Instant::now();
        for id in 0..n {
            m.id = id;
            tx.send(&m).unwrap();
            let v = rx.next().unwrap().unwrap();
            assert!(v.id == id);
        }
        println!("small {} ns", t.elapsed().as_nanos() as f64 / n as f64);
    }
    {
        let mut rx = bus.receiver::<Items>("items").unwrap();
        let mut tx = bus.sender::<Items>("items").unwrap();
        let m = Items {
            items: (0..20)
                .map(|_| Item {
                    label: "x".repeat(24),
                    detail: "y".repeat(60),
                    score: 1.0,
                })
                .collect(),
        };
        tx.send(&m).unwrap();
        rx.next().unwrap().unwrap();
        let n = n / 20;
        let t = std::time::Instant::now();
        for _ in 0..n {
            tx.send(&m).unwrap();
            let v = rx.next().unwrap().unwrap();
            assert!(v.items.len() == 20);
        }
        println!("medium {} ns", t.elapsed().as_nanos() as f64 / n as f64);
    }
}
