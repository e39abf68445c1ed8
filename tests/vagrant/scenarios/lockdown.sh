# shellcheck shell=bash
# a lockdown over SSH while the intruder's reverse shell is live: not confirmed, then confirmed
#
# Expected, as the intruder and the responder see it:
# - Before: the shell answers, the web server answers the intruder.
# - Once the host says that it is contained, not one packet of it reaches the intruder, and it answers none of his.
# - Not confirmed, it opens again by itself and the shell lives on. Confirmed by a new login, the shell is ended.
# - The responder's session survives all of it, and new logins work.

# In the responder's first session, which waits for the confirmation.
contain() {
    local frames
    frames=$(captured "$FROM_VICTIM")
    reverse_shell_is_live
    more_than "$frames" "$(captured "$FROM_VICTIM")" 'packets from the victim at the intruder, before'
    beside lockdown victim "guard lockdown --yes --confirm-within $1"
    until_says "$LIMIT" 'CONTAINED UNTIL' output lockdown
    # What was on its way has come by now.
    captured "$FROM_VICTIM" > /dev/null
}

# Empty, or what gets through.
leaks() {
    local frames answers
    frames=$(captured "$FROM_VICTIM")
    answers=$(beats)
    ! on intruder "curl -s -m 3 http://$VICTIM/ || nc -z -w 3 $VICTIM 22 || ping -c 3 -i 0.5 -W 1 $VICTIM" >/dev/null 2>&1 ||
        echo 'the victim answers the intruder'
    [ "$frames" = "$(captured "$FROM_VICTIM")" ] || echo 'packets of the victim reach the intruder'
    [ "$answers" = "$(beats)" ] || echo 'the reverse shell answers'
}

step 'before: the intruder has a shell, and the web server answers him'
listen
call_home
reverse_shell_is_live
says 'small server' on intruder "curl -s -m 20 http://$VICTIM/"
capture

step 'lockdown, and nobody confirms'
# A slow machine takes longer for these looks than the first deadline leaves.
for within in 30 240 never; do
    [ "$within" != never ] || fail 'the looks take longer than the deadline leaves'
    contain "${within}s"
    leaks=$(leaks)
    output lockdown | grep -q 'NOT CONFIRMED' || break
    step "  that was too slow for $within s"
    ended lockdown "$LIMIT"
done
equal '' "$leaks" 'what gets through while it holds'
step 'it opens by itself, and the shell lives on'
ended lockdown $((within + LIMIT))
equal 1 $? 'exit code of the lockdown'
says 'NOT CONFIRMED: undone' output lockdown
says 'small server' on intruder "curl -s -m 20 http://$VICTIM/"
reverse_shell_is_live

step 'lockdown, confirmed by a new login'
contain 600s
says 'CONFIRMED by kim' victim 'guard confirm --as kim --one-way-in'
ended lockdown "$LIMIT"
equal 0 $? 'exit code of the lockdown, in the session that survived it'
equal '' "$(leaks)" 'what gets through'
says 'LOCKED DOWN, confirmed .* by kim' victim 'guard status'
equal 0 "$(victim "ss -Hnt state all dst $INTRUDER | wc -l")" 'sockets towards the intruder'
equal '' "$(leaks)" 'what gets through'
