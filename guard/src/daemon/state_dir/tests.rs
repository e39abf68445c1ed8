use std::time::Duration;

use super::*;

fn manifest(source: &Path, generation: u32) -> Manifest {
    Manifest::new("web".to_owned(), "00ff".to_owned(), generation, source.to_owned(), false, 5)
}

#[test]
fn a_policy_and_the_one_before_it_are_kept_with_all_their_files() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("lists")).unwrap();
    let (policy, list) = (home.path().join("policy.yaml"), home.path().join("lists/mirrors.txt"));
    fs::write(&list, "192.0.2.1\n").unwrap();
    let state = StateDir::create(&home.path().join("state")).unwrap();
    assert_eq!(state.manifest(Kept::Active).unwrap(), None);

    for (generation, text) in [(1, "one"), (2, "two")] {
        fs::write(&policy, text).unwrap();
        let manifest = manifest(&policy, generation);
        state.prepare(&manifest, &[policy.clone(), list.clone()]).unwrap();
        state.promote(&manifest).unwrap();
    }
    let active = state.manifest(Kept::Active).unwrap().unwrap();
    assert_eq!(active.generation, 2);
    let copy = state.policy_file(Kept::Active, &active);
    assert_eq!(fs::read_to_string(&copy).unwrap(), "two");
    assert_eq!(fs::read_to_string(copy.with_file_name("lists/mirrors.txt")).unwrap(), "192.0.2.1\n");

    state.roll_back().unwrap();
    let active = state.manifest(Kept::Active).unwrap().unwrap();
    assert_eq!((active.generation, state.manifest(Kept::Previous).unwrap()), (1, None));
    assert_eq!(fs::read_to_string(state.policy_file(Kept::Active, &active)).unwrap(), "one");
    state.roll_back().unwrap();
    assert_eq!(state.manifest(Kept::Active).unwrap(), None);
}

#[test]
fn what_was_only_prepared_is_not_active() {
    let home = tempfile::tempdir().unwrap();
    let policy = home.path().join("policy.yaml");
    fs::write(&policy, "x").unwrap();
    let state = StateDir::create(&home.path().join("state")).unwrap();
    state.prepare(&manifest(&policy, 1), std::slice::from_ref(&policy)).unwrap();
    assert_eq!(state.manifest(Kept::Active).unwrap(), None);
    state.forget().unwrap();
    assert_eq!(state.manifest(Kept::Next).unwrap(), None);
}

#[test]
fn locks_are_exclusive_and_end_with_their_holder() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::create(home.path()).unwrap();
    let held = state.lock().unwrap();
    assert!(matches!(state.lock_within(Duration::ZERO), Err(StateError::Busy { .. })));
    drop(held);
    state.lock().unwrap();
    assert!(!state.daemon_runs().unwrap());
    let _daemon = state.lock_daemon().unwrap().unwrap();
    assert!(state.daemon_runs().unwrap());
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(StateDir::create(home.path()), Err(StateError::Unsafe { .. })));
}

#[test]
fn a_damaged_manifest_is_told_as_such() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::create(home.path()).unwrap();
    fs::create_dir(home.path().join("active")).unwrap();
    fs::write(home.path().join("active/manifest.json"), "{").unwrap();
    assert!(matches!(state.manifest(Kept::Active), Err(StateError::Damaged { .. })));
}

#[test]
fn mirrored_paths_stay_inside() {
    assert_eq!(mirrored(Path::new("/s"), Path::new("/etc/guard/../a.yaml")), Path::new("/s/etc/a.yaml"));
    assert_eq!(mirrored(Path::new("/s"), Path::new("../../a.yaml")), Path::new("/s/a.yaml"));
}

#[test]
fn what_held_before_two_steps_can_be_put_back() {
    let home = tempfile::tempdir().unwrap();
    let source = home.path().join("one.yaml");
    fs::write(&source, "one").unwrap();
    let state = StateDir::create(&home.path().join("state")).unwrap();
    let publish = |generation| {
        let manifest = manifest(&source, generation);
        state.prepare(&manifest, std::slice::from_ref(&source)).unwrap();
        state.promote(&manifest).unwrap();
    };
    publish(1);
    state.keep_before().unwrap();
    publish(2);
    publish(3);
    state.put_back_before().unwrap();
    let active = state.manifest(Kept::Active).unwrap().unwrap();
    assert_eq!(active.generation, 1);
    assert_eq!(fs::read_to_string(state.policy_file(Kept::Active, &active)).unwrap(), "one");
    assert_eq!(state.manifest(Kept::Previous).unwrap(), None);
    // What is damaged is put aside, in place of an older one.
    for _ in 0..2 {
        publish(4);
        let aside = state.put_aside().unwrap();
        assert!(aside.join("manifest.json").exists() && !state.in_force());
    }
}
