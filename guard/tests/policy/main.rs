//! The front end of policies, from the outside: what it refuses, what it warns of, how that looks.

mod command;
mod docs;
mod errors;
mod files;
mod golden;
mod hostile;
mod shipped;
mod warnings;
