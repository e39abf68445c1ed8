# shellcheck shell=bash
# a policy that locks everybody out comes back by its deadline
#
# Expected, as the responder sees it:
# - guard refuses to cut the session that asks. Told to (--cut-me), nobody gets in any more, and the session is dead.
# - When nobody confirms, the policy from before is in force again: new logins work, and the dead session goes on.

step 'a policy that enforces: SSH and ping for the responder'
enforce_lab_policy
on responder "ping -c 2 -W 5 $VICTIM >/dev/null" || fail 'the responder cannot ping the victim'

step 'an edit that lets nobody in is refused'
victim 'cat > /root/nobody.yaml' <<< 'version: 1
name: nobody
mode: enforce
inbound: []
outbound: []'
says 'refused: this would cut the connection that you sit on' victim 'guard reload /root/nobody.yaml'

step 'told to go on, it locks everybody out'
beside session victim 'n=0; while sleep 1; do n=$((n + 1)); echo alive $n; done'
until_says "$LIMIT" 'alive 2' output session
beside reload victim 'guard reload /root/nobody.yaml --cut-me --confirm-within 40s'
locked() { ! on responder "nc -z -w 3 $VICTIM 22"; }
for _ in $(seq 60); do locked && break; done
locked || fail 'the responder still gets in'
fails on responder "ping -c 3 -i 0.5 -W 1 $VICTIM"
said=$(output session | wc -l)
sleep 3
equal "$said" "$(output session | wc -l)" 'lines of the session, then and 3 s later'

step 'and comes back by itself'
until_in() { CONNECT=5 victim 'guard status'; }
until_says "$LIMIT" 'policy +lab ' until_in
until_says 120 "alive $((said + 2))" output session
