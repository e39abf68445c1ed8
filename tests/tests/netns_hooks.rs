//! Somebody meddles with guard's hooks: status says so at once, and the daemon puts back what it can.

use std::time::Duration;

use guard_tests::{
    cases::policy,
    flows::{Flow, PASSES, serve},
    guard::Guard,
    new_world,
    raw_bpf::{detach, pass_in_front, pinned_links},
};
use nix::sys::signal::Signal;
use serde_json::Value;

fn problems(status: &Value) -> String {
    status["problems"].to_string()
}

#[test]
fn each_hook_detached_in_turn_is_noticed_and_put_back() {
    let Some(world) = new_world("netns_hooks each_hook_detached") else { return };
    let guard = Guard::start_with(&world, &policy("enforce"), &["--shield"]).unwrap();
    let status = guard.status().unwrap();
    assert_eq!(status["enforcing"], true, "{status:#}");
    let links = pinned_links(&world.operator).unwrap();
    let hooks = status["hooks"].as_array().unwrap();
    assert!(links.len() >= 11, "wire on two interfaces, four of sockets, seal, backstop: {links:#?}");
    for layer in ["wire", "shield", "socket", "seal", "backstop"] {
        assert!(hooks.iter().any(|hook| hook["layer"] == layer), "{layer}: {status:#}");
    }
    for name in &links {
        // Who meddles is quicker than the daemon: it stands still meanwhile.
        guard.signal(Signal::SIGSTOP).unwrap();
        detach(&world.operator, name).unwrap();
        let ended = guard.ask("status", &["--json"]).unwrap();
        let status: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&status["enforcing"], ended.code()), (&false.into(), Some(1)), "{name}: {status:#}");
        assert!(!status["problems"].as_array().unwrap().is_empty(), "{name}: {status:#}");
        let lost = status["hooks"].as_array().unwrap().iter().filter(|hook| hook["attached"] == false).count();
        assert_eq!(lost, 1, "{name}: {status:#}");

        guard.signal(Signal::SIGCONT).unwrap();
        guard
            .status_until(Duration::from_secs(10), |status| status["enforcing"] == true)
            .unwrap_or_else(|error| panic!("{name} was not put back: {error:#}"));
    }
}

#[test]
fn a_program_in_front_of_ours_is_noticed_and_overtaken() {
    let Some(world) = new_world("netns_hooks a_program_in_front") else { return };
    let flows = [Flow::new("in tcp client 22", false), Flow::new("out tcp responder 22", false)];
    let _servers = serve(&world, &flows);
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    let index = world.server.interface_index("eth0");
    assert!(flows.iter().all(|flow| !flow.passes(&world, false)));
    guard.signal(Signal::SIGSTOP).unwrap();
    let foreign = [false, true].map(|egress| pass_in_front(&world.operator, index, egress).unwrap());
    assert!(flows.iter().all(|flow| flow.passes(&world, true)), "the foreign programs do what they are for");
    let status = guard.status().unwrap();
    assert_eq!(status["enforcing"], false, "{status:#}");
    assert!(problems(&status).contains("eth0"), "{status:#}");
    let behind = status["hooks"].as_array().unwrap().iter().filter(|hook| hook["first"] == false).count();
    assert_eq!(behind, 2, "{status:#}");
    guard.signal(Signal::SIGCONT).unwrap();
    // Both are overtaken, one a second at most.
    guard.status_until(Duration::from_secs(30), |status| status["enforcing"] == true).unwrap();
    assert!(flows.iter().all(|flow| !flow.passes(&world, false)), "ours are first again");
    drop(foreign);
    guard.status_until(PASSES, |status| status["enforcing"] == true).unwrap();
    assert!(flows.iter().all(|flow| !flow.passes(&world, false)));
}

#[test]
fn status_of_nothing_is_no() {
    let Some(world) = new_world("netns_hooks status_of_nothing") else { return };
    let guard = Guard::prepare(&world, &policy("enforce")).unwrap();
    let ended = guard.ask("status", &["--json"]).unwrap();
    let status: Value = serde_json::from_str(&ended.stdout).unwrap_or_default();
    assert_eq!(ended.code(), Some(1), "{}", ended.text());
    assert_eq!((&status["mode"], &status["enforcing"]), (&"none".into(), &false.into()), "{}", ended.text());
}

#[test]
fn release_leaves_nothing() {
    let Some(world) = new_world("netns_hooks release_leaves_nothing") else { return };
    let flow = Flow::new("in tcp client 22", false);
    let _servers = serve(&world, &[flow]);
    let guard = Guard::start_with(&world, &policy("enforce"), &["--shield"]).unwrap();
    assert!(!flow.passes(&world, false));
    let start = std::time::Instant::now();
    guard.release().unwrap();
    let took = start.elapsed();
    assert!(flow.passes(&world, true), "open again");
    assert!(took < Duration::from_secs(3), "release took {took:?}");
    assert!(pinned_links(&world.operator).unwrap().is_empty());
    let mut list = world.operator.command("find");
    list.args(["/sys/fs/bpf", "-mindepth", "1", "-name", guard.instance()]);
    let left = guard_tests::process::run(&mut list, PASSES).unwrap();
    assert_eq!(left.stdout, "", "pins are left");
    assert_eq!(guard.status().unwrap()["mode"], "none");
}

#[test]
fn what_this_kernel_lacks_is_named() {
    let Some(world) = new_world("netns_hooks what_this_kernel_lacks") else { return };
    let guard = Guard::start(&world, &policy("enforce")).unwrap();
    let status = guard.status().unwrap();
    let sealed_by_fmod_ret =
        status["hooks"].as_array().unwrap().iter().any(|h| h["hook"].as_str().is_some_and(|h| h.contains("fmod_ret")));
    let missing = status["missing"].as_array().unwrap();
    let named = missing.iter().any(|line| line.as_str().is_some_and(|line| line.contains("fmod_ret")));
    assert!(sealed_by_fmod_ret != named, "the seal is fmod_ret, or its lack is named: {status:#}");
}

#[test]
fn two_worlds_do_not_meet() {
    let Some(one) = new_world("netns_hooks two_worlds") else { return };
    let Some(other) = new_world("netns_hooks two_worlds") else { return };
    let flow = Flow::new("in tcp client 22", false);
    let (_a, _b) = (serve(&one, &[flow]), serve(&other, &[flow]));
    let first = Guard::start(&one, &policy("enforce")).unwrap();
    assert!(!flow.passes(&one, false) && flow.passes(&other, true));
    let second = Guard::start(&other, &policy("enforce")).unwrap();
    first.release().unwrap();
    assert!(flow.passes(&one, true) && !flow.passes(&other, false));
    assert_eq!(second.status().unwrap()["enforcing"], true);
}
