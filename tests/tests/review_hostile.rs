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
    guard::binary,
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

fn guard(state: &Path, arguments: &[&str]) -> (String, String) {
    let mut command = Command::new(binary().unwrap());
    let output = command.args(arguments).arg("--state-dir").arg(state).env("NO_COLOR", "1").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

/// The commands that show one group, decide on it, and hand the shift over; with names and notes that are hostile themselves.
#[test]
fn every_command_shows_it_harmless() {
    let home = tempfile::tempdir().unwrap();
    let report = hostile(home.path());
    let ids: Vec<String> = report.findings.iter().map(|finding| finding.id().to_string()).collect();
    let mut said = 0;
    let mut asked = |arguments: &[&str], wanted: &str| {
        let (out, error) = guard(home.path(), arguments);
        for text in [&out, &error] {
            is_harmless(text);
            assert!(!text.contains("\n# heading"), "{text}");
        }
        if arguments.contains(&"--json") && !out.is_empty() {
            serde_json::from_str::<serde_json::Value>(&out).unwrap_or_else(|error| panic!("{error}: {out}"));
        }
        assert!(format!("{out}{error}").contains(wanted), "{arguments:?}: {out}{error}");
        said += out.len();
    };
    for (id, text) in ids.iter().zip(HOSTILE) {
        // A NUL cannot be typed.
        let typed = text.replace('\0', "");
        asked(&["show", id], "called as");
        asked(&["show", id, "--json"], "\"processes\"");
        asked(&["explain", id], "");
        asked(&["ack", id, "--as", &typed, "--note", &typed], "acknowledged: out tcp/443");
        asked(&["show", id], "history");
        asked(&["handover", "--as", &typed, "--note", &typed], "HANDOVER");
        asked(&["handover", "--json"], "\"acknowledged\"");
        asked(&["handover", "--brief"], "");
        asked(&["timeline"], "ack");
        asked(&["report", "--since", "last-review"], "to review");
        asked(&["unack", id, "--json", "--note", &typed], "\"written\"");
        asked(&["unack", &typed], "is no id");
        asked(&["show", &typed], "is no id");
    }
    assert!(said > 10_000, "{said}");
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

/// Colours as a person sees them: how much text stands out from what is behind it (WCAG 2: 4.5 is enough to read).
const CONTRAST: &str = "((a, b) => { const l = c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => { x = x / 255; \
    return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; }); return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; }; \
    const [x, y] = [l(a), l(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); })";

/// Light and dark, both to be read; and the two drawings are what they say: a bar for each part of the time in which something
/// was seen, a line for each who talks to whom, dashed where denied, all of it inside of its frame.
#[test]
fn it_is_read_in_the_dark_and_the_drawings_are_right() {
    const TEST: &str = "review_hostile it_is_read_in_the_dark";
    if Command::new("chromium").arg("--version").output().is_err() {
        return skip::skip(TEST, "chromium is not installed");
    }
    let home = tempfile::tempdir().unwrap();
    let store = tempfile::tempdir().unwrap();
    day::write(store.path(), true).unwrap();
    let report = report::of_directory(store.path(), Since::Everything, NOW).unwrap();
    let path = home.path().join("report.html");
    std::fs::write(&path, render::html::render(&report)).unwrap();
    let mut browser = Browser::open(&path, &home.path().join("profile")).unwrap();
    let mut backgrounds = Vec::new();
    for scheme in ["light", "dark"] {
        let media = serde_json::json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.ask("Emulation.setEmulatedMedia", &media).unwrap();
        let mut says = |expression: &str| browser.says(expression).unwrap();
        let background = says("getComputedStyle(document.body).backgroundColor");
        for (of, property, behind) in [
            ("body", "color", "document.body"),
            (".sub", "color", "document.body"),
            ("nav a", "color", "document.body"),
            ("summary b", "color", "document.querySelector('details')"),
            (".id", "color", "document.querySelector('details')"),
            ("details.deny summary i", "color", "document.querySelector('details')"),
            ("details.allow summary i", "color", "document.querySelector('details')"),
            ("svg text", "fill", "document.body"),
        ] {
            let contrast = says(&format!(
                "{CONTRAST}(getComputedStyle(document.querySelector('{of}')).{property}, getComputedStyle({behind}).backgroundColor)"
            ));
            assert!(contrast.parse::<f64>().unwrap() >= 4.5, "{scheme}: {of} has a contrast of {contrast}");
        }
        // A shape needs 3.
        for (of, property) in
            [("rect.deny", "fill"), ("rect.allow", "fill"), (".edge.deny", "stroke"), (".edge.allow", "stroke")]
        {
            let contrast = says(&format!(
                "{CONTRAST}(getComputedStyle(document.querySelector('{of}')).{property}, getComputedStyle(document.body).backgroundColor)"
            ));
            assert!(contrast.parse::<f64>().unwrap() >= 3.0, "{scheme}: {of} has a contrast of {contrast}");
        }
        backgrounds.push(background);
    }
    assert_ne!(backgrounds[0], backgrounds[1], "dark is not dark");

    let mut number = |expression: &str| browser.says(expression).unwrap().parse::<usize>().unwrap();
    // Of the timeline: as many bars, denied and allowed, as parts of the time in which something was.
    let bars = |denied: bool| {
        let shown = report.findings.iter().filter(|finding| finding.kind != guard::review::findings::Kind::Learned);
        let of = shown.filter(|finding| finding.is_denied() == denied);
        let sums = of.fold([0u32; guard::review::facts::BARS], |mut sums, finding| {
            sums.iter_mut().zip(finding.facts.timeline).for_each(|(sum, flows)| *sum += flows);
            sums
        });
        sums.iter().filter(|sum| **sum > 0).count()
    };
    for (class, denied) in [("deny", true), ("allow", false)] {
        assert_eq!(number(&format!("document.querySelectorAll('rect.{class}').length")), bars(denied), "{class}");
    }
    let inside = "(svg => { const f = svg.getBoundingClientRect(); return [...svg.querySelectorAll('rect, text, path.edge')].filter(e => { \
        const r = e.getBoundingClientRect(); return r.left < f.left - 1 || r.right > f.right + 1 || r.top < f.top - 1 || \
        r.bottom > f.bottom + 1 || r.width == 0; }).length; })";
    for svg in ["svg:not(.talk)", "svg.talk"] {
        assert_eq!(
            number(&format!("{inside}(document.querySelector('{svg}'))")),
            0,
            "{svg}: something is out of its frame"
        );
    }
    // No two bars of one part of the time lie over one another, but for the hatching.
    let over = "[...document.querySelectorAll('svg g')].filter(g => { const [a, b] = ['rect.allow', 'rect.deny'].map(c => g.querySelector(c)); \
        return a && b && b.getBoundingClientRect().bottom > a.getBoundingClientRect().top + 1; }).length";
    assert_eq!(number(over), 0);
    // Who talks to whom.
    let talks: std::collections::BTreeSet<_> = report
        .findings
        .iter()
        .filter(|finding| finding.facts.flows > 0)
        .map(|finding| (finding.facts.group.program.clone(), guard::review::words::flow(finding)))
        .collect();
    let left_out =
        number("+(document.querySelector('figure.wide figcaption').textContent.match(/([0-9]+) more/) || [0, 0])[1]");
    assert_eq!(number("document.querySelectorAll('.talk .edge').length") + left_out, talks.len());
    let dashed = "[...document.querySelectorAll('.edge')].filter(e => \
        (getComputedStyle(e).strokeDasharray != 'none') != e.classList.contains('deny')).length";
    assert_eq!(number(dashed), 0);
    // Each line begins and ends where a name stands.
    let loose = "(svg => { const y = [...svg.querySelectorAll('text')].map(t => +t.getAttribute('y') - 4); \
        return [...svg.querySelectorAll('.edge')].filter(e => { const n = e.getAttribute('d').match(/[0-9.]+/g).map(Number); \
        return !y.some(v => Math.abs(v - n[1]) <= 1) || !y.some(v => Math.abs(v - n[7]) <= 1); }).length; })(document.querySelector('.talk'))";
    assert_eq!(number(loose), 0);
    // On a phone it is moved in its own frame, and the page is not.
    assert_eq!(
        number("+(document.querySelector('.wide div').scrollWidth > document.querySelector('.wide div').clientWidth)"),
        1
    );
    assert_eq!(number("+(document.documentElement.scrollWidth <= window.innerWidth)"), 1);
}
