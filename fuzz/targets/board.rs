//! Newest values as a publisher writes them: read where they lie.
#![no_main]

mod scene;

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use scene::{About, Scene};

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    Scene::begin(About::Board, u)?.play(u)
}

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});
