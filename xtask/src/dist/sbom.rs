//! What the binary is made of, in CycloneDX: the crates by `cargo-cyclonedx`, which asks cargo; what is no crate by us.
//! Without the time, the place and the chance of the run.

use super::{Build, binary::TARGET, libpcap::Library};
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const TOOL: &str = "cargo-cyclonedx";
const TOOL_VERSION: &str = "0.5.9";

/// For the crates of the committed eBPF object, which is in the binary too.
const PROGRAMS: &str = "bpfel-unknown-none";

pub const FILE: &str = "guard.cdx.json";

/// `copy`: of the sources, in a folder of its own, since the tool writes beside each manifest.
pub fn build(
    build: &Build,
    copy: &Path,
    library: &Library,
    guard: &Path,
    linked: &BTreeSet<(String, String)>,
) -> Result<String> {
    let tool = tool()?;
    let ask = |package: &str, target: &str| -> Result<Value> {
        let mut command = Command::new(&tool);
        command
            .env("CARGO", std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["cyclonedx", "--quiet", "--format", "json", "--spec-version", "1.5", "--no-build-deps"])
            .args(["--target", target, "--override-filename", "sbom"])
            .arg("--manifest-path")
            .arg(copy.join(package).join("Cargo.toml"))
            // The commit's time, and no random number.
            .env("SOURCE_DATE_EPOCH", &build.time);
        shell::output(&mut command)?;
        let text = std::fs::read_to_string(copy.join(package).join("sbom.json"))?;
        let moved = text.replace(&format!("path+file://{}", copy.display()), "path+file:///guard");
        Ok(serde_json::from_str(&moved)?)
    };
    let mut sbom = ask("guard", TARGET)?;
    let programs = ask("guard-ebpf", PROGRAMS)?;
    complete(&sbom, linked)?;
    add(&mut sbom, &programs, &others(build, library)?)?;
    let bytes = std::fs::read(guard)?;
    sbom["metadata"]["component"]["hashes"] = json!([{ "alg": "SHA-256", "content": hash(&bytes) }]);
    let text = serde_json::to_string_pretty(&sbom)? + "\n";
    for place in [copy.display().to_string(), build.sources.display().to_string(), home()?] {
        ensure!(!text.contains(&place), "the SBOM names a folder of this machine: {place}");
    }
    Ok(text)
}

/// It must name every crate that cargo linked in.
fn complete(sbom: &Value, linked: &BTreeSet<(String, String)>) -> Result<()> {
    let mut named: BTreeSet<(String, String)> = components(sbom)?.iter().filter_map(name_and_version).collect();
    named.extend(name_and_version(&sbom["metadata"]["component"]));
    let missing: Vec<_> = linked.difference(&named).map(|(name, version)| format!("{name} {version}")).collect();
    ensure!(missing.is_empty(), "linked in, and not in the SBOM: {}", missing.join(", "));
    Ok(())
}

fn components(sbom: &Value) -> Result<&Vec<Value>> {
    sbom["components"].as_array().context("an SBOM without components")
}

fn name_and_version(component: &Value) -> Option<(String, String)> {
    Some((component["name"].as_str()?.to_owned(), component["version"].as_str()?.to_owned()))
}

/// What is in the binary and is no crate.
fn others(build: &Build, library: &Library) -> Result<Vec<Value>> {
    let object = std::fs::read(build.sources.join("guard/ebpf/guard.bpf.o"))?;
    let mut others = vec![
        component("libpcap", &library.version, "BSD-3-Clause"),
        component("glibc", &c_library()?, "LGPL-2.1-or-later"),
        component("rust-std", &rust()?, "MIT OR Apache-2.0"),
    ];
    if let Some(version) = sqlite(build)? {
        others.push(component("sqlite", &version, "blessing"));
    }
    let mut file = component("guard.bpf.o", env!("CARGO_PKG_VERSION"), "MIT OR GPL-2.0-only");
    file["type"] = json!("file");
    file["hashes"] = json!([{ "alg": "SHA-256", "content": hash(&object) }]);
    others.push(file);
    Ok(others)
}

/// Debian's version of the one that is linked in.
fn c_library() -> Result<String> {
    let said = shell::output(Command::new("dpkg-query").args(["-W", "-f", "${Version}\\n", "libc6-dev"]))?;
    Ok(said.lines().next().context("libc6-dev is not installed")?.to_owned())
}

/// "1.95.0".
fn rust() -> Result<String> {
    let said = shell::output(Command::new("rustc").arg("--version"))?;
    Ok(said.split_whitespace().nth(1).context("rustc says no version")?.to_owned())
}

fn component(name: &str, version: &str, licence: &str) -> Value {
    let reference = format!("pkg:generic/{name}@{version}");
    json!({
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "licenses": [{ "expression": licence }],
        "purl": reference,
    })
}

