use super::{
    cron::{anacrontab_line, crontab_line},
    schedule::{MINUTE_US, Schedule, calendar, day_of, local_time, seconds},
    systemd::Times,
    *,
};

/// 2026-01-05T10:00Z, a Monday. The tests' machine may be in any zone: only days are asked for.
const MONDAY: i64 = 1_767_607_200_000_000;
const DAY: i64 = 86_400_000_000;

#[test]
fn what_did_not_fire_is_named() {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for (name, schedule) in [
        ("often", "OnUnitActiveSec=15min"),
        ("rare", "OnUnitActiveSec=1month"),
        ("nightly", "OnCalendar=*-*-* 02:30:00"),
        ("first", "OnCalendar=monthly"),
        ("odd", "OnCalendar=Mon..Fri *-*-01..07 sunset"),
    ] {
        put(&format!("usr/lib/systemd/system/{name}.timer"), &format!("[Timer]\n{schedule}\n"));
        put(&format!("etc/systemd/system/timers.target.wants/{name}.timer"), "");
    }
    put(
        "etc/crontab",
        "SHELL=/bin/sh\n17 * * * * root cd / && run-parts /etc/cron.hourly\n47 6 1 * * root test -x /usr/sbin/anacron || run-parts /etc/cron.monthly\n",
    );
    put("etc/cron.monthly/report\x1b[2J", "");
    put(
        "etc/cron.d/backup",
        "MAILTO=root\n5 4 * * sun backup /usr/bin/backup\x1b[2J\n*/10 * * * * root /usr/bin/often\n@reboot root /usr/bin/boot\n",
    );
    // Two days from Monday.
    let found = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 2 * DAY, &[]));
    assert_eq!(found.timers, ["first.timer (monthly)", "rare.timer (1month)"]);
    assert_eq!(found.unclear, ["odd.timer (Mon..Fri *-*-01..07 sunset)", "/etc/cron.d/backup:4 (/usr/bin/boot)"]);
    assert_eq!(
        found.jobs,
        ["/etc/cron.d/backup:2 (/usr/bin/backup\x1b[2J)"],
        "a name that run-parts passes over is no job"
    );
    assert!(found.lines().iter().all(|line| !line.contains('\x1b')), "{:?}", found.lines());
    assert!(
        found.lines().last().unwrap().starts_with("3 of 8 timers and cron jobs that were found were due"),
        "{found:?}"
    );
    let none = not_fired(Path::new("/nonexistent"), &Watched::without(0, 1, &[]));
    assert_eq!(none.lines(), ["No timer and no cron job was found on this host."]);
}

fn image(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

#[test]
fn what_fired_while_guard_did_not_run_is_not_in_the_records() {
    let root = image(&[
        ("etc/systemd/system/timers.target.wants/noon.timer", ""),
        ("etc/systemd/system/noon.timer", "[Timer]\nOnCalendar=*-*-* *:00\n"),
        ("etc/systemd/system/timers.target.wants/daily.timer", ""),
        ("etc/systemd/system/daily.timer", "[Timer]\nOnUnitActiveSec=1d\n"),
    ]);
    let all = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 2 * DAY, &[]));
    assert!(all.timers.is_empty() && all.unwatched_seconds == 0, "{all:?}");
    // Half an hour is watched, in which no hour begins; and then the rest of the second day, but for its first 20 hours.
    let half = Watched::without(MONDAY + MINUTE_US, MONDAY + 31 * MINUTE_US, &[]);
    assert_eq!(not_fired(root.path(), &half).timers, ["daily.timer (1d)", "noon.timer (*-*-* *:00)"]);
    let gaps = [(MONDAY + 31 * MINUTE_US, MONDAY + DAY * 3 / 2)];
    let holed = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 2 * DAY, &gaps));
    assert_eq!(holed.timers, ["daily.timer (1d)"]);
    assert_eq!(holed.unwatched_seconds, 36 * 3600 - 31 * 60);
    assert!(holed.lines()[0].starts_with("guard did not run for"), "{:?}", holed.lines());
    let stamp = root.path().join("var/lib/systemd/timers/stamp-daily.timer");
    fs::create_dir_all(stamp.parent().unwrap()).unwrap();
    fs::File::create(&stamp).unwrap();
    let now = modified(&stamp).unwrap();
    assert!(not_fired(root.path(), &Watched::without(now - DAY / 4, now + DAY / 4, &[])).timers.is_empty());
    let gap = [(now - DAY / 8, now + DAY / 8)];
    assert_eq!(not_fired(root.path(), &Watched::without(now - DAY / 4, now + DAY / 4, &gap)).timers.len(), 1);
}

