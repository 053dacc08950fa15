//! The hand-backs of a lane as a peer writes them: read by whoever sends.
#![no_main]

mod scene;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use scene::{About, Scene};

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    Scene::begin(About::HandBacks, u)?.play(u)
}

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});
