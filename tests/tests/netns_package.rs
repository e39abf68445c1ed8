//! What the Debian package's unit and scripts do, with the real `guard`: in the unit's own confines, and under a lockdown.
//! Everything else of the scripts is tried in `package_scripts.rs`.

use std::{fs, process::Command, time::Duration};

use guard_tests::{
    guard::{Guard, binary},
    new_world,
    process::{Ended, Process, run},
    world::World,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(60);
const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");

/// A value of the unit.
fn unit(key: &str) -> String {
    let unit = fs::read_to_string(format!("{PACKAGING}/guard.service")).unwrap();
    let value = unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("the unit has no {key}")).to_owned()
}

/// As the unit starts it: without a terminal, everything read-only but its state and bpffs, and no capability but the unit's.
fn confined(world: &World, guard: &Guard, command: &Command) -> Command {
    assert_eq!((unit("ProtectSystem"), unit("NoNewPrivileges")), ("strict".to_owned(), "yes".to_owned()));
    assert_eq!(unit("ReadWritePaths"), "/sys/fs/bpf");
    let capabilities: String =
        unit("CapabilityBoundingSet").split(' ').map(|name| name.to_lowercase().replace("cap_", ",+")).collect();
    fs::create_dir_all(guard.state_dir()).unwrap();
    let mut confined = world.operator.command("unshare");
    let script = "set -e; state=$1; capabilities=$2; shift 2; mount --bind \"$state\" \"$state\"; \
                  for at in / \"$(df --output=target \"$state/..\" | tail -n 1)\"; do mount -o remount,bind,ro \"$at\"; done; \
                  if touch \"$state/../elsewhere\" 2>/dev/null; then exit 9; fi; \
                  exec setsid --wait setpriv --no-new-privs --bounding-set \"-all$capabilities\" -- \"$@\" < /dev/null";
    confined.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(guard.state_dir());
    confined.arg(capabilities).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => confined.env(name, value),
            None => confined.env_remove(name),
        };
    }
    confined
}

fn policy(name: &str, services: &str) -> String {
    format!(
        "version: 1\nname: {name}\nmode: enforce\ninbound:\n  - {{ from: any, services: {services} }}\noutbound: []\n"
    )
}

/// `systemctl reload` ends when the policy is in force, and fails where it is not.
#[test]
fn the_unit_runs_and_reloads_in_its_confines() {
    let Some(world) = new_world("netns_package the_unit") else { return };
    let mut guard = Guard::prepare(&world, &policy("one", "tcp/22")).unwrap();
    let flag = unit("ExecStart");
    let flag = flag.strip_prefix("/usr/bin/guard run ").and_then(|rest| rest.strip_suffix(" /etc/guard/policy.yaml"));
    let start = |guard: &Guard| {
        let command = guard.run_command(&[flag.expect("run, of the package's policy")]).unwrap();
        let mut daemon = Process::spawn(&mut confined(&world, guard, &command)).unwrap();
        let ready = daemon.wait_line(LIMIT, |line| line.contains("guard is ready: ENFORCING")).unwrap();
        (daemon, ready)
    };
    let (daemon, _) = start(&guard);

    let asked = unit("ExecReload");
    let verb = asked.strip_prefix("/usr/bin/guard ").expect("guard itself");
    let reload =
        |guard: &Guard| -> Ended { run(&mut confined(&world, guard, &guard.command(verb).unwrap()), LIMIT).unwrap() };
    guard.write_policy(&policy("two", "tcp/80-22")).unwrap();
    let refused = reload(&guard);
    assert_eq!(refused.code(), Some(1), "{}", refused.text());
    assert_eq!(guard.status().unwrap()["policy"], "one");

    guard.write_policy(&policy("two", "tcp/80")).unwrap();
    let done = reload(&guard);
    assert!(done.good(), "{}", done.text());
    // The daemon too knows of it.
    let status = guard.status().unwrap();
    assert_eq!((&status["policy"], &status["deadline"]), (&"two".into(), &serde_json::Value::Null), "{status:#}");
    assert_eq!(status["enforcing"], true, "{status:#}");
    assert_eq!(status["daemon"]["notices"], serde_json::json!([]), "{status:#}");

    // Started anew, on a host that was down meanwhile, too: with what was in force, though its file be wrong by now.
    guard.write_policy("version: 1\nname: three\nmode: enforce\ninbound: nonsense\n").unwrap();
    daemon.signal(Signal::SIGTERM).unwrap();
    assert!(daemon.finish(LIMIT).unwrap().good());
    let (daemon, ready) = start(&guard);
    assert!(ready.contains("policy two"), "{ready}");
    guard.reboot().unwrap();
    drop(daemon);
    let (_daemon, ready) = start(&guard);
    assert!(ready.contains("policy two"), "{ready}");
}

/// `prerm`, as dpkg calls it, where systemd does not run.
fn removal(world: &World, guard: &Guard, agreed: bool) -> Ended {
    let bin = world.dir().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let _ = std::os::unix::fs::symlink(binary().unwrap(), bin.join("guard"));
    let mut command = world.operator.command("unshare");
    let script = "mount -t tmpfs none /run && PATH=$1:$PATH && exec \"$2/prerm\" remove < /dev/null";
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(bin).arg(PACKAGING);
    command.env("GUARD_INSTANCE", guard.instance()).env("GUARD_STATE_DIR", guard.state_dir());
    command.env_remove("GUARD_REMOVE");
    if agreed {
        command.env("GUARD_REMOVE", "release");
    }
    run(&mut command, LIMIT).unwrap()
}

