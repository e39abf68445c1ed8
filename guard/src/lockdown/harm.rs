//! What a cut would harm, by what is found on this host. Nothing here decides anything; it is said before.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::way_in::Way;

/// One thing to think of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Harm {
    /// Stable: `nfs`, `ceph`, `smb`, `gluster`, `sshfs`, `nbd`, `iscsi`, `fcoe`, `login`, `second_factor`, `cloud`,
    /// `keepalived`, `cluster`, `vpn`, `clock`.
    pub code: &'static str,
    /// The host itself would hang or be switched off.
    pub grave: bool,
    pub what: String,
    /// What to do about it; empty: nothing can be.
    pub fix: String,
}

/// What the host says, read once.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// `/proc/self/mounts`.
    pub mounts: String,
    /// Of DMI: vendor, product, chassis tag.
    pub dmi: Vec<String>,
    /// File names of the executables that run, and their units.
    pub programs: Vec<(String, Option<String>)>,
    /// `pam.d` files that have to do with logins.
    pub pam: String,
    /// `nsswitch.conf`.
    pub nsswitch: String,
    /// `krb5.conf` is there.
    pub kerberos: bool,
    /// By block device (`sda`): the iSCSI target that it is of; `None`: not known.
    pub iscsi: Vec<(String, Option<SocketAddr>)>,
    /// FCoE's Ethernet frames are sent here.
    pub fcoe: bool,
    /// Remotes of TCP connections, the kernel's own (NBD, Ceph) too.
    pub connected: Vec<SocketAddr>,
}

impl Facts {
    #[must_use]
    pub fn read(programs: Vec<(String, Option<String>)>, connected: Vec<SocketAddr>) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let dmi =
            ["sys_vendor", "product_name", "product_version", "bios_vendor", "chassis_asset_tag", "board_asset_tag"];
        let pam = ["sshd", "sudo", "login", "common-auth", "system-auth", "password-auth"];
        let mounts = text("/proc/self/mounts");
        Self {
            iscsi: iscsi_disks(Path::new("/sys")),
            fcoe: fs::read_dir("/sys/bus/fcoe/devices").is_ok_and(|mut entries| entries.next().is_some()),
            dmi: dmi.iter().map(|name| text(&format!("/sys/class/dmi/id/{name}")).trim().to_owned()).collect(),
            pam: pam.iter().map(|name| text(&format!("/etc/pam.d/{name}"))).collect(),
            nsswitch: text("/etc/nsswitch.conf"),
            kerberos: Path::new("/etc/krb5.conf").exists(),
            programs,
            mounts,
            connected,
        }
    }

    /// Those that are connected now, of a kind that is known by its ports.
    fn servers(&self, ports: &[u16]) -> Vec<SocketAddr> {
        self.connected.iter().filter(|to| ports.contains(&to.port())).copied().collect()
    }

    fn runs(&self, names: &[&str]) -> bool {
        self.programs.iter().any(|(program, unit)| {
            let unit = unit.as_deref().and_then(|unit| unit.strip_suffix(".service")).unwrap_or_default();
            names.iter().any(|name| program == name || unit == *name)
        })
    }
}

/// Of the ways in, where a VPN or another program of this host carries the session.
#[must_use]
pub fn vpn(ways: &[Way]) -> Option<Harm> {
    let way = ways.iter().find(|way| way.found == "tunnel")?;
    Some(Harm {
        code: "vpn",
        grave: false,
        what: format!(
            "{} carries your session: what it speaks with now is kept, and nothing else; a server of its own that it has to \
             find anew (keys, relays, names) is not",
            crate::text::escape_line(&way.program)
        ),
        fix: "--keep its unit or --allow-to ITS-SERVER, and a way in beside it: --allow-from ADDRESS".to_owned(),
    })
}

/// `allowed`: whether the policy lets this host reach a remote's port over TCP.
#[must_use]
pub fn find(facts: &Facts, allowed: &dyn Fn(SocketAddr) -> bool) -> Vec<Harm> {
    let mut harms = storage(facts, allowed);
    harms.extend(logins(facts));
    harms.extend(cloud(facts));
    harms.extend(clusters(facts));
    let clocks = ["chronyd", "ntpd", "ntpd-rs", "systemd-timesyncd"];
    if facts.runs(&clocks) {
        harms.push(Harm {
            code: "clock",
            grave: false,
            what:
                "the clock runs free: NTP is closed (logins by Kerberos and one-time codes fail when it is minutes off)"
                    .to_owned(),
            fix: "--allow-to TIME-SERVER:udp/123".to_owned(),
        });
    }
    harms
}

