//! A warm call neither allocates nor enters the kernel, on either side.
//!
//! Unsafe code is needed to count allocations and to forbid system calls.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::process::ExitStatusExt;

use shmbus::{Bus, Client, Pinned, Server, ShmMessage, Wait};

use crate::support::{Answer, Ask, Child, alone, name, open};

const WARM: u64 = 20_000;
const CALLS: u64 = 100_000;
/// How a process says that it got to the end without a system call but this one.
const DONE: i32 = 42;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every request goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Calls so often, and checks every reply.
fn call(client: &Client<Ask>, ask: &mut Ask, times: u64) {
    for _ in 0..times {
        ask.id += 1;
        let reply = client.call(ask).expect("the server answers");
        assert!(reply.id == ask.id && reply.text.len() == 24);
    }
}

fn serve(server: &mut Server<Ask>, reply: &mut Answer, times: u64) {
    for _ in 0..times {
        let call = server.next().expect("not forked").expect("a call comes");
        assert!(call.text.len() == 24);
        reply.id = call.id.to_native();
        call.reply(reply).expect("the reply fits");
    }
}

fn reply() -> Answer {
    let text = "y".repeat(24);
    let pid = std::process::id();
    Answer { id: 0, pid, text }
}

#[test]
fn warm_calls_allocate_nothing() {
    let _alone = alone();
    let bus = open(&name("allocations"));
    let mut server = bus.server::<Ask>().expect("nobody else serves");
    server.set_wait(Wait::Spin);
    let serving = std::thread::spawn(move || {
        let mut reply = reply();
        serve(&mut server, &mut reply, WARM);
        let before = ALLOCATIONS.get();
        serve(&mut server, &mut reply, CALLS);
        ALLOCATIONS.get() - before
    });
    let mut client = bus.client::<Ask>().expect("a server is there");
    client.set_wait(Wait::Spin);
    let mut ask = Ask::new(0, 24);
    call(&client, &mut ask, WARM);
    let before = ALLOCATIONS.get();
    call(&client, &mut ask, CALLS);
    let ours = ALLOCATIONS.get() - before;
    assert_eq!(ours, 0, "allocations of the client");
    let theirs = serving.join().expect("the server does not panic");
    assert_eq!(theirs, 0, "allocations of the server");
}

/// A request that refers to what was sent before.
#[derive(ShmMessage)]
#[shm(service = "ask-of", reply = Answer)]
struct AskOf {
    document: Pinned<Answer>,
    id: u64,
}

fn call_of(client: &Client<AskOf>, ask: &mut AskOf, times: u64) {
    for _ in 0..times {
        ask.id += 1;
        let reply = client.call(ask).expect("the server answers");
        assert!(reply.id == ask.id);
    }
}

fn serve_of(server: &mut Server<AskOf>, reply: &mut Answer, times: u64) {
    for _ in 0..times {
        let call = server.next().expect("not forked").expect("a call comes");
        assert_eq!(
            call.document.open(&call).expect("it is kept").text.len(),
            24
        );
        reply.id = call.id.to_native();
        call.reply(reply).expect("the reply fits");
    }
}

fn ask_of(bus: &Bus) -> AskOf {
    let document = bus.pin(&reply()).expect("there is memory");
    AskOf { document, id: 0 }
}

#[test]
fn warm_calls_that_refer_to_a_pin_allocate_nothing() {
    let _alone = alone();
    let bus = open(&name("allocations-pins"));
    let mut server = bus.server::<AskOf>().expect("nobody else serves");
    server.set_wait(Wait::Spin);
    let serving = std::thread::spawn(move || {
        let mut reply = reply();
        serve_of(&mut server, &mut reply, WARM);
        let before = ALLOCATIONS.get();
        serve_of(&mut server, &mut reply, CALLS);
        ALLOCATIONS.get() - before
    });
    let mut client = bus.client::<AskOf>().expect("a server is there");
    client.set_wait(Wait::Spin);
    let mut ask = ask_of(&bus);
    call_of(&client, &mut ask, WARM);
    let before = ALLOCATIONS.get();
    call_of(&client, &mut ask, CALLS);
    let ours = ALLOCATIONS.get() - before;
    assert_eq!(ours, 0, "allocations of the client");
    let theirs = serving.join().expect("the server does not panic");
    assert_eq!(theirs, 0, "allocations of the server");
}

