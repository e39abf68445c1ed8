//! nftables with the same allow-list: an interval set, with or without connection tracking.

use super::pair::Addresses;
use super::traffic::PORT;
use crate::lab::host::{Host, ask};
use anyhow::{Result, ensure};
use std::time::Duration;

/// Loads the rules on a host.
pub fn load(host: &Host, addresses: &Addresses, track: bool) -> Result<()> {
    let list = addresses.cidrs.join(", ");
    let established = if track { "ct state established counter accept" } else { "" };
    // As guard: both directions, by the other end's address and the service. Without tracking, replies need a rule of
    // their own.
    let rules = format!(
        "table inet bench {{
            set allowed {{ type ipv4_addr; flags interval; elements = {{ {list} }} }}
            chain inbound {{
                type filter hook input priority filter; policy drop;
                {established}
                ip saddr @allowed meta l4proto {{ tcp, udp }} th dport {PORT} counter accept
            }}
            chain outbound {{
                type filter hook output priority filter; policy drop;
                {established}
                ip daddr @allowed meta l4proto {{ tcp, udp }} th sport {PORT} counter accept
            }}
        }}\n"
    );
    let (good, text) = ask(host.command("nft").args(["-f", "-"]), &rules, Duration::from_secs(60))?;
    ensure!(good, "nft did not take the rules: {text}");
    Ok(())
}

/// Packets that the accepting rules counted: proof that they were in the way.
pub fn hits(host: &Host) -> Result<u64> {
    let mut nft = host.command("nft");
    let (good, counted) = ask(nft.args(["list", "chain", "inet", "bench", "inbound"]), "", LIMIT)?;
    ensure!(good, "nft does not list its rules");
    let mut words = counted.split_whitespace();
    let mut sum = 0;
    while let Some(word) = words.next() {
        if word == "packets" {
            sum += words.next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(sum)
}

const LIMIT: Duration = Duration::from_secs(60);

pub fn unload(host: &Host) -> Result<()> {
    let (good, _) = ask(host.command("nft").args(["delete", "table", "inet", "bench"]), "", LIMIT)?;
    ensure!(good, "nft did not take its rules away");
    Ok(())
}