/// Directories without which nothing runs, or nobody logs in.
fn vital(point: &str) -> bool {
    ["/", "/home", "/root", "/usr", "/var", "/etc", "/opt"].contains(&point) || point.starts_with("/home/")
}

fn storage(facts: &Facts, allowed: &dyn Fn(SocketAddr) -> bool) -> Vec<Harm> {
    let mut harms = Vec::new();
    for line in facts.mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [source, point, kind, options, ..] = fields[..] else { continue };
        let option = |name: &str| options.split(',').find_map(|option| option.strip_prefix(name));
        let shown = crate::text::escape_line(point);
        let hang = |what: String| {
            if vital(point) {
                format!("{what}: cutting it would hang this host")
            } else {
                format!("{what}: it will hang")
            }
        };
        let (code, server, port): (_, Option<IpAddr>, u16) = match kind {
            "nfs" | "nfs4" => ("nfs", option("addr=").and_then(|text| text.parse().ok()), 2049),
            "ceph" => ("ceph", source.split([':', ',']).next().and_then(|text| text.parse().ok()), 6789),
            "cifs" | "smb3" => ("smb", option("addr=").and_then(|text| text.parse().ok()), 445),
            "fuse.glusterfs" => ("gluster", None, 24007),
            "fuse.sshfs" => ("sshfs", None, 22),
            _ => {
                harms.extend(block_device(facts, source, point, allowed));
                continue;
            }
        };
        let servers = match server {
            Some(server) => vec![SocketAddr::new(server, port)],
            None if code == "ceph" => facts.servers(&[3300, 6789]),
            None => facts.servers(&[port]),
        };
        if !servers.is_empty() && servers.iter().all(|server| allowed(*server)) {
            continue;
        }
        let server = servers.iter().find(|server| !allowed(**server)).map(SocketAddr::ip);
        let named = server.map_or_else(|| "a server".to_owned(), |server| format!("server {server}"));
        let kind = match code {
            "nfs" => "NFS",
            "ceph" => "Ceph",
            "smb" => "SMB",
            "gluster" => "Gluster",
            _ => "SSHFS",
        };
        harms.push(Harm {
            code,
            grave: vital(point),
            what: hang(format!("{shown} is on {kind} {named}")),
            fix: match (server, code) {
                (Some(server), "ceph") => {
                    format!("--allow-to {server}:tcp/3300, :tcp/6789 and its storage servers on tcp/6800-7568")
                }
                (Some(server), _) => format!("--allow-to {server}:tcp/{port}"),
                (None, _) => format!("--allow-to SERVER:tcp/{port}"),
            },
        });
    }
    if facts.fcoe {
        harms.push(Harm {
            code: "fcoe",
            grave: true,
            what: "disks over FCoE: its frames (Ethernet type 0x8906) are denied and cannot be listed".to_owned(),
            fix: "leave the interface out: --not-interface NAME".to_owned(),
        });
    }
    harms
}

/// A mount whose disk is really somewhere else.
fn block_device(facts: &Facts, source: &str, point: &str, allowed: &dyn Fn(SocketAddr) -> bool) -> Option<Harm> {
    let name = source.strip_prefix("/dev/")?;
    let shown = crate::text::escape_line(point);
    let hang = if vital(point) { "cutting it would hang this host" } else { "it will hang" };
    let bare = name.rsplit('/').next().unwrap_or(name);
    if bare.starts_with("nbd") || bare.starts_with("rbd") {
        let (code, kind, port) = if bare.starts_with("nbd") { ("nbd", "NBD", 10809) } else { ("ceph", "Ceph", 6789) };
        let servers = facts.servers(if code == "nbd" { &[10809] } else { &[3300, 6789] });
        if !servers.is_empty() && servers.iter().all(|server| allowed(*server)) {
            return None;
        }
        let cut = servers.iter().find(|server| !allowed(**server));
        return Some(Harm {
            code,
            grave: vital(point),
            what: format!("{shown} is on {kind} ({}): {hang}", crate::text::escape_line(source)),
            fix: match cut {
                Some(server) => format!("--allow-to {}:tcp/{}", server.ip(), server.port()),
                None => format!("--allow-to SERVER:tcp/{port}"),
            },
        });
    }
    let (_, target) = facts.iscsi.iter().find(|(disk, _)| bare == disk || is_partition_of(bare, disk))?;
    if target.is_some_and(allowed) {
        return None;
    }
    let (named, fix) = match target {
        Some(target) => (format!("iSCSI target {target}"), format!("--allow-to {}:tcp/{}", target.ip(), target.port())),
        None => ("an iSCSI target".to_owned(), "--allow-to TARGET:tcp/3260".to_owned()),
    };
    Some(Harm { code: "iscsi", grave: vital(point), what: format!("{shown} is on {named}: {hang}"), fix })
}

