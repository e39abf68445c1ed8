//! What intruders can choose (names, arguments, users, rules of others) does nothing but be shown.

use std::{path::Path, process::Command, sync::Arc};

use guard::{
    cli::output::Style,
    host::person::Person,
    record::who::{Parent, Unusual, Who},
    review::{
        acks::{Ack, Acks},
        group::Id,
        render,
        report::{self, Report, Since},
    },
};
use guard_tests::{
    browser::Browser,
    day::{self, BEGAN, DAY_BEGINS, NOW, Talk, program},
    skip,
};

/// Terminal escapes, HTML, Markdown, text that runs backwards, a path that breaks a line, bytes that were no UTF-8.
const HOSTILE: [&str; 8] = [
    "\u{1b}[2J\u{1b}]0;owned\u{7}",
    "<script>alert(1)</script><img src=http://192.0.2.66/x onerror=alert(2)>",
    "\"><svg onload=alert(3)>",
    "' onmouseover='alert(4)",
    "`](http://192.0.2.66/)![x](http://192.0.2.66/y)",
    "\u{202e}gpj.exe\u{2066}\u{200b}",
    "two\nlines\r\n# heading\n",
    "\u{fffd}\u{fffd}\u{0}\u{9b}31m",
];

fn hostile(directory: &Path) -> Report {
    let mut days = day::Days::begin(directory, BEGAN).unwrap();
    for (number, text) in HOSTILE.iter().enumerate() {
        let who = Arc::new(Who {
            comm: (*text).to_owned(),
            exe: Some(format!("/tmp/{text}")),
            args: vec![(*text).to_owned(); 3],
            user: Some((*text).to_owned()),
            unit: Some((*text).to_owned()),
            parents: vec![Parent { pid: 1, exe: (*text).to_owned() }],
            unusual: vec![Unusual::WorldWritablePlace],
            ..program("/x", 100 + number as u32, "root", "/y")
        });
        let mut flow = Talk::out(6, &format!("203.0.113.{number}"), 443, &who)
            .denied()
            .named(text, text)
            .at(number as u64, DAY_BEGINS);
        flow.rule = Some((*text).into());
        flow.reason = (*text).into();
        flow.interface = Some((*text).into());
        flow.head = text.as_bytes().to_vec();
        days.put_flow(flow).unwrap();
    }
    days.end(NOW).unwrap();
    let by = Person { name: HOSTILE[0].to_owned(), by: HOSTILE[1].to_owned(), ..Person::default() };
    Acks::append(directory, &[Ack::new(Id(7), true, NOW, by, HOSTILE[1].to_owned()).noted(Some(HOSTILE[6]))]).unwrap();
    report::of_directory(directory, Since::Everything, NOW).unwrap()
}

fn is_harmless(text: &str) {
    for c in text.chars() {
        let steers = (c.is_control() && c != '\n')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert!(!steers, "{c:?} in {text}");
    }
}

#[test]
fn it_is_shown_harmless_in_every_form() {
    let home = tempfile::tempdir().unwrap();
    let report = hostile(home.path());
    assert_eq!(report.findings.len(), HOSTILE.len());
    let text = render::text::render(&report, "", true, Style::plain());
    is_harmless(&text);
    assert!(!text.contains("\n# heading"), "{text}");

    let markdown = render::markdown::render(&report);
    is_harmless(&markdown);
    assert!(!markdown.contains("\n# heading"), "{markdown}");
    // Nothing that came from outside stands outside of code: without code, no bracket and no tag is left.
    for line in markdown.lines() {
        let outside = outside_of_code(line);
        assert!(!outside.contains(['<', '[', '!']), "{outside}");
    }

    let json = serde_json::to_string(&render::json::render(&report)).unwrap();
    assert!(json.chars().all(|c| !('\0'..' ').contains(&c)), "{json}");
    let back: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(back["findings"].as_array().unwrap().iter().any(|f| f["program"] == format!("/tmp/{}", HOSTILE[1])));

    let page = render::html::render(&report);
    is_harmless(&page);
    for tag in ["<script", "<img", "<svg onload", "onerror=alert(2)>", "' onmouseover"] {
        assert!(!page.contains(tag), "{tag} in the page");
    }
}

/// What a reader of Markdown would take for text: code spans begin and end with as many backticks.
fn outside_of_code(line: &str) -> String {
    let mut outside = String::new();
    let mut rest = line;
    while let Some(start) = rest.find('`') {
        outside.push_str(&rest[..start]);
        let fence = rest[start..].len() - rest[start..].trim_start_matches('`').len();
        let body = &rest[start + fence..];
        let mut at = 0;
        let end = loop {
            let Some(next) = body[at..].find('`') else { break None };
            let run = body[at + next..].len() - body[at + next..].trim_start_matches('`').len();
            if run == fence {
                break Some(at + next + run);
            }
            at += next + run;
        };
        rest = end.map_or("", |end| &body[end..]);
    }
    outside + rest
}

