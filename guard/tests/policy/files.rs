//! Policies of several files: includes, lists, who may write them.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use guard::policy::{Loaded, diagnostics::Diagnostics, load};
use tempfile::TempDir;

fn write(directory: &TempDir, name: &str, text: &str) {
    let path = directory.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
}

fn load_main(directory: &TempDir) -> Result<Loaded, Diagnostics> {
    load(&directory.path().join("policy.yaml"))
}

#[track_caller]
fn codes(found: &Diagnostics) -> Vec<&'static str> {
    found.list.iter().map(|d| d.code).collect()
}

const MAIN: &str = "version: 1\nmode: audit\ninclude: [parts/base.yaml]\ninbound: []\noutbound:\n  - { name: last, to: office, services: https }\n";

#[test]
fn an_include_is_a_union_and_its_rules_come_first() {
    let directory = TempDir::new().unwrap();
    write(&directory, "policy.yaml", MAIN);
    write(
        &directory,
        "parts/base.yaml",
        "version: 1\ngroups:\n  office: { file: office.txt }\noutbound:\n  - { name: first, to: office, services: ssh }\n",
    );
    write(&directory, "parts/office.txt", "10.0.0.1\n10.0.0.2 # printer\n");
    let policy = load_main(&directory).unwrap_or_else(|found| panic!("{}", found.render(false))).policy;
    let labels: Vec<_> = policy.rules.iter().map(|rule| rule.label()).collect();
    assert_eq!(labels, ["first", "last"]);
    assert_eq!(policy.rules[1].remote.set.v4, [(0x0a00_0001, 0x0a00_0002)]);
    let files: Vec<_> = policy.files.iter().map(|f| f.strip_prefix(directory.path()).unwrap().to_owned()).collect();
    assert_eq!(files, [Path::new("policy.yaml"), Path::new("parts/base.yaml"), Path::new("parts/office.txt")]);
    // Every file counts into the hash.
    let before = policy.sha256;
    write(&directory, "parts/office.txt", "10.0.0.1\n10.0.0.3\n");
    assert_ne!(load_main(&directory).unwrap().policy.sha256, before);
}

#[test]
fn names_that_two_files_define_show_both_places() {
    let directory = TempDir::new().unwrap();
    write(&directory, "policy.yaml", MAIN);
    write(
        &directory,
        "parts/base.yaml",
        "version: 1\ngroups: { office: 10.0.0.1 }\noutbound:\n  - { name: last, to: office, services: ssh }\n",
    );
    let found = load_main(&directory).unwrap_err();
    assert_eq!(codes(&found), ["duplicate_name"]);
    let (again, first) = (found.list[0].excerpt.as_ref().unwrap(), &found.list[0].also[0].0);
    assert!(again.place.file.ends_with("policy.yaml") && again.place.line == 6);
    assert!(first.place.file.ends_with("parts/base.yaml") && first.place.line == 4);
}

#[test]
fn includes_that_cannot_be() {
    let directory = TempDir::new().unwrap();
    let main = "version: 1\nmode: audit\ninclude: [a.yaml]\ninbound: []\noutbound: []\n";
    write(&directory, "policy.yaml", main);
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["file_missing"]);
    write(&directory, "a.yaml", "version: 1\ninclude: b.yaml\n");
    write(&directory, "b.yaml", "version: 1\ninclude: [policy.yaml, a.yaml]\n");
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["include_cycle", "include_cycle"]);
    for n in 0..20 {
        write(&directory, &format!("c{n}.yaml"), &format!("version: 1\ninclude: c{}.yaml\n", n + 1));
    }
    write(&directory, "a.yaml", "version: 1\ninclude: c0.yaml\n");
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["too_many_includes"]);
    write(&directory, "a.yaml", "version: 1\nmode: enforce\n");
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["mode_in_include"]);
    write(&directory, "a.yaml", "version: 1\non_deny: { outbound: drop }\n");
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["on_deny_in_include"]);
    write(&directory, "a.yaml", "version: 1\ncontainer_host: guard\n");
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["container_host_in_include"]);
    write(&directory, "a.yaml", "version: 1\nessentials: { dhcp: false }\n");
    write(&directory, "policy.yaml", &format!("{main}essentials: {{ dhcp: true }}\n"));
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["essential_conflict"]);
    // Two ways to one file are no mistake.
    write(&directory, "policy.yaml", &main.replace("[a.yaml]", "[a.yaml, b.yaml, ./a.yaml]"));
    write(&directory, "b.yaml", "version: 1\ninclude: a.yaml\n");
    assert!(load_main(&directory).is_ok());
}

#[test]
fn lists() {
    let directory = TempDir::new().unwrap();
    let main = "version: 1\nmode: audit\ngroups:\n  m: { file: m.txt }\ninbound: []\noutbound:\n  - { to: m, services: https }\n";
    write(&directory, "policy.yaml", main);
    write(&directory, "m.txt", "# nothing yet\n\n");
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["empty_list"]);
    write(&directory, "policy.yaml", &main.replace("m.txt }", "m.txt, allow_empty: true }"));
    assert!(load_main(&directory).unwrap().policy.rules[0].remote.set.is_empty());
    write(&directory, "m.txt", "10.0.0.1\n10.0.0.9/8\n");
    let found = load_main(&directory).unwrap_err();
    assert_eq!(codes(&found), ["host_bits"]);
    let excerpt = found.list[0].excerpt.as_ref().unwrap();
    assert!(excerpt.place.file.ends_with("m.txt") && excerpt.place.line == 2 && excerpt.place.column == 1);
    fs::remove_file(directory.path().join("m.txt")).unwrap();
    fs::create_dir(directory.path().join("m.txt")).unwrap();
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["file_unreadable"]);
}

#[test]
fn as_root_files_that_others_can_write_are_refused() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let directory = TempDir::new().unwrap();
    let main = "version: 1\nmode: audit\ngroups:\n  m: { file: m.txt }\ninbound: []\noutbound:\n  - { to: m, services: https }\n";
    let mode = |name: &str, mode: u32| {
        fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    write(&directory, "policy.yaml", main);
    write(&directory, "m.txt", "10.0.0.1\n");
    assert!(load_main(&directory).is_ok());
    for bad in [0o666, 0o664, 0o646] {
        mode("policy.yaml", bad);
        assert_eq!(codes(&load_main(&directory).unwrap_err()), ["file_writable"]);
    }
    mode("policy.yaml", 0o600);
    mode("m.txt", 0o622);
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["file_writable"]);
    mode("m.txt", 0o600);
    // Whoever can write the directory can put another file there.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["file_writable"]);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(directory.path().join("m.txt"), Some(65534), None).unwrap();
    assert_eq!(codes(&load_main(&directory).unwrap_err()), ["file_writable"]);
    // A link in a directory that others can write leads where they want.
    std::os::unix::fs::chown(directory.path().join("m.txt"), Some(0), None).unwrap();
    let open = directory.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink(directory.path().join("policy.yaml"), open.join("policy.yaml")).unwrap();
    assert_eq!(codes(&load(&open.join("policy.yaml")).unwrap_err()), ["file_writable"]);
    assert!(load_main(&directory).is_ok());
}