#[test]
fn a_removal_under_a_lockdown_opens_the_host_or_does_not_happen() {
    let Some(world) = new_world("netns_package a_removal") else { return };
    let mut guard = Guard::prepare(&world, "").unwrap();
    let cgroup = world.cgroup().display().to_string();
    let evidence = world.dir().join("evidence").display().to_string();
    let lockdown = ["--yes", "--console", "--no-keep-session", "--confirm-within", "none", "--cgroup", &cgroup];
    guard.tell("lockdown", &[&lockdown[..], &["--evidence", &evidence]].concat()).unwrap();
    let locked =
        |status: &serde_json::Value| status["lockdown"]["confirmed"].is_object() && status["enforcing"] == true;

    let refused = removal(&world, &guard, false);
    assert_eq!(refused.code(), Some(1), "{}", refused.text());
    assert!(refused.stderr.contains("a LOCKDOWN holds here"), "{}", refused.text());
    let status = guard.status().unwrap();
    assert!(locked(&status), "{status:#}");

    // Nothing is attached, and the lockdown waits for its start.
    guard.reboot().unwrap();
    let refused = removal(&world, &guard, false);
    assert_eq!(refused.code(), Some(1), "{}", refused.text());
    guard.run(&["--resume"]).unwrap();
    let status = guard.status().unwrap();
    assert!(locked(&status), "{status:#}");

    let removed = removal(&world, &guard, true);
    assert!(removed.good(), "{}", removed.text());
    assert_eq!(guard.status().unwrap()["mode"], "none");

    // Where everything passes nobody is asked.
    guard.write_policy("version: 1\nname: seen\nmode: audit\ninbound: []\noutbound: []\n").unwrap();
    guard.run(&[]).unwrap();
    let removed = removal(&world, &guard, false);
    assert!(removed.good(), "{}", removed.text());
    assert_eq!(guard.status().unwrap()["mode"], "none");
}

/// A systemd that writes down what it was asked, and starts what the unit says.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >> "$CASE/asked"
case "$1" in
    start)
        unit=/etc/systemd/system/$2
        eval "$(sed -n 's/^Environment=/export /p' "$unit")"
        setsid $(sed -n 's/^ExecStart=//p' "$unit") > "$CASE/unit.log" 2>&1 < /dev/null & ;;
esac
"#;

/// Confirmed, a lockdown is started by a unit of its own from then on, and that unit records it; released, it is gone.
#[test]
fn a_confirmed_lockdown_is_kept_by_a_unit() {
    let Some(world) = new_world("netns_package kept") else { return };
    let case = world.dir().join("case");
    fs::create_dir_all(case.join("bin")).unwrap();
    let systemctl = case.join("bin/systemctl");
    fs::write(&systemctl, SYSTEMCTL).unwrap();
    fs::set_permissions(&systemctl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Nothing of the machine is written: its folders are covered.
    let script = r#"set -e
        cp -r /etc/passwd /etc/group "$CASE"
        for folder in /run /etc /var/lib /usr/local/sbin; do mount -t tmpfs -o mode=755 none $folder; done
        cp "$CASE/passwd" "$CASE/group" /etc
        mkdir -p /run/systemd/system /etc/systemd/system
        PATH="$CASE/bin:$PATH"
        "$GUARD" lockdown --yes --console --no-keep-session --evidence none --cgroup "$CGROUP" --confirm-within 5m &
        until "$GUARD" status --json | grep -q '"lockdown":{'; do sleep 0.1; done
        until "$GUARD" status --json | grep -q '"daemon":{'; do sleep 0.1; done
        [ ! -e /etc/systemd/system/guard-$GUARD_INSTANCE.service ]
        "$GUARD" confirm --one-way-in --no-new-login > "$CASE/confirmed"
        wait
        "$GUARD" status --json > "$CASE/status"
        cp /etc/systemd/system/guard-$GUARD_INSTANCE.service "$CASE/unit"
        cmp "$GUARD" /usr/local/sbin/guard
        [ "$(stat -c %u.%a /usr/local/sbin/guard)" = 0.755 ]
        /usr/local/sbin/guard release --host "$(uname -n)" > "$CASE/released"
        [ ! -e /etc/systemd/system/guard-$GUARD_INSTANCE.service ]
    "#;
    let mut command = world.operator.command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command.env("CASE", &case).env("GUARD", binary().unwrap()).env("CGROUP", world.cgroup());
    command.env("GUARD_INSTANCE", world.name()).env_remove("GUARD_STATE_DIR").env("NO_COLOR", "1");
    let ended = run(&mut command, LIMIT).unwrap();
    let read = |name: &str| fs::read_to_string(case.join(name)).unwrap_or_default();
    assert!(ended.good(), "{}\n{}\n{}", ended.text(), read("confirmed"), read("unit.log"));
    let name = format!("guard-{}.service", world.name());
    let asked = ["daemon-reload".to_owned(), format!("enable {name}"), format!("start {name}")];
    let after = [format!("disable {name}"), "daemon-reload".to_owned()];
    assert_eq!(read("asked").lines().collect::<Vec<_>>(), [&asked[..], &after[..]].concat(), "{}", read("confirmed"));
    assert!(read("confirmed").contains("enforces from the next start on (/usr/local/sbin/guard); it records"));
    // The unit's own process, which knows that a lockdown holds: it does not read the policy that is not there.
    let status: serde_json::Value = serde_json::from_str(&read("status")).unwrap();
    assert_eq!((&status["enforcing"], status["daemon"].is_object()), (&true.into(), true), "{status:#}");
    assert!(read("unit.log").contains("guard is ready"), "{}", read("unit.log"));
    assert!(read("unit").contains(&format!("Environment=GUARD_INSTANCE={}", world.name())));
    assert!(read("released").contains(&format!("{name} is removed")), "{}", read("released"));
}
