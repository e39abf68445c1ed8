use std::fs;

use super::*;
use crate::policy;

fn image(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn written(profile: Profile, root: &Path, running: &Running) -> (First, String) {
    let files = Files::new(root, true);
    let first = first(profile, &files, running);
    let text = first.policy("policy");
    policy::load_str("policy.yaml", &text).unwrap_or_else(|found| panic!("{}\n{text}", found.render(false)));
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
        "      - 192.0.2.53   # /run/systemd/resolve/resolv.conf:2\n",
        "      - \"2001:db8::53\"   # /run/systemd/resolve/resolv.conf:3\n",
        "      - 192.0.2.123   # /etc/chrony/chrony.conf:2\n",
        "      - 203.0.113.80   # deb.example, of /etc/apt/sources.list:1\n",
        "      - 203.0.113.80   # security.example, of /etc/apt/sources.list.d/more.sources:2\n    services: [tcp/8080]\n",
        "      - 192.0.2.25   # mail.example, of /etc/gitlab/gitlab.rb:4\n    services: [tcp/465]\n",
        "      - 192.0.2.36   # ldap.example, of /etc/gitlab/gitlab.rb:8\n    services: [ldaps]\n",
        "      - 203.0.113.96   # s3.example, of /etc/gitlab/gitlab.rb:12\n    services: [https]\n",
        "      - 198.51.100.7   # the session that asked for this\n    services: [ssh]\n",
        "    from: any\n    services: [http, https, tcp/5050]\n",
        "    services: [tcp/2222]\n",
        "  # - { from: WHOM, services: tcp/5432 }   # listens: /usr/lib/postgres\\n- evil\n",
        "#   an address of unknown.example (/etc/chrony/chrony.conf:1)\n",
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
        for what in ["your own way in", "resolvers", "time servers", "package sources", "listening services"] {
            assert!(first.not_found.iter().any(|line| line.contains(what)), "{what}: {text}");
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
