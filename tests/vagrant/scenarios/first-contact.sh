# shellcheck shell=bash
# first contact with a host that nobody knows: observe, suggest, a wrong edit that comes back, enforce, report, acknowledge
#
# Expected, as the intruder and the responder see it:
# - Observing denies nothing: the web server answers both.
# - An edit that is no policy changes nothing. One that forgets the web server cuts the responder off it, and he has it back when
#   nobody confirmed.
# - Enforced, the responder keeps what he had. The intruder gets not one packet: what he tries is not answered, and a call from the
#   host to him does not leave. It is in the report until somebody acknowledges it.

web() { on "$1" "curl -s -m ${2:-20} http://$VICTIM/"; }

step 'observing: nothing is denied'
victim 'systemctl stop guard.service; guard release' >/dev/null 2>&1
victim 'systemd-run --quiet --unit guard-observe --service-type=notify guard observe' || fail 'guard does not observe'
until_says "$LIMIT" '^OBSERVING' victim 'guard status'
says 'small server' web responder
says 'small server' web intruder

step 'a policy from what was seen'
until_says "$LIMIT" '"http to nginx"' victim 'rm -f /root/first.yaml; guard suggest -o /root/first.yaml; cat /root/first.yaml'
says "$INTRUDER" victim 'grep from: /root/first.yaml'

step 'an edit that is no policy is refused with its place, and changes nothing'
victim "sed 's/services: http\$/services: tcp\\/8999-8000/' /root/first.yaml > /root/no-policy.yaml"
says 'port range is upside down' victim 'guard reload /root/no-policy.yaml'
says 'small server' web intruder

step 'an edit that forgets the web server comes back'
# The stranger is left out.
victim "sed -i 's/^mode: audit.*/mode: enforce/; s/, $INTRUDER//; s/$INTRUDER, //' /root/first.yaml"
victim "sed '/^tests:/,\$d; s/services: http\$/services: https/' /root/first.yaml > /root/wrong.yaml"
says 'UNDONE IN' victim 'guard reload /root/wrong.yaml --confirm-within 60s'
fails web responder 4
until_says "$LIMIT" 'small server' web responder 4
says 'small server' web intruder
says '^OBSERVING' victim 'guard status'

step 'enforced, and confirmed by a new login'
says 'UNDONE IN' victim 'guard reload /root/first.yaml --confirm-within 300s'
says 'the change stays' victim 'guard confirm'
says 'ENFORCING in and out' victim 'guard status'
capture
says 'small server' web responder
fails web intruder 4
fails on intruder "nc -z -w 4 $VICTIM 22"
fails on intruder "ping -c 2 -W 2 $VICTIM"
fails victim "timeout 5 bash -c ': < /dev/tcp/$INTRUDER/4444'"
more_than 3 "$(captured "src host $INTRUDER and dst host $VICTIM and ip")" 'packets that the intruder sent'
equal 0 "$(captured "$FROM_VICTIM")" 'packets from the victim at the intruder'

step 'the report names the call, until it is acknowledged'
until_says "$LIMIT" "out tcp/4444 to $INTRUDER" victim 'guard report'
id=$(victim 'guard report' | sed -n "s/^\\([0-9a-f]*\\)  out tcp\\/4444 to $INTRUDER.*/\\1/p")
says . victim "guard ack $id --note 'that was us'"
equal 0 "$(victim 'guard report' | grep -c "out tcp/4444 to $INTRUDER")" 'times that it is reported again'