fn is_partition_of(name: &str, disk: &str) -> bool {
    name.strip_prefix(disk).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Disks of iSCSI sessions, and the device-mapper devices that lie on them.
fn iscsi_disks(sys: &Path) -> Vec<(String, Option<SocketAddr>)> {
    let mut disks: Vec<(String, Option<SocketAddr>)> = Vec::new();
    let blocks = || fs::read_dir(sys.join("class/block")).into_iter().flatten().flatten();
    for entry in blocks() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(path) = fs::canonicalize(entry.path()) else { continue };
        let text = path.to_string_lossy().into_owned();
        let Some(session) = text.split('/').find(|part| part.starts_with("session")) else { continue };
        let number = session.trim_start_matches("session");
        disks.push((name, target(sys, number)));
    }
    // What lies on them (LVM, multipath, encryption), however deep.
    for _ in 0..8 {
        let mut more = Vec::new();
        for entry in blocks() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if disks.iter().any(|(known, _)| *known == name) {
                continue;
            }
            let slaves = fs::read_dir(entry.path().join("slaves")).into_iter().flatten().flatten();
            let below = slaves
                .filter_map(|slave| {
                    let slave = slave.file_name().to_string_lossy().into_owned();
                    disks.iter().find(|(disk, _)| slave == *disk || is_partition_of(&slave, disk)).map(|(_, to)| *to)
                })
                .next();
            if let Some(below) = below {
                // /dev/mapper/NAME is how it stands among the mounts.
                let mapped = fs::read_to_string(entry.path().join("dm/name")).map(|text| text.trim().to_owned());
                more.extend(mapped.ok().map(|mapped| (mapped, below)));
                more.push((name, below));
            }
        }
        if more.is_empty() {
            break;
        }
        disks.extend(more);
    }
    disks
}

fn target(sys: &Path, session: &str) -> Option<SocketAddr> {
    let place: PathBuf = sys.join(format!("class/iscsi_connection/connection{session}:0"));
    let read = |name: &str| fs::read_to_string(place.join(name)).ok().map(|text| text.trim().to_owned());
    let address: IpAddr = read("address").or_else(|| read("persistent_address"))?.parse().ok()?;
    let port = read("port").or_else(|| read("persistent_port"))?.parse().ok()?;
    Some(SocketAddr::new(address, port))
}

fn logins(facts: &Facts) -> Vec<Harm> {
    let mut by: Vec<&str> = Vec::new();
    let names = facts.nsswitch.lines().filter(|line| !line.trim_start().starts_with('#'));
    let passwd: Vec<&str> = names
        .filter(|line| ["passwd:", "group:", "shadow:", "sudoers:"].iter().any(|key| line.starts_with(key)))
        .flat_map(str::split_whitespace)
        .collect();
    if passwd.contains(&"sss") || facts.runs(&["sssd"]) {
        by.push("SSSD");
    }
    if passwd.contains(&"ldap") || facts.runs(&["nslcd"]) {
        by.push("LDAP");
    }
    if passwd.contains(&"winbind") || facts.runs(&["winbindd"]) {
        by.push("winbind");
    }
    let modules = |name: &str| facts.pam.lines().any(|line| !line.trim_start().starts_with('#') && line.contains(name));
    if modules("pam_krb5") || (facts.kerberos && modules("pam_sss")) {
        by.push("Kerberos");
    }
    let mut harms = Vec::new();
    if !by.is_empty() {
        harms.push(Harm {
            code: "login",
            grave: false,
            what: format!(
                "logins and sudo ask {} over the network: new ones may hang or fail; stay logged in as root",
                by.join(", ")
            ),
            fix: "--allow-to DIRECTORY-SERVER:ldaps, or keep a local account ready".to_owned(),
        });
    }
    let factors = [
        ("pam_duo", "Duo"),
        ("pam_radius", "RADIUS"),
        ("pam_yubico", "Yubico's servers"),
        ("pam_okta", "Okta"),
        ("pam_rsa", "RSA SecurID"),
        ("pam_oidc", "an OpenID provider"),
    ];
    if let Some((_, name)) = factors.iter().find(|(module, _)| modules(module)) {
        harms.push(Harm {
            code: "second_factor",
            grave: false,
            what: format!("a second factor is asked of {name}: new logins may fail, or pass without it"),
            fix: "--allow-to ITS-SERVER:https".to_owned(),
        });
    }
    harms
}

