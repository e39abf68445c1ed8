use super::*;
use crate::daemon::fake::{FakeEngine, empty_picture, policy_in};

fn asked<'a>(policy: &'a Policy, source: &'a Path) -> Change<'a> {
    Change { within: Within::ByTerminal, ..Change::new(policy, source) }
}

#[test]
fn publishes_reads_back_and_keeps() {
    let home = tempfile::tempdir().unwrap();
    let (policy, source) = policy_in(home.path(), "one", Mode::Enforce);
    let state = StateDir::create(&home.path().join("state")).unwrap();
    let mut engine = FakeEngine::default();
    let changed = change(&mut engine, &state, &empty_picture(), &asked(&policy, &source)).unwrap();
    assert!(changed.published);
    assert_eq!((changed.generation, changed.confirm_within), (1, None));
    let kept = state.manifest(Kept::Active).unwrap().unwrap();
    assert_eq!((kept.generation, kept.name.as_str()), (1, "one"));
    assert_eq!(in_force(&engine.read_back().unwrap()).unwrap().1, 1);
}

#[test]
fn a_dry_run_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (policy, source) = policy_in(home.path(), "one", Mode::Enforce);
    let state = StateDir::create(&home.path().join("state")).unwrap();
    let mut engine = FakeEngine::default();
    let mut asked = asked(&policy, &source);
    asked.dry_run = true;
    let changed = change(&mut engine, &state, &empty_picture(), &asked).unwrap();
    assert!(!changed.published);
    assert_eq!(in_force(&engine.read_back().unwrap()), None);
    assert_eq!(state.manifest(Kept::Active).unwrap(), None);
}

#[test]
fn what_is_unconfirmed_blocks_the_next_change_and_comes_undone_at_its_deadline() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::create(&home.path().join("state")).unwrap();
    let mut engine = FakeEngine::default();
    let (one, source) = policy_in(home.path(), "one", Mode::Enforce);
    change(&mut engine, &state, &empty_picture(), &asked(&one, &source)).unwrap();
    let (two, source) = policy_in(home.path(), "two", Mode::Enforce);
    let mut asked_two = asked(&two, &source);
    asked_two.within = Within::For(Duration::from_secs(30));
    let changed = change(&mut engine, &state, &empty_picture(), &asked_two).unwrap();
    assert_eq!((changed.generation, changed.confirm_within), (2, Some(30)));
    let refused = change(&mut engine, &state, &empty_picture(), &asked(&one, &source)).unwrap_err();
    assert!(refused.to_string().contains("unconfirmed"), "{refused}");

    engine.pass(Duration::from_secs(31));
    assert_eq!(in_force(&engine.read_back().unwrap()).unwrap().1, 1);
    assert!(settle(&mut engine, &state).unwrap());
    assert_eq!(state.manifest(Kept::Active).unwrap().unwrap().name, "one");
    assert!(!settle(&mut engine, &state).unwrap());
}

#[test]
fn a_deadline_that_nobody_asked_for_undoes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::create(&home.path().join("state")).unwrap();
    let mut engine = FakeEngine::default();
    let (policy, source) = policy_in(home.path(), "one", Mode::Enforce);
    change(&mut engine, &state, &empty_picture(), &asked(&policy, &source)).unwrap();
    let right = engine.state.word;
    // As root could write it: over already, and then nothing.
    engine.state.word = StateWord::pending(right.active(), Slot::NONE, 1);
    assert_eq!(forged_deadline(&engine, &state).unwrap(), Some(right));
    assert!(!settle(&mut engine, &state).unwrap());
    assert_eq!((engine.state.word, state.manifest(Kept::Active).unwrap().unwrap().name.as_str()), (right, "one"));
    let told = journal::read(state.path(), None).unwrap().entries;
    assert!(told.iter().any(|entry| entry.event == Event::Alert), "{told:?}");
}

#[test]
fn a_first_policy_that_is_not_confirmed_leaves_none() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::create(&home.path().join("state")).unwrap();
    let mut engine = FakeEngine::default();
    let (policy, source) = policy_in(home.path(), "one", Mode::Enforce);
    let mut asked = asked(&policy, &source);
    asked.within = Within::For(Duration::from_secs(30));
    change(&mut engine, &state, &empty_picture(), &asked).unwrap();
    engine.roll_back().unwrap();
    follow_rollback(&engine, &state).unwrap();
    assert_eq!(in_force(&engine.read_back().unwrap()), None);
    assert_eq!(state.manifest(Kept::Active).unwrap(), None);
}

