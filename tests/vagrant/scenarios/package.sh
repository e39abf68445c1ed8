# shellcheck shell=bash
# the package: installed, upgraded with no gap, removed only when that is meant, and purged
#
# Expected, as the intruder and the responder see it:
# - Installing cuts nobody off.
# - Through an upgrade from a lower version no answer to the responder is lost, no try of the intruder is answered, and each is
#   counted.
# - Removing asks first: answered with no, or where nobody can be asked, the host stays closed. Purged, nothing is left.

older='set -e; cd /var/tmp; rm -rf older; dpkg-deb -R /tmp/guard.deb older; sed -i "s/^Version: .*/Version: 0.0.1/" older/DEBIAN/control
    dpkg-deb -Znone -b older older.deb >/dev/null; rm -rf older'
version() { victim "dpkg-query -W -f '\${Version}' guard"; }

step 'from nothing: a lower version is installed, and cuts nobody off'
victim "$older"
says . victim 'dpkg --purge guard 2>&1'
equal no "$(victim 'test -e /usr/bin/guard && echo yes || echo no')" 'is there a guard'
victim 'dpkg --install /var/tmp/older.deb' >/dev/null 2>&1 || fail 'the lower version does not install'
equal 0.0.1 "$(version)" 'version'
says 'AUDIT in and out' victim 'guard status'
says 'small server' on intruder "curl -s -m 20 http://$VICTIM/"

step 'a policy that enforces: SSH and ping for the responder, nothing for anybody else'
enforce_lab_policy
fails on intruder "curl -s -m 4 http://$VICTIM/"

step 'the upgrade, with two witnesses'
capture
answered=$(captured "$FROM_VICTIM")
denied=$(denied_packets)
knock
beside pings on responder "exec ping -i 0.2 $VICTIM & echo \$! > $LAB/pings.pid; wait"
sleep 3
victim 'dpkg --install /tmp/guard.deb' >/dev/null 2>&1 || fail 'the upgrade does not install'
until_says "$LIMIT" '^active' victim 'systemctl is-active guard.service'
sleep 3
on intruder "kill \$(cat $LAB/knock.pid)"
on responder "kill -INT \$(cat $LAB/pings.pid)"
sleep 2
equal "$(dpkg_version_of /tmp/guard.deb)" "$(version)" 'version'
says 'ENFORCING in and out' victim 'guard status'
says ' 0% packet loss' output pings
equal "$answered" "$(captured "$FROM_VICTIM")" 'packets that the intruder had got before and has now'
tries=$(captured "src host $INTRUDER and dst host $VICTIM and ip")
more_than 20 "$tries" 'packets that he sent'
more_than $((tries - 1)) "$(($(denied_packets) - denied))" 'packets denied and counted meanwhile'

step 'removing asks first'
fails victim 'dpkg --remove guard < /dev/null'
says 'guard ENFORCES here' victim "echo n | script -qec 'dpkg --remove guard' /dev/null"
says 'ENFORCING in and out' victim 'guard status'
fails on intruder "curl -s -m 4 http://$VICTIM/"

step 'meant, it opens the host; purged, nothing is left'
victim 'GUARD_REMOVE=release dpkg --remove guard' >/dev/null 2>&1 || fail 'it is not removed'
says 'small server' on intruder "curl -s -m 20 http://$VICTIM/"
says . victim 'dpkg --purge guard 2>&1'
left='ls -d /etc/guard /var/lib/guard /sys/fs/bpf/guard/* /etc/systemd/system/*/guard.service 2>/dev/null | wc -l'
equal 0 "$(victim "$left")" 'files, pins and links that are left'
