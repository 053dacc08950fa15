//! A stream of futures, and a loop of tokio's that drives.

use futures_util::StreamExt;
use futures_util::stream::FusedStream;

use crate::support::{Watchdog, name, open, together};
use crate::{Count, Number, Sum};

#[test]
fn items_are_a_stream() {
    let _together = together();
    let _watch = Watchdog::start("a stream");
    let name = name("stream-of-futures");
    let (here, there) = (open(&name), open(&name));
    let serving = here.serve::<Count, _>(1, |call| {
        let to = call.to.to_native();
        for value in 1..=to {
            call.send(&Number { value }).wait().expect("it is wanted");
        }
        let value = (1..=to).sum();
        Ok(Sum { value })
    });
    let serving = serving.expect("nobody else serves");
    let client = there.async_client::<Count>().expect("a server is there");
    pollster::block_on(async {
        let items = client.stream(&Count { to: 1_000 }).await;
        let mut items = items.expect("there is room");
        assert!(!items.is_terminated());
        let evens = (&mut items).filter(|item| {
            let value = item.as_ref().expect("an item").value.to_native();
            std::future::ready(value % 2 == 0)
        });
        assert_eq!(evens.count().await, 500);
        assert!(items.is_terminated());
        assert_eq!(items.finish().await.expect("a sum").value, 500_500);
    });
    drop(serving);
}

#[test]
fn tokio_drives() {
    let _together = together();
    let _watch = Watchdog::start("tokio drives");
    let name = name("driven-by-tokio");
    let (here, there) = (open(&name), open(&name));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("the runtime starts");
    let ended = runtime.block_on(async {
        let drivers = [&here, &there].map(|bus| tokio::spawn(bus.driver().run_on_tokio()));
        let server = here.async_server::<Count>().expect("nobody else serves");
        let client = there.async_client::<Count>().expect("a server is there");
        let serving = server.run(
            |task| drop(tokio::spawn(task)),
            |call| async move {
                let value = call.to.to_native();
                Ok(Sum { value })
            },
        );
        let calling = async {
            for to in 0..1_000 {
                let sum = client.call(&Count { to }).await.expect("it answers");
                assert_eq!(sum.value, to);
            }
            server.stop();
        };
        tokio::join!(serving, calling).0.expect("not forked");
        drop((server, client, here, there));
        for driver in drivers {
            driver.await.expect("it does not panic")?;
        }
        std::io::Result::Ok(())
    });
    ended.expect("descriptors can be watched");
}
