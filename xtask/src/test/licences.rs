//! The line on licences and sources that `deny.toml` draws, held over what `cargo metadata` says.
//!
//! cargo-deny reads the same file and may be run beside. It is not asked for here: to build it takes longer than all the
//! rest of a quick run, and its list of advisories comes from a network that CI does not have.

use super::Outcome;
use crate::shell;
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;

pub fn check() -> Result<Outcome> {
    let text = std::fs::read_to_string(shell::root().join("deny.toml")).context("deny.toml")?;
    let allowed = allowed(&text)?;
    let mut bad = Vec::new();
    let mut seen = BTreeSet::new();
    for manifest in ["Cargo.toml", "guard-ebpf/Cargo.toml"] {
        let json = shell::output(shell::cargo().args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--manifest-path",
            manifest,
        ]))?;
        let metadata: serde_json::Value = serde_json::from_str(&json)?;
        for package in metadata["packages"].as_array().context("cargo metadata names no packages")? {
            let name = format!("{} {}", text_of(&package["name"]), text_of(&package["version"]));
            let source = text_of(&package["source"]);
            if !seen.insert(name.clone()) {
                continue;
            }
            if !(source.is_empty() || source.starts_with("registry+") || source.starts_with("sparse+")) {
                bad.push(format!("{name}: from {source}, not from the registry"));
            }
            let licence = text_of(&package["license"]);
            if licence.is_empty() || !satisfied(licence, &allowed)? {
                bad.push(format!("{name}: licence \"{licence}\" is not on deny.toml's list"));
            }
        }
    }
    for line in &bad {
        println!("{line}");
    }
    println!("{} packages", seen.len());
    Ok(match bad.len() {
        0 => Outcome::Passed { tests: 1 },
        n => Outcome::Failed { passed: 0, failed: 1, why: format!("{n} packages over the line") },
    })
}

fn text_of(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The strings of `allow = [...]` in the section `[licenses]`.
fn allowed(text: &str) -> Result<BTreeSet<String>> {
    let section = text.split("\n[").find(|part| part.starts_with("licenses]")).context("deny.toml: no [licenses]")?;
    let list = section.split_once("allow = [").and_then(|(_, rest)| rest.split_once(']'));
    let (list, _) = list.context("deny.toml: no allow = [...] in [licenses]")?;
    Ok(list.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Whether an SPDX expression (AND binds closer than OR; WITH belongs to its licence) can be met by what is allowed.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let good = any(&tokens, &mut at, allowed, 0)?;
    if at != tokens.len() {
        bail!("licence expression \"{expression}\" does not parse");
    }
    Ok(good)
}

fn any(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>, depth: u32) -> Result<bool> {
    let mut good = every(tokens, at, allowed, depth)?;
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        good |= every(tokens, at, allowed, depth)?;
    }
    Ok(good)
}

fn every(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>, depth: u32) -> Result<bool> {
    let mut good = one(tokens, at, allowed, depth)?;
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        good &= one(tokens, at, allowed, depth)?;
    }
    Ok(good)
}

fn one(tokens: &[&str], at: &mut usize, allowed: &BTreeSet<String>, depth: u32) -> Result<bool> {
    let token = *tokens.get(*at).context("licence expression ends early")?;
    *at += 1;
    if token == "(" {
        anyhow::ensure!(depth < 16, "licence expression nests too deep");
        let good = any(tokens, at, allowed, depth + 1)?;
        anyhow::ensure!(tokens.get(*at) == Some(&")"), "licence expression lacks a )");
        *at += 1;
        return Ok(good);
    }
    let mut licence = token.to_owned();
    if tokens.get(*at) == Some(&"WITH") {
        licence = format!("{token} WITH {}", tokens.get(*at + 1).context("nothing after WITH")?);
        *at += 2;
    }
    Ok(allowed.contains(&licence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allowed: BTreeSet<String> =
            ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
        for (expression, good) in [
            ("MIT", true),
            ("GPL-2.0", false),
            ("GPL-2.0 OR MIT", true),
            ("MIT/Apache-2.0", true),
            ("MIT AND GPL-2.0", false),
            ("(MIT OR GPL-2.0) AND Apache-2.0", true),
            ("GPL-2.0 OR MIT AND GPL-3.0", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("MIT WITH LLVM-exception", false),
        ] {
            assert_eq!(satisfied(expression, &allowed).unwrap(), good, "{expression}");
        }
        for broken in ["", "MIT MIT", "(MIT", "MIT OR"] {
            assert!(satisfied(broken, &allowed).is_err(), "{broken}");
        }
    }
}