fn cloud(facts: &Facts) -> Option<Harm> {
    const CLOUDS: &[(&str, &str)] = &[
        ("Amazon EC2", "Amazon EC2"),
        ("amazon", "Amazon EC2"),
        ("Google", "Google Cloud"),
        // Azure's chassis tag, "MSFT AZURE VM" in numbers.
        ("7783-7084-3265-9085-8269-3286-77", "Azure"),
        ("DigitalOcean", "DigitalOcean"),
        ("Hetzner", "Hetzner Cloud"),
        ("OracleCloud.com", "Oracle Cloud"),
        ("Alibaba Cloud", "Alibaba Cloud"),
        ("OpenStack", "OpenStack"),
        ("Scaleway", "Scaleway"),
        ("Vultr", "Vultr"),
        ("Linode", "Linode"),
        ("Akamai", "Akamai"),
    ];
    let (_, name) = CLOUDS.iter().find(|(mark, _)| facts.dmi.iter().any(|text| text.contains(mark)))?;
    Some(Harm {
        code: "cloud",
        grave: true,
        what: format!(
            "guest of {name}: its health checks will fail, and a group or balancer may terminate it; logging in by the \
             metadata service stops"
        ),
        fix: "set termination protection and take it out of its group first".to_owned(),
    })
}

