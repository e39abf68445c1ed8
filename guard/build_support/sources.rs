//! The hash of the sources that the committed eBPF object was built from. Shared, as a file, by guard's build script
//! and by `cargo xtask ebpf`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Relative to the repository, in the order in which they are hashed. Directories stand for all files below them.
const SOURCES: [&str; 5] =
    ["guard-common/Cargo.toml", "guard-common/src", "guard-ebpf/Cargo.lock", "guard-ebpf/Cargo.toml", "guard-ebpf/src"];

/// Every source file, relative to the repository, sorted.
pub fn files(repository: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(repository, Path::new(source), &mut files)?;
    }
    files.sort();
    Ok(files)
}

/// Over each file's name (with `/`), length and bytes, as lower-case hexadecimal.
pub fn hash(repository: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    for file in files(repository)? {
        let name: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
        let bytes = fs::read(repository.join(&file))?;
        hash.update(name.join("/"));
        hash.update([0]);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    }
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of some bytes, as lower-case hexadecimal.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn collect(repository: &Path, source: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let path = repository.join(source);
    if !path.is_dir() {
        files.push(source.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        // Editors leave files beside the sources.
        if source.join(&name).extension().is_some_and(|extension| extension == "rs")
            || repository.join(source).join(&name).is_dir()
        {
            collect(repository, &source.join(&name), files)?;
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
