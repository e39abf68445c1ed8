use std::fs;

use super::*;
use crate::policy::{self, model::Mode};

fn image(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

/// In audit mode, without an error, and its own tests pass.
fn written(profile: Profile, root: &Path, running: &Running) -> (First, String) {
    let files = Files::new(root, true);
    let first = first(profile, &files, running);
    let text = first.policy("policy");
    let loaded =
        policy::load_str("policy.yaml", &text).unwrap_or_else(|found| panic!("{}\n{text}", found.render(false)));
    let policy = loaded.policy;
    assert_eq!((policy.inbound, policy.outbound), (Mode::Audit, Mode::Audit));
    assert!(policy.tests.len() >= 4, "{text}");
    let now = policy::ready::now();
    let compiled = policy::compile::compile(&policy, now, 0).unwrap();
    for test in &policy.tests {
        let said = policy::answer::answer(&policy, &compiled, &test.flow, now).explanation;
        let rule = said.rule.map(|number| policy.rules[number].label());
        assert!(said.verdict == test.expect && (test.rule.is_none() || test.rule == rule), "{}\n{text}", test.text);
    }
    (first, text)
}

const HOST: &[(&str, &str)] = &[
    (
        "etc/hosts",
        "127.0.0.1 localhost\n203.0.113.80 deb.example security.example\n2001:db8:80::80 deb.example\n192.0.2.25 mail.example\n192.0.2.36 ldap.example\n203.0.113.96 s3.example\n",
    ),
    ("etc/resolv.conf", "nameserver 127.0.0.53\n"),
    ("run/systemd/resolve/resolv.conf", "# comment\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n"),
    ("etc/chrony/chrony.conf", "pool unknown.example iburst\nserver 192.0.2.123 iburst # ours\n"),
    (
        "etc/apt/sources.list",
        "deb [signed-by=/x] https://deb.example/debian trixie main\n# deb http://old.example/ x\n",
    ),
    ("etc/apt/sources.list.d/more.sources", "Types: deb\nURIs: http://security.example:8080/debian\n"),
    (
        "etc/gitlab/gitlab.rb",
        "external_url 'https://git.example'\nregistry_external_url \"https://git.example:5050\"\n# external_url 'http://no.example'\ngitlab_rails['smtp_address'] = \"mail.example\"\ngitlab_rails['smtp_port'] = 465\ngitlab_rails['ldap_servers'] = YAML.load <<-'EOS'\n  main:\n    host: 'ldap.example'\n    port: 636\nEOS\ngitlab_rails['object_store']['connection'] = {\n  'endpoint' => 'https://s3.example'\n}\ngitlab_rails['gitlab_shell_ssh_port'] = 2222\n",
    ),
];

#[test]
fn every_line_has_its_source() {
    let root = image(HOST);
    let running = Running {
        session: vec![("198.51.100.7".parse().unwrap(), 6, 22)],
        listening: Some(vec![
            Listening { protocol: 6, port: 22, program: Some("/usr/sbin/sshd".into()) },
            Listening { protocol: 6, port: 5432, program: Some("/usr/lib/postgres\n- evil".into()) },
        ]),
    };
    let (first, text) = written(Profile::Gitlab, root.path(), &running);
    for line in [
        "  admins:   # who may log in to the host\n    - 198.51.100.7   # the session that asked for this\n",
        "  admin_ssh: [ssh]   # the session that asked for this; add a second way in\n",
        "    - 192.0.2.53   # /run/systemd/resolve/resolv.conf:2\n",
        "    - \"2001:db8::53\"   # /run/systemd/resolve/resolv.conf:3\n",
        "  time_servers:\n    - 192.0.2.123   # /etc/chrony/chrony.conf:2\n",
        "    - 203.0.113.80   # deb.example, of /etc/apt/sources.list:1\n",
        "  packages: [https, tcp/8080]   # /etc/apt/sources.list.d/more.sources:2, /etc/apt/sources.list:1\n",
        "    - 192.0.2.25   # mail.example, of /etc/gitlab/gitlab.rb:4\n",
        "  submission: [tcp/465]   # /etc/gitlab/gitlab.rb:4\n",
        "    - 192.0.2.36   # ldap.example, of /etc/gitlab/gitlab.rb:8\n",
        "  logins: [ldaps]   # /etc/gitlab/gitlab.rb:8\n",
        "    - 203.0.113.96   # s3.example, of /etc/gitlab/gitlab.rb:12\n",
        "  users: [0.0.0.0/0, \"::/0\"]   # public: decide who may ask (web, Git over SSH)\n",
        "  registry: [tcp/5050]   # /etc/gitlab/gitlab.rb:2\n",
        "  git_ssh: [tcp/2222]   # /etc/gitlab/gitlab.rb:14\n",
        "  # - { from: WHOM, services: tcp/5432 }   # listens: /usr/lib/postgres\\n- evil\n",
        "#   time_servers: an address of unknown.example (/etc/chrony/chrony.conf:1)\n",
        "#   runners: CI runners: they call GitLab, GitLab never calls them\n",
        // What the host does not tell is left standing, and switched off.
        "  # runners: [WHO]   # CI runners: they call GitLab, GitLab never calls them\n",
        "  # - name: runners\n  #   from: runners\n  #   services: [https, registry]\n",
        // The shipped policy's own words and tests.
        "  # REQUIRED: tokens, two-factor codes and Geo need the right time.\n  - name: time\n",
        "  - { flow: \"out tcp 203.0.113.9:4444\", expect: deny }\n",
        "  - { flow: \"in tcp 198.51.100.7 -> 22\", expect: allow, rule: \"ssh for admins\" }\n",
        "will rot",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert_eq!(first.closed.len(), 1);
}

#[test]
fn an_empty_image_says_what_it_could_not_find() {
    let root = image(&[]);
    for profile in [Profile::Gitlab, Profile::Web, Profile::Ci, Profile::Workstation] {
        let (first, text) = written(profile, root.path(), &Running::default());
        let packages = if profile == Profile::Workstation { "package_proxy" } else { "mirrors" };
        for what in ["your own way in", "resolvers", "time_servers", packages, "listening services"] {
            assert!(first.not_found.iter().any(|line| line.contains(what)), "{what}: {text}");
        }
    }
}

/// Whoever edits a shipped policy must see here that init still finds its places.
#[test]
fn every_place_that_is_filled_is_in_the_shipped_policy() {
    let root = image(HOST);
    fs::create_dir_all(root.path().join("etc/gitlab-runner")).unwrap();
    fs::write(root.path().join("etc/gitlab-runner/config.toml"), "url = \"https://s3.example:8443/\"\n").unwrap();
    let running = Running {
        session: vec![("198.51.100.7".parse().unwrap(), 6, 2022), ("198.51.100.7".parse().unwrap(), 17, 60001)],
        listening: Some(vec![Listening { protocol: 6, port: 443, program: None }]),
    };
    for profile in [Profile::Gitlab, Profile::Web, Profile::Ci, Profile::Workstation] {
        let (first, text) = written(profile, root.path(), &running);
        assert!(text.contains("  admin_ssh: [ssh, tcp/2022, udp/60000-61000]   # the session"), "{text}");
        for (name, filled) in &first.filled {
            let place = match filled {
                Filled::Nothing(_) => format!("\n  # {name}: [WHO]"),
                Filled::Addresses(_) => format!("\n  {name}:"),
                _ => format!("\n  {name}: ["),
            };
            assert!(text.contains(&place), "{name} of {profile:?}:\n{text}");
        }
    }
}

#[test]
fn files_of_an_intruder_do_no_harm() {
    let root = image(&[
        ("etc/hosts", "203.0.113.9 a\u{2028}b\x1b[2J\n203.0.113.9 evil\n"),
        ("etc/resolv.conf", "nameserver 203.0.113.9\r\n  - name: x\nnameserver\nnameserver ::\u{85}\n"),
        ("etc/apt/sources.list", "deb http://evil/\x1b]0;x\x07 x\ndeb http://[::1]:99999999/ x\ndeb http://@:/ x\n"),
        ("etc/gitlab/gitlab.rb", "external_url '\nexternal_url '''\ngitlab_rails['smtp_port'] = 99999999\n"),
        ("etc/chrony/chrony.conf", "server a\u{2028}b\x1b[2J\nserver\npool \u{202e}x\n"),
    ]);
    let (_, text) = written(Profile::Gitlab, root.path(), &Running::default());
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()) && !text.contains(['\u{2028}', '\u{202e}']), "{text:?}");
}