/// In the browser that people have: it says nothing, asks nobody, runs nothing, and shows what is in it.
#[test]
fn the_page_is_whole_in_a_browser_and_asks_nobody() {
    if Command::new("chromium").arg("--version").output().is_err() {
        skip::skip("review_hostile the_page_is_whole_in_a_browser", "chromium is not installed");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (good, bad) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    day::write(good.path(), true).unwrap();
    let pages = [
        (render::html::render(&report::of_directory(good.path(), Since::Everything, NOW).unwrap()), "203.0.113.9"),
        (render::html::render(&hostile(bad.path())), "&lt;script&gt;"),
    ];
    for (number, (page, mark)) in pages.iter().enumerate() {
        let path = home.path().join(format!("{number}.html"));
        std::fs::write(&path, page).unwrap();
        let log = home.path().join(format!("{number}.net.json"));
        let shot = home.path().join(format!("{number}.png"));
        let run = |arguments: &[String]| {
            let output = Command::new("timeout")
                .args(["60", "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
                .args(["--disable-background-networking", "--disable-component-update", "--no-first-run"])
                .args(["--enable-logging=stderr", "--v=0", "--window-size=390,844"])
                .arg(format!("--user-data-dir={}", home.path().join("profile").display()))
                .args(arguments)
                .arg(format!("file://{}", path.display()))
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            output
        };
        let dumped = run(&["--dump-dom".to_owned(), format!("--log-net-log={}", log.display())]);
        let said = String::from_utf8_lossy(&dumped.stderr).into_owned();
        assert!(!said.contains("CONSOLE"), "the console says: {said}");
        let dom = String::from_utf8_lossy(&dumped.stdout);
        assert!(dom.contains(mark) && dom.contains("</svg>"), "{dom}");
        assert!(!dom.contains("<script"), "{dom}");
        let asked = std::fs::read_to_string(&log).unwrap();
        assert!(asked.contains("\"constants\""), "the log of the network is empty");
        for host in ["192.0.2.66", "http://192", "https://192"] {
            assert!(!asked.contains(host), "the page asked {host}");
        }
        run(&[format!("--screenshot={}", shot.display())]);
        assert!(std::fs::metadata(&shot).unwrap().len() > 10_000, "the picture is empty");
    }
}

/// Whoever has no mouse gets to everything: each link and each finding by Tab, in the order of the page and seen where they
/// are; a finding is closed and opened by Enter and Space.
#[test]
fn the_page_is_used_by_keyboard_alone() {
    const TEST: &str = "review_hostile the_page_is_used_by_keyboard_alone";
    if Command::new("chromium").arg("--version").output().is_err() {
        return skip::skip(TEST, "chromium is not installed");
    }
    let home = tempfile::tempdir().unwrap();
    let store = tempfile::tempdir().unwrap();
    day::write(store.path(), true).unwrap();
    let page = render::html::render(&report::of_directory(store.path(), Since::Everything, NOW).unwrap());
    let path = home.path().join("report.html");
    std::fs::write(&path, page).unwrap();
    let mut browser = Browser::open(&path, &home.path().join("profile")).unwrap();
    let focused = "document.activeElement.outerHTML.slice(0, 60)";
    let tab = |browser: &mut Browser| browser.presses("Tab", 9, "").unwrap();

    // First of all, past the head.
    tab(&mut browser);
    assert!(browser.says(focused).unwrap().contains("skip"), "{}", browser.says(focused).unwrap());
    let wanted: usize =
        browser.says("document.querySelectorAll('a, summary, [tabindex]').length").unwrap().parse().unwrap();
    assert!(wanted > 20, "{wanted} things to get to");
    let order = "[...document.querySelectorAll('a, summary, [tabindex]')].indexOf(document.activeElement)";
    let mut places = vec![browser.says(order).unwrap()];
    for _ in 1..wanted {
        tab(&mut browser);
        places.push(browser.says(order).unwrap());
        let seen = "(s => s.outlineStyle != 'none' && parseFloat(s.outlineWidth) > 0)(getComputedStyle(document.activeElement))";
        assert_eq!(browser.says(seen).unwrap(), "true", "not to be seen: {}", browser.says(focused).unwrap());
    }
    assert_eq!(places, (0..wanted).map(|at| at.to_string()).collect::<Vec<_>>());

    // The last is a finding's; those that were learned are closed.
    let open = "document.activeElement.parentElement.open";
    let before = browser.says(open).unwrap();
    let other = if before == "true" { "false" } else { "true" };
    browser.presses("Enter", 13, "\r").unwrap();
    assert_eq!(browser.says(open).unwrap(), other);
    browser.presses(" ", 32, " ").unwrap();
    assert_eq!(browser.says(open).unwrap(), before);
    // Nothing is wider than a phone, but for the picture that scrolls in its own frame.
    assert_eq!(browser.says("document.documentElement.scrollWidth <= window.innerWidth").unwrap(), "true");
}
