//! The peer.
//!
//! Unsafe code is needed to write its memory, and to send several descriptors at once.
#![allow(unsafe_code)]

use super::*;

/// See the module.
pub struct Peer {
    // Dropped first: what an honest process does when the other is there, and when it is not.
    bus: Option<Bus>,
    link: Arc<Link>,
    socket: Option<Socket>,
    segments: Vec<OwnSegment>,
    /// How many messages were sent that were perhaps not read.
    sent: usize,
    /// Lanes that were asked for, and not answered yet.
    asked: Vec<(u32, String)>,
}

impl Peer {
    /// A bus with a link to the peer, which has its first segment, and has said nothing.
    pub fn new() -> Peer {
        let (socket, theirs) = Socket::pair().expect("there are descriptors");
        let config = Config {
            max_message: 1 << 16,
            memory_limit: 4 << 20,
            wait: Wait::Park,
            ..Config::default()
        };
        let (bus, link) = config.over(theirs).expect("there is memory");
        let first = OwnSegment::create(0, map::END as u64).expect("there is memory");
        Peer {
            bus: Some(bus),
            link,
            socket: Some(socket),
            segments: vec![first],
            sent: 0,
            asked: Vec::new(),
        }
    }

    /// As [`new`](Self::new), of an honest beginning.
    pub fn greeting() -> Peer {
        let mut peer = Peer::new();
        peer.say(&Said::hello());
        peer.announce(0);
        peer
    }

    pub fn bus(&self) -> &Bus {
        self.bus.as_ref().expect("it is dropped last")
    }

    pub fn fault(&self) -> Option<Fault> {
        self.link.fault()
    }

    pub fn is_dead(&self) -> bool {
        self.link.is_dead()
    }

    pub fn say(&mut self, said: &Said) {
        self.send(&said.to_bytes(), said.carried);
    }

    /// Sends any bytes, with any descriptors.
    pub fn send(&mut self, bytes: &[u8], carried: Carried) {
        let mut own: Vec<OwnedFd> = Vec::new();
        let event = || crate::sys::chime::Chime::new().and_then(|c| c.as_fd().try_clone_to_owned());
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        let made = match carried {
            Carried::Nothing => Ok(None),
            Carried::Segment(which) => {
                let which = usize::from(which) % self.segments.len();
                fds.push(self.segments[which].as_fd());
                Ok(None)
            }
            Carried::Unsealed => memfd::create(c"unsealed", PAGE).map(Some),
            Carried::Event | Carried::Two | Carried::Five => event().map(Some),
            Carried::Null => std::fs::File::open("/dev/null").map(|file| Some(file.into())),
            Carried::Socket => std::os::unix::net::UnixDatagram::unbound().map(|s| Some(s.into())),
        };
        own.extend(made.expect("there are descriptors"));
        fds.extend(own.iter().map(AsFd::as_fd));
        if matches!(carried, Carried::Two | Carried::Five) {
            let more = if carried == Carried::Two { 1 } else { 4 };
            fds.extend((0..more).map(|_| self.segments[0].as_fd()));
        }
        if let Some(socket) = &self.socket {
            send_all(socket, bytes, &fds);
            self.sent += 1;
        }
    }

    /// Says that a segment is there, as it is.
    pub fn announce(&mut self, which: usize) {
        let segment = &self.segments[which];
        let (id, len) = (segment.id(), segment.len());
        let bytes = Said::from(Control::Segment { id, len }).to_bytes();
        self.send(&bytes, Carried::Segment(which as u8));
    }

