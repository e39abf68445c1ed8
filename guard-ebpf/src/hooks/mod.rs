//! One file a hook.

mod clock;
mod wire;
