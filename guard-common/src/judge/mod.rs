//! The way of one packet. (In work.)
