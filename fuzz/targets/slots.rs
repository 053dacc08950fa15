//! The cells of a lane as a peer writes them: read by a server, a receiver, a subscriber and a client.
#![no_main]

mod scene;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use scene::{About, Scene};

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    Scene::begin(About::Slots, u)?.play(u)
}

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});
