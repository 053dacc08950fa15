//! What two ports agree on before a lane opens between them: the layouts of all that goes over it.

use crate::lane::Form;
#[cfg(feature = "json")]
use crate::link::flight::Carried;
use crate::link::wire::{Schemas, Types};
use crate::message::{Layout, ShmMessage, ShmRequest, layout_of};
use crate::schema::{Difference, Schema, diff};

/// See the module.
#[derive(Clone)]
pub(crate) struct Contract {
    /// What the port receives.
    request: &'static Layout,
    /// What it answers with: replies, items and errors. Nothing, where it does not.
    answers: Vec<&'static Layout>,
    form: Form,
}

impl Contract {
    /// Of a port that receives `T`, and answers nothing.
    pub(crate) fn one_way<T: ShmMessage>() -> Contract {
        Contract {
            request: layout_of::<T>(),
            answers: Vec::new(),
            form: Form::OneWay,
        }
    }

    /// Of a subscriber to a topic of `T`.
    pub(crate) fn topic<T: ShmMessage>() -> Contract {
        Contract {
            form: Form::Topic,
            ..Contract::one_way::<T>()
        }
    }

    /// Of one who reads the newest values of `T`.
    pub(crate) fn latest<T: ShmMessage>() -> Contract {
        Contract {
            form: Form::Latest,
            ..Contract::one_way::<T>()
        }
    }

    /// Of a port that answers `R`.
    pub(crate) fn service<R: ShmRequest>() -> Contract {
        Contract {
            request: layout_of::<R>(),
            answers: vec![
                layout_of::<R::Reply>(),
                layout_of::<R::Item>(),
                layout_of::<R::Error>(),
            ],
            form: Form::Call,
        }
    }

    /// Which kind of lanes lead to the port.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Whether the port answers.
    pub(crate) fn replies(&self) -> bool {
        !self.answers.is_empty()
    }

    /// The alignment of what the port receives, and of all that it answers with.
    pub(crate) fn aligns(&self) -> (usize, usize) {
        if self.form == Form::Latest {
            // Only the number of an entry goes over the lane.
            return (align_of::<u64>(), align_of::<u64>());
        }
        let answers = self.answers.iter().map(|layout| layout.align);
        (
            self.request.align,
            answers.max().unwrap_or(self.request.align),
        )
    }

    /// Whether what the port receives may refer to pins, and whether any of what it answers with may.
    pub(crate) fn holds_pins(&self) -> (bool, bool) {
        let mut answers = self.answers.iter();
        (
            self.request.holds_pins,
            answers.any(|layout| layout.holds_pins),
        )
    }

    /// What goes over its lanes, for the flight recorder.
    #[cfg(feature = "json")]
    pub(crate) fn carried(&self) -> Carried {
        Carried {
            request: self.request,
            answers: self.answers.clone(),
            numbers: self.form == Form::Latest,
        }
    }

    /// By which the two sides compare their contracts.
    pub(crate) fn types(&self) -> Types {
        Types {
            request: self.request.fingerprint,
            answers: self
                .answers
                .iter()
                .map(|layout| layout.fingerprint)
                .collect(),
        }
    }

    /// With which they explain a difference.
    pub(crate) fn schemas(&self) -> Schemas {
        Schemas {
            request: self.request.schema.to_bytes(),
            answers: self
                .answers
                .iter()
                .map(|layout| layout.schema.to_bytes())
                .collect(),
        }
    }

    /// How the schemas of a peer differ from ours.
    pub(crate) fn differences(&self, theirs: &Schemas) -> Vec<Difference> {
        let ours = std::iter::once(&self.request).chain(&self.answers);
        let theirs = std::iter::once(&theirs.request).chain(&theirs.answers);
        ours.zip(theirs)
            .filter_map(|(ours, theirs)| {
                Some(diff(&ours.schema, &Schema::from_bytes(theirs).ok()?))
            })
            .flatten()
            .collect()
    }
}
