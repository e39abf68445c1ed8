# shellcheck shell=bash
# a reboot under lockdown: enforcing before the network is up
#
# Expected, as the intruder and the responder see it:
# - The intruder tries SSH, the web server, PostgreSQL, DNS and ping all along the boot: each try is counted, none answered.
# - The responder gets in by SSH as soon as it is up, and nobody else does.

step 'before: what the intruder tries is answered'
capture
knock 3
more_than 5 "$(captured "$FROM_VICTIM")" 'answers to the intruder, before'

step 'lockdown, confirmed'
says 'CONTAINED' victim 'guard lockdown --yes --confirm-within none --as kim'
says 'LOCKED DOWN' victim 'guard status'
boot=$(victim 'cat /proc/sys/kernel/random/boot_id')
knock
sleep 2
tried=$(captured "dst host $VICTIM and ip")
answered=$(captured "$FROM_VICTIM")

step 'reboot'
victim 'systemctl reboot' || true
alive_from=$SECONDS
again=
while [ $((SECONDS - alive_from)) -lt 500 ]; do
    again=$(CONNECT=5 victim 'cat /proc/sys/kernel/random/boot_id' 2>/dev/null | head -n 1)
    [ -z "$again" ] || [ "$again" = "$boot" ] || break
    sleep 1
done
[ -n "$again" ] && [ "$again" != "$boot" ] || fail 'the responder does not get in after the reboot'
step 'the responder is in'
more_than 50 "$(($(captured "dst host $VICTIM and ip") - tried))" 'packets that the intruder sent meanwhile'
equal "$answered" "$(captured "$FROM_VICTIM")" 'packets that he had got before, and has now'
says 'LOCKED DOWN' victim 'guard status'
step 'in the order of the boot'
times=$(victim 'systemctl show -p ActiveEnterTimestampMonotonic --value guard.service network-pre.target
    systemctl show -p ExecMainStartTimestampMonotonic --value systemd-networkd.service' | grep .)
step "  guard ready, network-pre.target, systemd-networkd started (us): $(tr '\n' ' ' <<< "$times")"
[ "$times" = "$(sort -n <<< "$times")" ] && [ "$(grep -c '^[1-9]' <<< "$times")" = 3 ] || fail 'guard was not first'
more_than 5 "$(denied_packets)" 'packets that guard counted as denied since the boot'
says "$INTRUDER" victim 'guard flows'
fails on intruder "nc -z -w 4 $VICTIM 22"
equal "$answered" "$(captured "$FROM_VICTIM")" 'packets that he had got before, and has now'