    /// Makes a segment that holds these bytes, which nobody changes any more, and says so. Its number.
    pub fn add_segment(&mut self, bytes: &[u8]) -> u64 {
        let id = self.segments.len() as u64;
        let segment = OwnSegment::create(id, bytes.len().max(1) as u64);
        let segment = segment.expect("there is memory");
        // SAFETY: the segment is as long, and nobody else has it yet.
        unsafe {
            (segment.at(0).as_ptr()).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        self.segments.push(segment);
        self.announce(id as usize);
        id
    }

    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Writes a word of the first segment.
    pub fn store(&self, offset: usize, word: u64) {
        let offset = offset % map::END / 8 * 8;
        let place = self.segments[0].at(offset as u64).cast::<AtomicU64>();
        // SAFETY: an aligned word of a mapping that is ours to write.
        unsafe { place.as_ref() }.store(word, Ordering::Release);
    }

    pub fn load(&self, offset: usize) -> u64 {
        let offset = offset % map::END / 8 * 8;
        let place = self.segments[0].at(offset as u64).cast::<AtomicU64>();
        // SAFETY: an aligned word of a mapping that is ours.
        unsafe { place.as_ref() }.load(Ordering::Acquire)
    }

    /// Writes bytes of the first segment, word by word, from a multiple of eight on.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.store(offset + 8 * index, u64::from_le_bytes(word));
        }
    }

    /// Has all that was said be handled.
    pub fn settle(&mut self) {
        for _ in 0..=std::mem::take(&mut self.sent) / 64 {
            self.link.tend();
        }
    }

    /// Reads what the bus has said: remembers which lanes it asks for.
    pub fn listen(&mut self) {
        let mut buffer = vec![0; wire::MOST_BYTES];
        while let Some(Ok(Some((n, _)))) = self.socket.as_ref().map(|s| s.receive(&mut buffer)) {
            // An honest process says nothing else.
            match wire::decode(&buffer[..n]).expect("the bus keeps to the protocol") {
                Control::Open { lane, name, .. } => self.asked.push((lane, name)),
                _ => {}
            }
        }
    }

    /// Answers the first lane that was asked for, as an honest peer would, but for what `u` spoils of that;
    /// returns its number.
    pub fn answer(&mut self, u: Option<&mut Unstructured<'_>>) -> Option<u32> {
        self.listen();
        if self.asked.is_empty() {
            return None;
        }
        let (lane, name) = self.asked.remove(0);
        let Some(port) = Port::of(&name) else {
            let why = Refusal::NoServer;
            self.say(&Said::from(Control::Refused { lane, why }));
            return Some(lane);
        };
        let mut end = end(port, lane, true);
        if let Some(u) = u {
            end = spoiled_end(u, end).ok()?;
        }
        self.say(&Said::from(Control::Opened { lane, end }));
        Some(lane)
    }

    /// Does what needs an answer from the peer, which it gives meanwhile.
    pub fn while_answering<T: Send>(&mut self, work: impl FnOnce(&Bus) -> T + Send) -> T {
        let bus = self.bus().clone();
        std::thread::scope(|scope| {
            let working = scope.spawn(move || work(&bus));
            while !working.is_finished() {
                if self.answer(None).is_none() {
                    std::thread::sleep(Duration::from_micros(20));
                }
            }
            working.join().expect("it does not panic")
        })
    }

    /// Ends the peer's half of the connection.
    pub fn hang_up(&mut self) {
        self.socket = None;
        self.sent += 1;
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The bus first, while the peer is there.
        self.bus = None;
    }
}

/// `sendmsg` with any number of descriptors; what cannot be sent is not.
fn send_all(socket: &Socket, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    const ROOM: usize = 8;
    let mut control = [0u64; ROOM];
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeros is a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        let len = 16 + size_of_val(fds);
        assert!(len <= 8 * ROOM);
        control[0] = len as u64;
        control[1] = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
        for (index, fd) in fds.iter().enumerate() {
            control[2 + index / 2] |= (fd.as_raw_fd() as u64) << (32 * (index % 2));
        }
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = len.next_multiple_of(8);
    }
    // SAFETY: the header and all that it points to outlive the call.
    let _ = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &header, libc::MSG_NOSIGNAL) };
}
