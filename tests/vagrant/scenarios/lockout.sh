# shellcheck shell=bash
# a policy that locks everybody out: refused, and where it is meant, gone again at its deadline
#
# Expected, as the responder and the intruder see it:
# - guard refuses to cut the session that asks, and nothing is changed.
# - Told to (--cut-me), nobody gets in any more, and the responder's sessions are dead.
# - When nobody confirms, the policy from before is in force again: new logins work, the dead session goes on, and the intruder
#   is outside all the time.

in_reach() { on responder "nc -z -w 3 $VICTIM 22"; }

step 'a policy that enforces: SSH and ping for the responder'
enforce_lab_policy
says ' 0% packet loss' on responder "ping -c 2 -W 20 $VICTIM"
capture

step 'an edit that lets nobody in is refused'
victim 'cat > /root/nobody.yaml' <<< 'version: 1
name: nobody
mode: enforce
inbound: []
outbound: []'
says 'refused: this would cut the connection that you sit on' victim 'guard reload /root/nobody.yaml'
says ' 0% packet loss' on responder "ping -c 2 -W 20 $VICTIM"
in_reach || fail 'the responder does not reach SSH'

step 'told to go on, it locks everybody out'
beside session victim 'n=0; while sleep 1; do n=$((n + 1)); echo alive $n; done'
until_says "$LIMIT" 'alive 2' output session
beside reload victim 'guard reload /root/nobody.yaml --cut-me --confirm-within 45s'
asked=$SECONDS
# A ping costs the victim less than a login that never comes.
while on responder "ping -c 1 -W 2 $VICTIM" >/dev/null; do
    [ $((SECONDS - asked)) -le "$LIMIT" ] || { output reload; fail 'the responder still gets in'; }
    sleep 1
done
fails in_reach
said=$(output session | wc -l)
sleep 3
equal "$said" "$(output session | wc -l)" 'lines of the session, then and 3 s later'
fails in_reach

step 'and it comes back by itself'
until_reached_again() { CONNECT=5 victim 'guard status'; }
until_says "$LIMIT" 'policy +lab ' until_reached_again
says ' 0% packet loss' on responder "ping -c 2 -W 20 $VICTIM"
until_says "$LIMIT" "alive $((said + 2))" output session
says 'not confirmed|undone' victim 'guard timeline'
fails on intruder "nc -z -w 4 $VICTIM 22"
equal 0 "$(captured "$FROM_VICTIM")" 'packets from the victim at the intruder, all along'
