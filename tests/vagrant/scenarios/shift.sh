# shellcheck shell=bash
# a second responder, the handover, the way back, and the release
#
# Expected, as the three outside see it:
# - In the lockdown both responders get in, and nobody else does.
# - The page for the next shift says what holds. Restored, the policy from before holds; released, the host is open.

SECOND=192.0.2.21
at=$(interface responder)
on responder "ip addr replace $SECOND/24 dev $at"
second() { FROM=$SECOND victim "$@"; }

step 'a policy that enforces: SSH and ping for the responder'
enforce_lab_policy
CONNECT=5 fails second id

step 'lockdown with a second way in, confirmed from there'
beside lockdown victim "guard lockdown --yes --allow-from $SECOND --confirm-within 600s"
until_says "$LIMIT" 'CONTAINED UNTIL' output lockdown
says 'CONFIRMED by lee' second 'guard confirm --as lee'
ended lockdown "$LIMIT"
fails on intruder "nc -z -w 4 $VICTIM 22"
fails on responder "ping -c 2 -W 2 $VICTIM"

step 'the handover'
says 'LOCKED DOWN|locked down' second "guard handover --as lee --note 'kim takes over'"
says 'kim takes over' victim 'guard timeline'

step 'back to the policy from before'
says . victim 'guard restore --confirm-within 300s --as kim'
on responder "ping -c 2 -W 5 $VICTIM >/dev/null" || fail 'the responder cannot ping the victim'
says . victim 'guard confirm --as kim'
says 'ENFORCING in and out' victim 'guard status'
CONNECT=5 fails second id
fails on intruder "curl -s -m 4 http://$VICTIM/"

step 'released'
says . victim 'guard release --host victim --as kim'
says 'small server' on intruder "curl -s -m 20 http://$VICTIM/"