/// Every file that is read, for [`any_text_does_no_harm`].
const READ: [&str; 14] = [
    "etc/hosts",
    "etc/resolv.conf",
    "run/systemd/resolve/resolv.conf",
    "etc/systemd/resolved.conf",
    "etc/dnsmasq.conf",
    "etc/chrony/chrony.conf",
    "etc/ntp.conf",
    "etc/systemd/timesyncd.conf",
    "etc/apt/apt.conf.d/proxy",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/a.sources",
    "etc/gitlab/gitlab.rb",
    "etc/gitlab-runner/config.toml",
    "etc/ntpsec/ntp.conf",
];

/// Lines that nearly are what is looked for, and bytes that are nothing.
fn any_line() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    use proptest::prelude::*;
    let words = prop::sample::select(vec![
        "nameserver ",
        "DNS=",
        "NTP=",
        "server=",
        "server ",
        "pool ",
        "deb ",
        "URIs: ",
        "Acquire::http::Proxy \"",
        "external_url '",
        "gitlab_rails['smtp_address'] = \"",
        "url = \"",
        "YAML.load <<-'EOS'",
        "host: ",
        "port: ",
        "192.0.2.1",
        "2001:db8::1",
        "%eth0",
        "#x",
        "[::1]:53",
        "http://",
        "https://u:p@h:99999/",
        "999.1.1.1",
        "'",
        "\"",
        "[",
        "]",
        "%",
        ":",
        "\\",
        "=",
        "\u{1b}[2J",
        "\n",
        "\n- {to: any}\n",
        "\t",
    ]);
    prop_oneof![
        prop::collection::vec(words, 0..8).prop_map(|words| words.concat().into_bytes()),
        ".{0,60}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..60),
    ]
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 48, ..Default::default() })]

    /// Whatever a host's files say, what comes of it is a policy in audit mode that passes `guard check` and its own tests, in
    /// which only addresses were filled in.
    #[test]
    fn any_text_does_no_harm(texts in proptest::collection::vec(proptest::collection::vec(any_line(), 0..6), READ.len())) {
        let root = tempfile::tempdir().unwrap();
        for (path, lines) in READ.iter().zip(&texts) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, lines.join(&b'\n')).unwrap();
        }
        let running = Running { session: Vec::new(), listening: None };
        for profile in [Profile::Gitlab, Profile::Web, Profile::Ci, Profile::Workstation] {
            let (_, text) = written(profile, root.path(), &running);
            proptest::prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
            proptest::prop_assert!(!text.contains("\n- {to: any}"), "{text}");
        }
        let _ = Files::new(root.path(), true).every_resolver();
    }
}
