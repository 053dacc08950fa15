//! The call of a small message, beside which most others are told.

use anyhow::{Result, ensure};
use shmbus::Bus;

use super::messages::Small;
use super::report::Figures;
use super::{Peer, Run, START, histogram, quantiles};

/// Times each call, from before its request is archived until its reply was read.
pub fn parent(run: &Run) -> Result<Figures> {
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let child = Peer(child);
    let mut client = bus.client_timeout::<Small>(START)?;
    client.set_wait(run.mode.wait());
    let mut times = histogram()?;
    let mut request = Small::new();
    for id in 1..=run.total() {
        request.number(id);
        let start = run.clock.now();
        let reply = client.call(&request)?;
        let right = reply.carries(id + 1);
        drop(reply);
        let time = run.clock.since(start);
        ensure!(right, "the reply to request {id} came changed");
        run.record(&mut times, id, time)?;
    }
    drop(client);
    drop(bus);
    child.finish()?;
    Ok(quantiles(&times))
}

/// Answers each call until the parent is done.
pub fn child(run: &Run) -> Result<()> {
    let bus = Bus::from_parent()?;
    let mut server = bus.server::<Small>()?;
    server.set_wait(run.mode.wait());
    let mut reply = Small::new();
    let mut id = 0;
    while let Some(call) = server.next()? {
        id += 1;
        ensure!(call.carries(id), "request {id} came changed");
        reply.number(id + 1);
        call.reply(&reply)?;
    }
    run.all_came(id)
}
