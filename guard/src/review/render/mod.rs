//! A report in its four forms. Each makes what came from outside harmless in its own way.

pub mod html;
pub mod json;
pub mod markdown;
pub mod text;
