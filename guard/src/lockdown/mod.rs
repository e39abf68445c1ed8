//! `guard lockdown`: contain this host, and lose neither the host nor the person who sits on it.
//!
//! In the order in which it happens: who carries this terminal ([`way_in`]), what is offered to stay ([`offers`]), the
//! policy that comes of it ([`base`]), what the cut will harm ([`harm`]), and all of it on one screen ([`plan`]).

pub mod act;
pub mod afterwards;
pub mod base;
pub mod countdown;
pub mod destroy;
pub mod detach;
pub mod evidence;
pub mod harm;
pub mod listed;
pub mod logins;
pub mod mark;
pub mod marker;
pub mod offers;
pub mod packages;
pub mod plan;
pub mod prepare;
pub mod selftest;
pub mod service;
pub mod sessions;
pub mod way_in;
