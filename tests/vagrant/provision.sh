#!/bin/bash
# Makes one of the three machines of a box. Run by Vagrant as root: provision.sh victim|responder|intruder
set -euo pipefail
role=$1
export DEBIAN_FRONTEND=noninteractive

# The box of `cargo xtask vagrant box` has all of it, and starts it where this says so.
touch "/etc/lab-$role"
if ! command -v tcpdump >/dev/null; then
    packages="openssh-client iputils-ping netcat-openbsd tcpdump curl python3-minimal"
    [ "$role" != victim ] || packages+=" libpcap0.8 nginx-light postgresql dnsmasq docker.io iptables busybox-static"
    apt-get -qq update
    # shellcheck disable=SC2086
    apt-get -qq install -y --no-install-recommends $packages
fi

echo "$role" > /etc/hostname
hostname "$role"
cat > /etc/hosts <<END
127.0.0.1 localhost $role
192.0.2.10 victim
192.0.2.20 responder
192.0.2.66 intruder
END

if [ "$role" != victim ]; then
    chmod 0600 /home/vagrant/.ssh/id_rsa
    exit 0
fi

# A small server. Its resolver asks nobody: what there is to know stands in /etc/hosts.
cat > /etc/dnsmasq.d/lab.conf <<END
no-resolv
listen-address=127.0.0.1
bind-interfaces
END
rm -f /etc/resolv.conf
echo 'nameserver 127.0.0.1' > /etc/resolv.conf
sed -i "s/^#\?listen_addresses.*/listen_addresses = '*'/" /etc/postgresql/*/main/postgresql.conf
echo 'A small server.' > /var/www/html/index.html
systemctl restart nginx postgresql dnsmasq

# No name in the package's policy: it denies nothing, and records.
dpkg --install /tmp/guard.deb
guard status
