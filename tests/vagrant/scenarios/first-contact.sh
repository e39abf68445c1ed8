# shellcheck shell=bash
# first contact with a host that nobody knows: observe, suggest, one wrong edit, enforce, report, acknowledge
#
# Expected, as the intruder and the responder see it:
# - Observing denies nothing. The suggested policy has the responder's way in.
# - The wrong edit changes nothing: the intruder still reaches the web server.
# - Enforced, the intruder reaches nothing, and what he tried is in the report until somebody acknowledges it.

step 'the package records, and denies nothing'
says 'small server' on responder "curl -s -m 20 http://$VICTIM/"
says 'small server' on intruder "curl -s -m 20 http://$VICTIM/"
victim 'guard release' >/dev/null 2>&1
says . victim 'systemctl stop guard; systemd-run --unit guard-observe --service-type=exec guard observe'
until_says "$LIMIT" 'OBSERVING|AUDIT|recorded, nothing is dropped|no policy' victim 'guard status'
for _ in 1 2 3; do on responder "curl -s -m 20 http://$VICTIM/ >/dev/null"; done

step 'a policy from what was seen'
until_says "$LIMIT" 'rules? from' victim 'rm -f /root/first.yaml; guard suggest -o /root/first.yaml'
says "$RESPONDER" victim 'cat /root/first.yaml'

step 'a wrong edit is refused with its place, and changes nothing'
victim "sed 's/services: ssh/services: tcp\\/8999-8000/' /root/first.yaml > /root/wrong.yaml"
says 'port range is upside down' victim 'guard check /root/wrong.yaml'
says 'small server' on intruder "curl -s -m 20 http://$VICTIM/"

step 'enforced, and confirmed by a new login'
victim "sed -i 's/^mode: audit.*/mode: enforce/; s/, *$INTRUDER//; s/$INTRUDER, *//; /flow:.*$INTRUDER/d' /root/first.yaml"
says 'in force' victim 'guard reload /root/first.yaml --confirm-within 300s'
says . victim 'guard confirm'
says 'ENFORCING in and out' victim 'guard status'
capture
fails on intruder "nc -z -w 4 $VICTIM 5432"
equal 0 "$(captured "$FROM_VICTIM")" 'packets from the victim at the intruder'
victim "timeout 5 bash -c 'echo > /dev/tcp/$INTRUDER/4444'" >/dev/null 2>&1
equal 0 "$(captured "$FROM_VICTIM")" 'packets from the victim at the intruder, which called him'

step 'the report names it, until it is acknowledged'
until_says "$LIMIT" "out tcp/4444 to $INTRUDER" victim 'guard report'
id=$(victim 'guard report' | sed -n "s/^\\([0-9a-f]*\\)  out tcp\\/4444 to $INTRUDER.*/\\1/p")
says . victim "guard ack $id --note 'that was us'"
equal 0 "$(victim 'guard report' | grep -c "out tcp/4444 to $INTRUDER")" 'times that it is reported again'
