//! What the peer says.

use super::*;

/// What travels with a control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    Nothing,
    /// The segment of the peer's with this place in its list.
    Segment(u8),
    Unsealed,
    Event,
    Null,
    Socket,
    /// An event and a segment.
    Two,
    /// More than any message carries.
    Five,
}

impl Carried {
    fn choose(u: &mut Unstructured<'_>) -> Result<Carried> {
        Ok(match u.int_in_range(0..=8)? {
            0 | 8 => Carried::Nothing,
            1 => Carried::Segment(u.arbitrary()?),
            2 => Carried::Unsealed,
            3 => Carried::Event,
            4 => Carried::Null,
            5 => Carried::Socket,
            6 => Carried::Two,
            _ => Carried::Five,
        })
    }
}

/// A control message, and what it carries.
#[derive(Debug)]
pub struct Said {
    pub(super) control: Control,
    pub(super) carried: Carried,
}

impl Said {
    pub fn hello() -> Said {
        Said::from(Control::Hello {
            layout: LAYOUT_VERSION,
            barrier: true,
        })
    }

    pub fn open(port: Port, lane: u32) -> Said {
        Said::from(Control::Open {
            lane,
            name: port.name(),
            from: port.is_topic().then_some(7),
            types: port.contract().types(),
            end: end(port, lane, false),
        })
    }

    pub fn joined(port: Port, lane: u32) -> Said {
        let name = port.name();
        Said::from(Control::Joined { name, lane })
    }

    pub fn serving(port: Port) -> Said {
        Said::from(Control::Serving { name: port.name() })
    }

    pub fn retired(id: u64) -> Said {
        Said::from(Control::Retired { id })
    }

    pub fn closed(lane: u32, mine: bool) -> Said {
        Said::from(Control::Closed { lane, mine })
    }

    pub fn released(lane: u32, mine: bool) -> Said {
        Said::from(Control::Released { lane, mine })
    }

    pub fn bye() -> Said {
        Said::from(Control::Bye)
    }

    /// Any control message: more often than not one that an honest peer could send.
    pub fn choose(u: &mut Unstructured<'_>) -> Result<Said> {
        let mut said = Said::from(control(u)?);
        if u.ratio(1, 16)? {
            said.carried = Carried::choose(u)?;
        }
        Ok(said)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(&self.control).unwrap_or_default()
    }
}

impl From<Control> for Said {
    fn from(control: Control) -> Said {
        let carried = match &control {
            Control::Segment { id, .. } => Carried::Segment(*id as u8),
            Control::Bell { .. } => Carried::Event,
            _ => Carried::Nothing,
        };
        Said { control, carried }
    }
}

fn at(offset: usize, len: usize) -> Where {
    Where {
        segment: 0,
        offset: offset as u64,
        len: len as u64,
    }
}

/// What an honest peer contributes to a lane: one that it opens, or one that was opened to it.
pub(super) fn end(port: Port, lane: u32, is_answer: bool) -> End {
    let cells = usize::from(port.cells()) * size_of::<Cell>();
    let sending = map::cells(lane, port) - map::sending(lane) + cells;
    let receiving = match port {
        Port::State => size_of::<(ReceiverBlock, HoldBlock)>(),
        _ => size_of::<ReceiverBlock>(),
    };
    let sends = (!is_answer || port == Port::Ask).then(|| SendingEnd {
        cells: at(map::sending(lane), sending),
        timed: false,
        board: (port == Port::State).then(|| at(map::BOARD, size_of::<BoardBlock>())),
    });
    let receives = is_answer || port == Port::Ask;
    End {
        sends,
        receives: receives.then(|| at(map::receiving(lane), receiving)),
        bell: (at(map::BELL, size_of::<Bell>()), 0),
        tasks: false,
        door: (!is_answer).then(|| {
            (
                at(map::DOOR, size_of::<Doorbell>()),
                lane as u16 % 4096,
                false,
            )
        }),
    }
}

fn place(u: &mut Unstructured<'_>) -> Result<Where> {
    if u.ratio(1, 4)? {
        let (segment, offset, len) = u.arbitrary()?;
        return Ok(Where {
            segment,
            offset,
            len,
        });
    }
    let sizes = [
        0,
        size_of::<Bell>(),
        size_of::<ReceiverBlock>(),
        size_of::<(ReceiverBlock, HoldBlock)>(),
        size_of::<Doorbell>(),
        size_of::<SenderBlock>() + 64 * CELL,
        size_of::<SenderBlock>() + 512 * CELL,
        size_of::<(SenderBlock, TopicBlock)>() + 512 * CELL,
    ];
    Ok(Where {
        segment: u.int_in_range(0..=3)?,
        offset: u64::from(u.arbitrary::<u16>()?) * 16,
        len: *u.choose(&sizes)? as u64,
    })
}

