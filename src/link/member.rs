//! Names of those who take part in a topic.
//!
//! A topic has any number of publishers and subscribers. Each has a number there that no other of its part has
//! on the bus, and that is used again. `topic/sub/7` is its name in books and control messages, which no
//! service can have; `topic~7.sub` is its file.

use std::ffi::OsStr;

use super::place::check_name;

/// What somebody does on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Subscriber,
    Publisher,
    /// Who reads newest values, and who publishes them: their names are told apart from those of topics.
    Reader,
    Writer,
}

impl Part {
    pub(super) const ALL: [Part; 4] = [
        Part::Subscriber,
        Part::Publisher,
        Part::Reader,
        Part::Writer,
    ];

    /// Whether others open lanes to it.
    pub(super) fn receives(self) -> bool {
        matches!(self, Part::Subscriber | Part::Reader)
    }

    /// The ending of its file.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Part::Subscriber => "sub",
            Part::Publisher => "pub",
            Part::Reader => "get",
            Part::Writer => "put",
        }
    }
}

/// Somebody who takes part in a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Member {
    pub(crate) topic: String,
    pub(crate) part: Part,
    pub(crate) number: u32,
}

impl Member {
    pub(crate) fn new(topic: &str, part: Part, number: u32) -> Member {
        Member {
            topic: topic.to_owned(),
            part,
            number,
        }
    }

    /// Its name in books and control messages.
    pub(crate) fn name(&self) -> String {
        let Member {
            topic,
            part,
            number,
        } = self;
        format!("{topic}/{}/{number}", part.ending())
    }

    /// Reads a name.
    pub(crate) fn parse(name: &str) -> Option<Member> {
        let (rest, number) = name.rsplit_once('/')?;
        let (topic, part) = rest.rsplit_once('/')?;
        Member::checked(topic, part, number)
    }

    /// The name of its file.
    pub(super) fn file(&self) -> String {
        let Member {
            topic,
            part,
            number,
        } = self;
        format!("{topic}~{number}.{}", part.ending())
    }

    /// Reads the name of a file; `None` where it is another's.
    pub(super) fn of_file(file: &OsStr) -> Option<Member> {
        let (rest, part) = file.to_str()?.rsplit_once('.')?;
        let (topic, number) = rest.rsplit_once('~')?;
        Member::checked(topic, part, number)
    }

    fn checked(topic: &str, part: &str, number: &str) -> Option<Member> {
        let part = Part::ALL.into_iter().find(|known| known.ending() == part)?;
        let member = Member::new(topic, part, number.parse().ok()?);
        // Numbers are written in one way only.
        let is_plain = member.number.to_string() == number;
        (is_plain && check_name(topic).is_ok()).then_some(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_survive_their_names() {
        for topic in ["progress", "a~1", "a.sub", "sub", "x~2.sub"] {
            for part in Part::ALL {
                let member = Member::new(topic, part, 17);
                assert_eq!(Member::parse(&member.name()), Some(member.clone()));
                let file = member.file();
                assert_eq!(Member::of_file(OsStr::new(&file)), Some(member));
            }
        }
    }

    #[test]
    fn other_names_are_no_members() {
        for name in [
            "",
            "a",
            "a/sub",
            "a/sub/",
            "a/sub/x",
            "a/sub/01",
            "a/top/1",
            "/sub/1",
            "a/b/sub/1",
        ] {
            assert_eq!(Member::parse(name), None, "{name}");
        }
        for file in [
            "a.port", "a.sub", "a~.sub", "a~1.port", "~1.sub", "node-1-2", "a~-1.sub",
        ] {
            assert_eq!(Member::of_file(OsStr::new(file)), None, "{file}");
        }
    }
}
