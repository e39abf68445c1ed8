//! The way of a record: the kernel's flow tables (the truth) and its ring buffer (the doorbell) to lines that others
//! can read.

pub mod community_id;