#[test]
fn a_year_is_looked_at_whole() {
    let root = image(&[("etc/crontab", "30 4 1 4 * root /usr/bin/yearly\n5 5 29 2 * root /usr/bin/leap\n")]);
    let year = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 365 * DAY, &[]));
    assert_eq!(year.jobs, ["/etc/crontab:2 (/usr/bin/leap)"], "2026 has no 29 February");
    let quarter = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 80 * DAY, &[]));
    assert_eq!(quarter.jobs.len(), 2);
    // Every minute alone says the same as days and hours that are passed over.
    for schedule in ["* * * * *", "59 23 31 12 *", "0 0 1 * 1", "17 * 3 * *"].map(|text| {
        let words: Vec<&str> = text.split(' ').collect();
        Schedule::parse([words[0], words[1], words[2], words[3], words[4]]).unwrap()
    }) {
        for days in 0..60 {
            let (first, last) = (MONDAY + days * DAY * 6, MONDAY + days * DAY * 6 + DAY * 3 / 2);
            let each = (first / MINUTE_US + 1..=last / MINUTE_US)
                .any(|minute| local_time(minute * 60).is_some_and(|time| schedule.matches(&time)));
            assert_eq!(schedule.fires(&Watched::without(first, last, &[])), each, "{schedule:?} {days}");
        }
    }
}

#[test]
fn drop_ins_users_and_masks_count() {
    let root = image(&[
        ("usr/lib/systemd/system/timers.target.wants/apt.timer", ""),
        ("usr/lib/systemd/system/apt.timer", "[Timer]\nOnCalendar=*-*-* *:00\nOnBootSec=5min\n"),
        ("usr/lib/systemd/system/apt.timer.d/10-x.conf", "[Timer]\nOnCalendar=hourly\n"),
        ("etc/systemd/system/apt.timer.d/10-x.conf", "[Timer]\nOnCalendar=\nOnCalendar=yearly\n"),
        ("etc/systemd/system/timers.target.wants/off.timer", ""),
        ("usr/lib/systemd/user/timers.target.wants/clean.timer", ""),
        ("usr/lib/systemd/user/clean.timer", "[Timer]\nOnCalendar=hourly\n"),
        ("home/kim/.config/systemd/user/timers.target.wants/sync.timer", ""),
        ("home/kim/.config/systemd/user/sync.timer", "[Timer]\nOnCalendar=yearly\n"),
        ("etc/systemd/system/timers.target.wants/each@db.timer", ""),
        ("usr/lib/systemd/system/each@.timer", "[Timer]\nOnCalendar=yearly\n"),
    ]);
    std::os::unix::fs::symlink("/dev/null", root.path().join("etc/systemd/system/off.timer")).unwrap();
    let found = not_fired(root.path(), &Watched::without(MONDAY, MONDAY + 2 * DAY, &[]));
    assert_eq!(found.timers, ["apt.timer (yearly)", "each@db.timer (yearly)", "sync.timer of kim (yearly)"]);
    assert_eq!(found.unclear, ["clean.timer of every user (hourly), if its manager ran"]);
    assert_eq!(found.found, 4);
}

#[test]
fn what_anacron_runs_is_told_by_its_stamps() {
    let root = image(&[
        ("usr/sbin/anacron", ""),
        (
            "etc/anacrontab",
            "SHELL=/bin/sh\n1 5 cron.daily run-parts --report /etc/cron.daily\n@monthly 15 own /usr/bin/own\n7 9 gone /usr/bin/gone\n",
        ),
        ("etc/crontab", "25 6 * * * root test -x /usr/sbin/anacron || run-parts --report /etc/cron.daily\n"),
        ("etc/cron.daily/backup", ""),
        ("etc/cron.daily/0anacron", ""),
        ("var/spool/anacron/cron.daily", "20260106\n"),
        ("var/spool/anacron/own", "20260101\n"),
    ]);
    // The whole of the 6th, wherever the machine is.
    let found = not_fired(root.path(), &Watched::without(MONDAY - DAY, MONDAY + 3 * DAY, &[]));
    assert_eq!(found.jobs, ["/etc/anacrontab:3 (/usr/bin/own)", "/etc/anacrontab:4 (/usr/bin/gone)"]);
    assert!(found.unclear.is_empty() && found.found == 3, "{found:?}");
    let later = not_fired(root.path(), &Watched::without(MONDAY + 5 * DAY, MONDAY + 6 * DAY, &[]));
    assert_eq!(later.jobs.len(), 3);
    // It ran after what is looked at: before that, who knows.
    let before = not_fired(root.path(), &Watched::without(MONDAY - 20 * DAY, MONDAY - 19 * DAY, &[]));
    assert_eq!(before.unclear.len(), 2);
}

proptest::proptest! {
    #[test]
    fn any_line_does_no_harm(line in ".{0,80}") {
        let _ = crontab_line(&line, true);
        let _ = anacrontab_line(&line);
        let _ = day_of(&line);
        let _ = calendar(&line);
        let _ = seconds(&line);
        let mut times = Times::default();
        times.read(&format!("OnCalendar={line}\nOnUnitActiveSec={line}"));
        let _ = times.fired(&Watched::without(MONDAY, MONDAY + DAY, &[]));
    }
}