#[test]
fn a_kernel_that_did_something_else_is_not_believed() {
    let home = tempfile::tempdir().unwrap();
    let (policy, source) = policy_in(home.path(), "one", Mode::Enforce);
    let state = StateDir::create(&home.path().join("state")).unwrap();
    let mut engine = FakeEngine { forges_policy: true, ..FakeEngine::default() };
    let error = change(&mut engine, &state, &empty_picture(), &asked(&policy, &source)).unwrap_err();
    assert!(error.to_string().contains("not this policy's"), "{error}");
    assert_eq!(state.manifest(Kept::Active).unwrap(), None);
}

/// A change that waits for its confirmation, over one that is settled.
fn waiting(home: &Path) -> (StateDir, FakeEngine) {
    let state = StateDir::create(&home.join("state")).unwrap();
    let mut engine = FakeEngine::default();
    let (one, source) = policy_in(home, "one", Mode::Enforce);
    change(&mut engine, &state, &empty_picture(), &asked(&one, &source)).unwrap();
    let (two, source) = policy_in(home, "two", Mode::Enforce);
    let pending = Change { within: Within::For(Duration::from_secs(30)), ..Change::new(&two, &source) };
    change(&mut engine, &state, &empty_picture(), &pending).unwrap();
    (state, engine)
}

fn active(state: &StateDir) -> (String, bool) {
    let manifest = state.manifest(Kept::Active).unwrap().unwrap();
    (manifest.name, manifest.unconfirmed)
}

#[test]
fn what_was_unconfirmed_when_the_machine_went_down_is_over() {
    let home = tempfile::tempdir().unwrap();
    let (state, engine) = waiting(home.path());
    assert_eq!(active(&state), ("two".to_owned(), true));
    // The kernel still has it: it is not over.
    let generation = in_force(&engine.read_back().unwrap()).map(|(_, generation)| generation);
    forget_unconfirmed(&state, generation).unwrap();
    assert_eq!(active(&state), ("two".to_owned(), true));
    forget_unconfirmed(&state, None).unwrap();
    assert_eq!(active(&state), ("one".to_owned(), false));
    // What was settled stays, whatever the kernel has.
    forget_unconfirmed(&state, None).unwrap();
    assert_eq!(active(&state), ("one".to_owned(), false));
}

#[test]
fn a_first_policy_that_was_unconfirmed_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::create(&home.path().join("state")).unwrap();
    let mut engine = FakeEngine::default();
    let (policy, source) = policy_in(home.path(), "one", Mode::Enforce);
    let pending = Change { within: Within::For(Duration::from_secs(30)), ..Change::new(&policy, &source) };
    change(&mut engine, &state, &empty_picture(), &pending).unwrap();
    forget_unconfirmed(&state, None).unwrap();
    assert!(!state.in_force());
}

#[test]
fn a_confirmation_is_written_first_and_taken_back_where_the_kernel_refuses() {
    let home = tempfile::tempdir().unwrap();
    let (state, mut engine) = waiting(home.path());
    assert!(confirm(&mut engine, &state, |manifest| manifest.audit = true).unwrap().is_none());
    assert_eq!(active(&state), ("two".to_owned(), false));
    assert!(state.manifest(Kept::Active).unwrap().unwrap().audit);

    let home = tempfile::tempdir().unwrap();
    let (state, mut engine) = waiting(home.path());
    engine.roll_back().unwrap();
    assert!(confirm(&mut engine, &state, |_| ()).is_err());
    assert_eq!(active(&state), ("two".to_owned(), true), "as it was");
}

#[test]
fn what_cannot_be_written_is_confirmed_all_the_same_and_told() {
    let home = tempfile::tempdir().unwrap();
    let (state, mut engine) = waiting(home.path());
    // In the way of every new manifest, as a full disk would be.
    std::fs::create_dir(state.path().join("active/manifest.json.new")).unwrap();
    assert!(confirm(&mut engine, &state, |_| ()).unwrap().is_some());
    assert!(!engine.read_back().unwrap().state.word.is_pending());
}

#[test]
fn after_a_reboot_what_cannot_be_written_down_is_put_in_force() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::create(&home.path().join("state")).unwrap();
    let (policy, source) = policy_in(home.path(), "one", Mode::Enforce);
    let resumed = Change { resumes: true, ..Change::new(&policy, &source) };
    std::fs::write(state.path().join("next"), "in the way").unwrap();
    let mut engine = FakeEngine::default();
    assert!(change(&mut engine, &state, &empty_picture(), &asked(&policy, &source)).is_err());
    assert_eq!(in_force(&engine.read_back().unwrap()), None, "whoever can see to it is told");
    change(&mut engine, &state, &empty_picture(), &resumed).unwrap();
    assert_eq!(in_force(&engine.read_back().unwrap()).unwrap().1, 1);
}