/// As the sources say it that the crate brings along.
fn sqlite(build: &Build) -> Result<Option<String>> {
    let mut metadata = shell::cargo();
    metadata.current_dir(&build.sources).args(["metadata", "--format-version", "1", "--locked"]);
    let metadata: Value = serde_json::from_str(&shell::output(&mut metadata)?)?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let manifest = packages.iter().find(|package| package["name"] == "libsqlite3-sys");
    let Some(manifest) = manifest.and_then(|package| package["manifest_path"].as_str()) else { return Ok(None) };
    let header = Path::new(manifest).with_file_name("sqlite3").join("sqlite3.h");
    let header = std::fs::read_to_string(&header).with_context(|| header.display().to_string())?;
    let version =
        header.lines().find_map(|line| line.strip_prefix("#define SQLITE_VERSION ")?.trim().split('"').nth(1));
    Ok(Some(version.context("sqlite3.h says no version")?.to_owned()))
}

/// The object depends on its crates, and the binary on all of it.
fn add(sbom: &mut Value, programs: &Value, others: &[Value]) -> Result<()> {
    let root = reference(&sbom["metadata"]["component"])?;
    let object = others.last().context("no object")?;
    let mut known: BTreeSet<String> = components(sbom)?.iter().map(reference).collect::<Result<_>>()?;
    let of_programs: Vec<String> = components(programs)?.iter().map(reference).collect::<Result<_>>()?;
    let new: Vec<Value> = components(programs)?.iter().chain(others).cloned().collect();
    let list = sbom["components"].as_array_mut().context("an SBOM without components")?;
    for component in new {
        if known.insert(reference(&component)?) {
            list.push(component);
        }
    }
    let dependencies = sbom["dependencies"].as_array_mut().context("an SBOM without dependencies")?;
    let of_root =
        dependencies.iter_mut().find(|entry| entry["ref"] == root.as_str()).context("no dependencies of guard")?;
    for other in others {
        of_root["dependsOn"].as_array_mut().context("guard depends on nothing")?.push(json!(reference(other)?));
    }
    dependencies.push(json!({ "ref": reference(object)?, "dependsOn": of_programs }));
    Ok(())
}

fn reference(component: &Value) -> Result<String> {
    Ok(component["bom-ref"].as_str().context("a component without a name for references")?.to_owned())
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn home() -> Result<String> {
    std::env::var("HOME").context("no HOME")
}

/// The one that an earlier run installed; else installs it there, without optimisation: it runs for a second.
fn tool() -> Result<PathBuf> {
    let root = shell::target().join("tools");
    let path = root.join("bin").join(TOOL);
    let usable = || {
        let version = shell::output(Command::new(&path).args(["cyclonedx", "--version"])).unwrap_or_default();
        version.trim().ends_with(&format!(" {TOOL_VERSION}"))
    };
    if !usable() {
        println!("{TOOL} {TOOL_VERSION} is not here: building it");
        let mut install = shell::cargo();
        install.args([
            "install",
            TOOL,
            "--locked",
            "--debug",
            "--quiet",
            "--force",
            "--version",
            TOOL_VERSION,
            "--root",
        ]);
        let ended = shell::run(install.arg(&root), Duration::from_secs(1200))?;
        ensure!(ended.good && usable(), "{TOOL} does not build ({})", ended.how);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sbom() -> Value {
        json!({
            "metadata": { "component": { "bom-ref": "g", "name": "guard", "version": "1" } },
            "components": [{ "bom-ref": "a", "name": "a", "version": "1" }],
            "dependencies": [{ "ref": "g", "dependsOn": ["a"] }],
        })
    }

    #[test]
    fn a_crate_that_is_not_named_is_found() {
        let linked = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
        complete(&sbom(), &linked(&["a", "guard"])).unwrap();
        let error = complete(&sbom(), &linked(&["a", "b"])).unwrap_err();
        assert_eq!(error.to_string(), "linked in, and not in the SBOM: b 1");
    }

    #[test]
    fn what_is_added_stands_once_and_is_depended_on() {
        let mut sbom = sbom();
        let programs = json!({ "components": [
            { "bom-ref": "a", "name": "a", "version": "1" },
            { "bom-ref": "p", "name": "p", "version": "1" },
        ] });
        add(&mut sbom, &programs, &[component("object", "1", "MIT")]).unwrap();
        let names: Vec<_> = components(&sbom).unwrap().iter().map(|component| component["name"].clone()).collect();
        assert_eq!(names, ["a", "p", "object"]);
        let object = "pkg:generic/object@1";
        assert_eq!(sbom["dependencies"][0]["dependsOn"], json!(["a", object]));
        assert_eq!(sbom["dependencies"][1], json!({ "ref": object, "dependsOn": ["a", "p"] }));
    }
}
