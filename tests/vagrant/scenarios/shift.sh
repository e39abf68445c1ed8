# shellcheck shell=bash
# a shift: a lockdown, a second responder by an exception, the handover to him, the way back, and the release
#
# Expected, as the responders and the intruder see it:
# - In the lockdown the second responder gets in once he is allowed, and nobody else does.
# - The handover says what holds, and whom it is handed to.
# - Restored, the policy from before holds, and the exception of the lockdown has ended with it. Released, the host is open to all.

SECOND=192.0.2.21
on responder "ip addr replace $SECOND/24 dev $(interface responder)"
second() { FROM=$SECOND victim "$@"; }

step 'a policy that enforces: SSH and ping for the responder'
enforce_lab_policy
says ' 0% packet loss' on responder "ping -c 2 -W 20 $VICTIM"
CONNECT=5 fails second id
capture

step 'lockdown, confirmed by a new login'
beside lockdown victim 'guard lockdown --yes --as kim --confirm-within 600s'
until_says "$LIMIT" 'CONTAINED UNTIL' output lockdown
says 'CONFIRMED by kim' victim 'guard confirm --as kim --one-way-in'
ended lockdown "$LIMIT"
equal 0 $? 'exit code of the lockdown'
fails on responder "ping -c 2 -W 2 $VICTIM"
CONNECT=5 fails second id

step 'a second responder, by an exception'
says 'allowed until' victim "guard allow 'in tcp $SECOND -> 22' --note 'second responder' --as kim"
says 'uid=0' second id
fails on intruder "nc -z -w 4 $VICTIM 22"

step 'the handover, by his own login'
says 'LOCKED DOWN' second "guard handover --as kim --note 'lee takes over'"
says 'lee takes over' second 'guard timeline'

step 'back to the policy from before'
says 'UNDONE IN|comes back' victim 'guard restore --confirm-within 300s --as lee'
says 'the change stays' victim 'guard confirm --as lee'
says 'ENFORCING in and out' victim 'guard status'
says ' 0% packet loss' on responder "ping -c 2 -W 20 $VICTIM"
CONNECT=5 fails second id
fails on intruder "curl -s -m 4 http://$VICTIM/"
equal 0 "$(captured "$FROM_VICTIM")" 'packets from the victim at the intruder, all along'

step 'released'
says . victim 'guard release --as lee'
says 'uid=0' second id
says 'small server' on intruder "curl -s -m 20 http://$VICTIM/"
on responder "ip addr del $SECOND/24 dev $(interface responder)"
