//! What this host holds and runs, read without changing anything: sockets, processes, forwarded flows, and which
//! connection carries the terminal that asks.
