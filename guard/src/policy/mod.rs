//! The way of a policy: YAML as written (`yaml`) → typed and checked ([`model`]) → tables (`compile`).
//!
//! Pure: reads the policy's files and nothing else; the kernel is not asked.

pub mod compile;
pub mod model;
pub mod nearest;
