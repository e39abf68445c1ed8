//! One decision: a [`Question`] to a [`Decision`], by look-ups in the tables of one generation.
//!
//! # Tables
//!
//! A generation is one array of 64-byte [`Node`]s. Its rules are compiled (in `guard`, `policy/compile`) to an
//! interval decision diagram (Christiansen and Fleury, "Using IDDs for Packet Filtering", 2002; the sharing of rows is
//! that of Gupta and McKeown's recursive flow classification, 1999): a chain of *stages*, each of which looks at one
//! 32-bit [word](Word) of the question, finds the interval that holds it and goes on to that interval's [`Target`],
//! which is a further stage or the end. Equal parts are shared. A stage is found in constant time: an index on the top
//! bits of the word gives a bucket of a few lines, a binary search inside the bucket gives the interval.
//!
//! [`layout`] describes the nodes, [`lookup`] finds, [`Outcome`] is what a flow keeps.

mod layout;
mod lookup;
mod outcome;

pub use layout::{Descriptor, Entry, Header, Line, NODE_WORDS, Node, Target, Timed, Word, root_node};
pub use lookup::{Decision, Question, Subject, decide, local_class};
pub use outcome::{NO_RULE, Outcome};

/// One generation's nodes. In the kernel an inner map of the array of maps; in userspace a slice.
pub trait Tables {
    /// `None` is a fault: the caller denies with [`crate::Reason::TableFault`].
    fn node(&self, index: u32) -> Option<&Node>;
}

impl Tables for [Node] {
    fn node(&self, index: u32) -> Option<&Node> {
        self.get(index as usize)
    }
}
