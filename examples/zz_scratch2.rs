//! scratch
use shmbus::{Bus, ShmMessage, Receiver, Sender};
#[derive(ShmMessage)]
struct Line { id: u64, line: u32, col: u32, kind: u8 }
#[inline(never)]
fn recv_batch(rx: &mut Receiver<Line>) { for id in 0..48 { let v = rx.next().unwrap().unwrap(); assert!(v.id == id); } }
#[inline(never)]
fn send_batch(tx: &mut Sender<Line>) { for id in 0..48 { tx.send(&Line { id, line: 1, col: 1, kind: 1 }).unwrap(); } }
fn main() {
    let bus = Bus::open("scratch2").unwrap();
        let mut rx = bus.receiver::<Line>("line2").unwrap();
        let mut tx = bus.sender::<Line>("line2").unwrap();
        let n: u64 = std::env::args().nth(1).map_or(200_000, |n| n.parse().unwrap());
        let (mut best_tx, mut best_rx) = (u128::MAX, u128::MAX);
        for _ in 0..n {
            let t = std::time::Instant::now();
            send_batch(&mut tx);
            best_tx = best_tx.min(t.elapsed().as_nanos());
            let t = std::time::Instant::now();
            recv_batch(&mut rx);
            best_rx = best_rx.min(t.elapsed().as_nanos());
        }
        println!("line batch: tx {} rx {}", best_tx as f64/48., best_rx as f64/48.);
}
