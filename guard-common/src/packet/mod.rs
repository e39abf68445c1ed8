//! Bytes to a packet. (In work.)
