//! A disk that is full costs records, which are counted; when there is room again, they are written again.

use std::{thread, time::Duration};

use guard::store::{Begun, FILE, Limits, Reader, Recording, Span, StoreStatus};
use guard_tests::{
    day::{NOW, Talk, program},
    skip,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

#[test]
fn a_full_disk_costs_records_that_are_counted_and_is_got_over() {
    if !skip::is_root() {
        skip::skip("store_disk a_full_disk", "mounting a tmpfs needs root");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let place = home.path().to_owned();
    // A thread of its own, with a mount namespace of its own: the tmpfs goes with it.
    let done = thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), Some("size=1m,mode=0700")).unwrap();
        let limits = Limits { age: i64::MAX / 4, ..Limits::default() };
        let recording = Recording::start(&place.join(FILE), limits, Begun { at: NOW, ..Begun::here() });
        let who = std::sync::Arc::new(program("/usr/bin/curl", 5, "root", "/bin/sh"));
        let talk = Talk::out(6, "203.0.113.9", 443, &who);
        let mut id = 0;
        let mut send = |count: u64| {
            for _ in 0..count {
                id += 1;
                recording.flow(talk.at(id, NOW + id as i64), true);
                if id % 1000 == 0 {
                    thread::sleep(Duration::from_millis(20));
                }
            }
        };
        let mut sent = 0;
        let failing = loop {
            send(500);
            sent += 500;
            let status = recording.status();
            if status.lost > 0 && status.error.is_some() {
                break status;
            }
            assert!(sent < 60_000, "the disk does not fill: {status:?}");
        };
        assert!(failing.error.as_ref().is_some_and(|error| error.contains("full")), "{failing:?}");
        assert!(failing.notices().iter().any(|notice| notice.contains("cannot be written")), "{failing:?}");
        let full = wait(&recording, |status| status.written + status.lost + status.overflow >= sent);
        mount(none, &place, none, MsFlags::MS_REMOUNT, Some("size=64m")).unwrap();
        send(5_000);
        let after = wait(&recording, |status| status.written >= full.written + 5_000);
        assert_eq!(after.error, None);
        assert!(after.notices().iter().any(|notice| notice.contains("could not be written")), "{after:?}");
        assert_eq!((after.lost, after.set_aside.len()), (full.lost, 0), "nothing is lost any more");
        drop(recording);
        let reader = Reader::open(&place.join(FILE)).unwrap().unwrap();
        let mut kept = 0;
        reader.sums(Span::ALL, &mut |_| kept += 1).unwrap();
        assert_eq!(kept, after.written, "what was counted as written is there, and nothing else");
        let lost = reader.coverage(Span { since: NOW, until: i64::MAX / 2 }).losses.store;
        assert_eq!(lost, after.lost + after.overflow, "the report knows of what was lost");
    });
    done.join().unwrap();
}

fn wait(recording: &Recording, done: impl Fn(&StoreStatus) -> bool) -> StoreStatus {
    for _ in 0..1200 {
        let status = recording.status();
        if done(&status) {
            return status;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("{:?}", recording.status());
}