fn clusters(facts: &Facts) -> Vec<Harm> {
    const KNOWN: &[(&[&str], bool, &str, &str)] = &[
        (
            &["pacemakerd", "pacemaker", "corosync"],
            true,
            "pacemaker: its peers lose this node, and fencing may power it off (memory is lost)",
            "put it into standby or maintenance first, on another node",
        ),
        (
            &["keepalived"],
            false,
            "keepalived: VRRP is cut, so this host and its peer both become master",
            "stop keepalived here, or --allow-to 224.0.0.18:proto/vrrp and --allow-from PEER:proto/vrrp",
        ),
        (
            &["kubelet", "k3s", "k3s-agent", "rke2-agent", "rke2-server"],
            false,
            "kubelet: the node becomes NotReady, its pods are started elsewhere, and those here go on running",
            "drain or cordon it first",
        ),
        (
            &["patroni"],
            true,
            "Patroni: loses its store, so a primary stops taking writes and a replica takes over",
            "switch over first, or pause the cluster (patronictl pause)",
        ),
        (
            &["consul"],
            false,
            "Consul: this node is marked failed, and what it locks or serves is given to others",
            "take it out of service first",
        ),
        (
            &["etcd"],
            false,
            "etcd: this member is lost; with too few left the cluster stops",
            "make sure that a majority stands without it",
        ),
    ];
    KNOWN
        .iter()
        .filter(|(names, ..)| facts.runs(names))
        .map(|(names, grave, what, fix)| Harm {
            code: if names.contains(&"keepalived") { "keepalived" } else { "cluster" },
            grave: *grave,
            what: (*what).to_owned(),
            fix: (*fix).to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(facts: &Facts) -> Vec<&'static str> {
        find(facts, &|_| false).iter().map(|harm| harm.code).collect()
    }

    #[test]
    fn root_on_a_file_server_would_hang_and_says_what_to_add() {
        let facts = Facts {
            mounts: "192.0.2.20:/export / nfs4 rw,vers=4.2,addr=192.0.2.20 0 0\n\
                     192.0.2.21:6789:/ /mnt ceph rw 0 0\n\
                     /dev/nbd0p1 /home ext4 rw 0 0\n\
                     /dev/sda1 /boot ext4 rw 0 0\ntmpfs /run tmpfs rw 0 0\n"
                .to_owned(),
            ..Facts::default()
        };
        let harms = find(&facts, &|_| false);
        assert_eq!(
            harms.iter().map(|h| (h.code, h.grave)).collect::<Vec<_>>(),
            [("nfs", true), ("ceph", false), ("nbd", true)]
        );
        assert!(harms[0].what.contains("/ is on NFS server 192.0.2.20: cutting it would hang"), "{}", harms[0].what);
        assert_eq!(harms[0].fix, "--allow-to 192.0.2.20:tcp/2049");
        let allowed = find(&facts, &|to| to == "192.0.2.20:2049".parse().unwrap());
        assert!(!allowed.iter().any(|harm| harm.code == "nfs"), "it is listed");
    }

    #[test]
    fn a_server_that_is_connected_and_listed_is_no_harm() {
        let facts = Facts {
            mounts: "/dev/nbd0 /home ext4 rw 0 0\n/dev/rbd0 /srv ext4 rw 0 0\n\
                     files:/vol /mnt fuse.glusterfs rw 0 0\nme@files:/home /far fuse.sshfs rw 0 0\n"
                .to_owned(),
            connected: ["192.0.2.20:10809", "192.0.2.21:3300", "192.0.2.22:24007", "192.0.2.23:22"]
                .map(|to| to.parse().unwrap())
                .to_vec(),
            ..Facts::default()
        };
        assert_eq!(codes(&facts), ["nbd", "ceph", "gluster", "sshfs"]);
        let fixes: Vec<String> = find(&facts, &|_| false).into_iter().map(|harm| harm.fix).collect();
        assert_eq!(fixes[0], "--allow-to 192.0.2.20:tcp/10809");
        assert_eq!(fixes[3], "--allow-to 192.0.2.23:tcp/22");
        assert!(find(&facts, &|_| true).is_empty(), "all are listed");
        let unknown = Facts { connected: Vec::new(), ..facts };
        assert_eq!(find(&unknown, &|_| true).len(), 4, "whose server nobody knows");
    }

    #[test]
    fn a_disk_of_iscsi_is_seen_through_what_lies_on_it() {
        let root = tempfile::tempdir().unwrap();
        let sys = root.path();
        let disk = sys.join("devices/platform/host3/session1/target3:0:0/3:0:0:1/block/sdb");
        let blocks = sys.join("class/block");
        let mapped = sys.join("devices/virtual/block/dm-0");
        for directory in [&disk, &blocks, &mapped.join("slaves"), &mapped.join("dm")] {
            fs::create_dir_all(directory).unwrap();
        }
        std::os::unix::fs::symlink(&disk, blocks.join("sdb")).unwrap();
        std::os::unix::fs::symlink(&mapped, blocks.join("dm-0")).unwrap();
        fs::write(mapped.join("slaves/sdb1"), "").unwrap();
        fs::write(mapped.join("dm/name"), "vg-root\n").unwrap();
        let connection = sys.join("class/iscsi_connection/connection1:0");
        fs::create_dir_all(&connection).unwrap();
        fs::write(connection.join("address"), "192.0.2.30\n").unwrap();
        fs::write(connection.join("port"), "3260\n").unwrap();
        let facts = Facts {
            iscsi: iscsi_disks(sys),
            mounts: "/dev/mapper/vg-root / ext4 rw 0 0\n/dev/sdb2 /data ext4 rw 0 0\n".to_owned(),
            ..Facts::default()
        };
        let harms = find(&facts, &|_| false);
        assert_eq!(harms.len(), 2, "{harms:?}");
        assert_eq!((harms[0].grave, harms[0].fix.as_str()), (true, "--allow-to 192.0.2.30:tcp/3260"));
        assert!(!harms[1].grave);
        assert!(find(&facts, &|to| to == "192.0.2.30:3260".parse().unwrap()).is_empty());
    }

    #[test]
    fn logins_clouds_clusters_and_the_clock() {
        let facts = Facts {
            nsswitch: "# passwd: ldap\npasswd: files sss\ngroup: files\nhosts: files dns ldap\n".to_owned(),
            pam: "auth required pam_duo.so\n# auth pam_krb5.so\n".to_owned(),
            dmi: vec!["QEMU".to_owned(), "Amazon EC2".to_owned()],
            programs: vec![
                ("keepalived".to_owned(), Some("keepalived.service".to_owned())),
                ("python3.11".to_owned(), Some("patroni.service".to_owned())),
                ("chronyd".to_owned(), None),
            ],
            ..Facts::default()
        };
        assert_eq!(codes(&facts), ["login", "second_factor", "cloud", "keepalived", "cluster", "clock"]);
        let harms = find(&facts, &|_| false);
        assert!(harms[0].what.contains("ask SSSD over"), "{}", harms[0].what);
        assert!(harms[2].what.contains("Amazon EC2"), "{}", harms[2].what);
        assert!(codes(&Facts::default()).is_empty());
    }
}