/// An honest end, but perhaps for some part of it.
pub(super) fn spoiled_end(u: &mut Unstructured<'_>, mut end: End) -> Result<End> {
    for _ in 0..u.int_in_range(0..=2)? {
        match u.int_in_range(0..=9)? {
            0 => end.sends = None,
            1 => end.receives = None,
            2 => end.door = None,
            3 => end.tasks = u.arbitrary()?,
            4 => end.bell = (place(u)?, u.arbitrary()?),
            5 => end.door = Some((place(u)?, u.arbitrary()?, u.arbitrary()?)),
            6 => end.receives = Some(place(u)?),
            7 => {
                end.sends = Some(SendingEnd {
                    cells: place(u)?,
                    timed: u.arbitrary()?,
                    board: u.arbitrary::<bool>()?.then(|| at(map::BOARD, 192)),
                });
            }
            8 => {
                if let Some(sends) = &mut end.sends {
                    sends.timed = true;
                }
            }
            _ => {
                let board = place(u)?;
                if let Some(sends) = &mut end.sends {
                    sends.board = Some(board);
                }
            }
        }
    }
    Ok(end)
}

fn name(u: &mut Unstructured<'_>) -> Result<String> {
    let names = [
        "",
        "ask",
        "moves",
        "nobody",
        "news",
        "news/sub/0",
        "news/sub/1",
        "news/pub/0",
        "state/get/0",
        "state/get/4294967295",
        "state/put/0",
        "a/b/sub/1",
        "news/sub/00",
        "..",
    ];
    Ok(match u.ratio(1, 8)? {
        true => u.arbitrary::<&str>()?.to_owned(),
        false => (*u.choose(&names)?).to_owned(),
    })
}

fn schemas(u: &mut Unstructured<'_>) -> Result<Schemas> {
    let mut schemas = u.choose(&Port::ALL)?.contract().schemas();
    if u.ratio(1, 2)? && !schemas.request.is_empty() {
        let at = u.choose_index(schemas.request.len())?;
        schemas.request[at] = u.arbitrary()?;
    }
    if u.ratio(1, 4)? {
        schemas.answers.push(u.arbitrary::<&[u8]>()?.to_vec());
    }
    Ok(schemas)
}

pub(super) fn control(u: &mut Unstructured<'_>) -> Result<Control> {
    let lane = u.int_in_range(0..=map::MOST_LANES)?;
    Ok(match u.int_in_range(0..=19)? {
        0 => Control::Hello {
            layout: LAYOUT_VERSION + u32::from(u.ratio(1, 8)?),
            barrier: u.arbitrary()?,
        },
        1 => Control::Segment {
            id: u.int_in_range(0..=5)?,
            len: match u.ratio(1, 2)? {
                true => PAGE * u.int_in_range(0..=50)?,
                false => u.arbitrary()?,
            },
        },
        2 => Control::Bell {
            bell: u.int_in_range(0..=3)?,
        },
        3 => Control::Retired {
            id: u.int_in_range(0..=5)?,
        },
        4..=7 => {
            let port = *u.choose(&Port::ALL)?;
            let other = *u.choose(&Port::ALL)?;
            let is_other = u.ratio(1, 16)?;
            let types = if is_other { other } else { port };
            Control::Open {
                lane: if u.ratio(1, 8)? { u.arbitrary()? } else { lane },
                name: if u.ratio(1, 8)? {
                    name(u)?
                } else {
                    port.name()
                },
                from: port.is_topic().then_some(u.int_in_range(0..=3)?),
                types: match u.ratio(1, 16)? {
                    true => Types {
                        request: u.arbitrary()?,
                        answers: vec![u.arbitrary()?],
                    },
                    false => types.contract().types(),
                },
                end: spoiled_end(u, end(port, lane, false))?,
            }
        }
        8 | 9 => {
            let port = *u.choose(&Port::ALL)?;
            let end = spoiled_end(u, end(port, lane, true))?;
            Control::Opened { lane, end }
        }
        10 => {
            let why = match u.int_in_range(0..=2)? {
                0 => Refusal::NoServer,
                1 => Refusal::Layout(schemas(u)?),
                _ => Refusal::NoMemory,
            };
            Control::Refused { lane, why }
        }
        11 => Control::Differs {
            name: name(u)?,
            schemas: schemas(u)?,
        },
        12 => Control::Closed {
            lane,
            mine: u.arbitrary()?,
        },
        13 => Control::Released {
            lane,
            mine: u.arbitrary()?,
        },
        14 => Control::Ring {
            bell: u.int_in_range(0..=5)?,
        },
        15 | 16 => Control::Serving { name: name(u)? },
        17 => Control::Gone { name: name(u)? },
        18 => Control::Joined {
            name: name(u)?,
            lane,
        },
        _ => Control::Bye,
    })
}
