//! How the honest ports of a service are used.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use shmbus::__fuzz::{Ask, Item, News, Problem, Reply};
use shmbus::{Client, Server};

pub fn ask(u: &mut Unstructured<'_>) -> Result<Ask> {
    Ok(Ask {
        key: u.int_in_range(0..=3)?,
        text: "x".repeat(*u.choose(&[0, 9, 80, 700])?),
        numbers: vec![7; *u.choose(&[0, 1, 5, 2000])?],
    })
}

pub fn news(u: &mut Unstructured<'_>) -> Result<News> {
    Ok(News {
        number: 3,
        text: "x".repeat(*u.choose(&[0, 9, 80, 700, 9000])?),
        flag: true,
    })
}

pub fn serve(server: &mut Server<Ask>, how: u8) {
    let Ok(Some(call)) = server.try_next() else {
        return;
    };
    assert!(!format!("{:?}", &*call).is_empty());
    std::hint::black_box((call.is_cancelled(), call.deadline(), call.behind()));
    let long = usize::from(how / 8) * 40;
    for _ in 0..how % 4 {
        let bytes = vec![7; long];
        let _ = call.try_send(&Item { flag: true, bytes });
    }
    match how % 8 {
        0..4 => {
            let text = Some("x".repeat(long));
            let _ = call.reply(&Reply { text, number: 1 });
        }
        4 => drop(call.fail(&Problem::Text("x".repeat(long)))),
        5 => drop(call),
        _ => {
            let value = call.to_value().expect("its fields refuse nothing");
            assert_eq!(value.text.len(), call.text.len());
        }
    }
}

/// Calls, and looks at what is there already.
pub fn call(client: &Client<Ask>, how: u8, u: &mut Unstructured<'_>) -> Result<()> {
    let request = ask(u)?;
    if how % 2 == 0 {
        if let Ok(reply) = client.call_timeout(&request, Duration::ZERO) {
            assert!(!format!("{:?}", &*reply).is_empty());
        }
        return Ok(());
    }
    if let Ok(mut items) = client.stream_timeout(&request, Duration::from_micros(1)) {
        let mut held = Vec::new();
        for item in items.by_ref().take(usize::from(how / 2 % 4)) {
            match item {
                Ok(item) => held.push(item),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
        }
        for item in &held {
            assert!(!format!("{:?}", &**item).is_empty());
        }
        if how % 16 == 1 {
            let _ = items.finish();
        }
    }
    Ok(())
}