#[test]
fn allocations_are_counted() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![1u8; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}

/// From here on, every system call of this thread but the process's end kills the process.
fn forbid_system_calls() {
    let op = |code: u32, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let end = libc::SYS_exit_group as u32;
    let mut filter = [
        // The first word is the number of the call.
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, end),
        op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        op(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_KILL_PROCESS,
        ),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: plain integers.
    let made = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(made, 0);
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program and its filter live until the kernel has copied them.
    let made = unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) };
    assert_eq!(made, 0);
}

fn done() -> ! {
    // SAFETY: this ends the process at once, which is what is wanted.
    unsafe { libc::_exit(DONE) }
}

/// A part: makes a system call where none is allowed.
pub(crate) fn forbidden() {
    forbid_system_calls();
    // SAFETY: plain integers. This is what the filter is there to catch.
    unsafe { libc::getppid() };
    done();
}

/// A part: calls warm, then without the kernel.
pub(crate) fn client(bus: &str, wait: &str) {
    let bus = open(bus);
    let mut client = bus.client::<Ask>().expect("a server is there");
    client.set_wait(Wait::Spin);
    let mut ask = Ask::new(0, 24);
    call(&client, &mut ask, WARM);
    forbid_system_calls();
    if wait == "park" {
        client.set_wait(Wait::Park);
    }
    call(&client, &mut ask, CALLS);
    done();
}

/// As [`client`], with a pin.
pub(crate) fn client_of(bus: &str) {
    let bus = open(bus);
    let mut client = bus.client::<AskOf>().expect("a server is there");
    client.set_wait(Wait::Spin);
    let mut ask = ask_of(&bus);
    call_of(&client, &mut ask, WARM);
    forbid_system_calls();
    call_of(&client, &mut ask, CALLS);
    done();
}

/// As [`server`], with a pin.
pub(crate) fn server_of(bus: &str) {
    let bus = open(bus);
    let mut server = bus.server::<AskOf>().expect("nobody else serves");
    server.set_wait(Wait::Spin);
    crate::support::tell("ready");
    let mut reply = reply();
    serve_of(&mut server, &mut reply, WARM);
    forbid_system_calls();
    serve_of(&mut server, &mut reply, CALLS);
    done();
}

/// A part: answers warm, then without the kernel.
pub(crate) fn server(bus: &str) {
    let bus = open(bus);
    let mut server = bus.server::<Ask>().expect("nobody else serves");
    server.set_wait(Wait::Spin);
    crate::support::tell("ready");
    let mut reply = reply();
    serve(&mut server, &mut reply, WARM);
    forbid_system_calls();
    serve(&mut server, &mut reply, CALLS);
    done();
}

#[test]
fn warm_calls_make_no_system_call() {
    let _alone = alone();
    let name = name("system-calls");
    let mut server = Child::start("hot-server", &[&name]);
    assert_eq!(server.hear(), "ready");
    let mut client = Child::start("hot-client", &[&name, "spin"]);
    assert_eq!(client.end().code(), Some(DONE), "the client");
    assert_eq!(server.end().code(), Some(DONE), "the server");
    sweep(&name);
}

#[test]
fn warm_calls_that_refer_to_a_pin_make_no_system_call() {
    let _alone = alone();
    let name = name("system-calls-pins");
    let mut server = Child::start("hot-server-of", &[&name]);
    assert_eq!(server.hear(), "ready");
    let mut client = Child::start("hot-client-of", &[&name]);
    assert_eq!(client.end().code(), Some(DONE), "the client");
    assert_eq!(server.end().code(), Some(DONE), "the server");
    sweep(&name);
}

/// The parts of these tests end without the kernel's help, and so without tidying up.
fn sweep(name: &str) {
    drop(open(name));
}

#[test]
fn a_system_call_is_caught() {
    let _alone = alone();
    let mut child = Child::start("forbidden", &[]);
    assert_eq!(child.end().signal(), Some(libc::SIGSYS));
    let name = name("system-calls-park");
    let mut server = Child::start("hot-server", &[&name]);
    assert_eq!(server.hear(), "ready");
    let mut sleeps = Child::start("hot-client", &[&name, "park"]);
    assert_eq!(sleeps.end().signal(), Some(libc::SIGSYS));
    drop((server, sleeps));
    sweep(&name);
}
